"""The KR paper's figures: the data that each draws, and the stored training curves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kcd_jax.commands.report import main
from kcd_jax.report import kr, tables
from kcd_jax.report.comparisons import rows_of
from kcd_jax.report.records import Files


def write_run(folder, name, seed, losses, steps=(10, 20)):
    """A finished run with the log that Fig. 5 reads."""
    folder.mkdir(parents=True)
    summary = {'name': name, 'method': 'kr', 'policy': 'none', 'seed': seed, 'accuracy': 0.9}
    (folder / 'summary.json').write_text(json.dumps(summary))
    records = [
        {'kind': 'train', 'step': step, 'epoch': i + 1, 'loss': loss, 'prior': loss / 10}
        for i, (step, loss) in enumerate(zip(steps, losses, strict=True))
    ]
    lines = [json.dumps(record) for record in ({'kind': 'eval', 'step': 0}, *records)]
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / 'recode' / f'trial_{seed}', 'recode', seed, [4.0 + seed, 1.0 + seed])
        write_run(tmp_path / 'dense' / f'trial_{seed}', 'dense', seed, [5.0, 3.0 + seed])
    return tmp_path


def test_fig_5_from_runs_and_from_stored_curves(runs, capsys):
    png, kept = runs / 'kr_fig5.png', runs / 'curves.json'
    assert main(['figures', '--kr=5', str(runs), f'--folder={runs}', f'--curves={kept}']) == 0
    text = capsys.readouterr().out
    # recode - dense, means over both epochs: 2.5 - 4 = -1.5 and 3.5 - 4.5 = -1; mean -1.25, error 0.25, t = 12.71.
    assert 'recode: posterior loss (A) 1.5000 at the end, 3.0000 on average' in text
    assert '(-1.2500 [-4.4266, +1.9266] against dense, n = 2)' in text
    assert 'dense: posterior loss (A) 3.5000 at the end, 4.2500 on average; prior' in text
    assert json.loads(kept.read_text())['dense'] == {
        'iterations': [10, 20],
        'loss': {'0': [5.0, 3.0], '1': [5.0, 4.0]},
        'prior': {'0': [0.5, 0.3], '1': [0.5, 0.4]},
    }
    png.unlink()
    assert main(['figures', '--kr=5', str(kept), f'--folder={runs}']) == 0
    assert capsys.readouterr().out == text and png.stat().st_size > 10_000


def test_losses_of_kr_are_drawn_for_its_runs(runs):
    rows = rows_of(tables.collect([runs]))
    drawn = kr.training_losses(rows, Files())
    assert drawn.name == 'kr_convergence' and len(drawn.figure.axes) == 2
    assert 'dense: posterior loss (A) 3.5000 at the end' in drawn.alt
    (runs / 'dense' / 'trial_0' / 'metrics.jsonl').write_text(
        '{"kind": "train", "step": 10, "epoch": 1, "loss": 1.0}\n'
    )
    assert '2.0000 at the end' not in kr.training_losses(rows, Files()).alt, 'a run without the prior loss is left out'
    others = [run | {'method': 'kd'} for run in tables.collect([runs])]
    assert kr.training_losses(rows_of(others), Files()) is None


def test_convergence_draws_means_and_deviations(runs):
    figure = kr.convergence(kr.training_curves(rows_of(tables.collect([runs])), Files()))
    for axes, factor in zip(figure.axes, (1.0, 0.1), strict=True):
        lines = {line.get_label(): line for line in axes.get_lines()}
        np.testing.assert_allclose(lines['recode, n = 2'].get_ydata(), [4.5 * factor, 1.5 * factor])
        np.testing.assert_array_equal(lines['dense, n = 2'].get_xdata(), [10, 20])
        assert len(axes.collections) == 2


def test_what_cannot_be_drawn_is_one_error_line(runs, capsys):
    other = runs / 'other.json'
    other.write_text('{"a": 1}')
    write_run(runs / 'kd', 'kd', 0, [1.0, 1.0])
    summary = json.loads((runs / 'kd' / 'summary.json').read_text())
    (runs / 'kd' / 'summary.json').write_text(json.dumps(summary | {'method': 'kd'}))
    for arguments, says in (
        (['--kr=5', str(runs / 'kd')], 'no run of KR under'),
        (['--kr=5'], 'figure 5 is drawn from runs'),
        (['--kr=5', str(other)], 'holds no training curves'),
        (['--kr=4', str(runs)], 'student'),
        ([], 'give folders of runs'),
    ):
        assert main(['figures', *arguments, f'--folder={runs}']) == 2
        error = capsys.readouterr().err
        assert says in error and error.count('\n') == 1
    write_run(runs / 'third', 'dense', 2, [1.0, 1.0], steps=(10, 30))
    rows = rows_of(tables.collect([runs]))
    with pytest.raises(ValueError, match='the runs of dense differ in their logged iterations'):
        kr.training_curves(rows, Files())
    assert kr.training_losses(rows, Files()) is None


def test_fig_2_is_the_penalty(tmp_path):
    assert main(['figures', '--kr=2', f'--folder={tmp_path}']) == 0 and (tmp_path / 'kr_fig2.png').exists()
    gradient = np.array([-1.0, 0.0, 1.0])
    figure = kr.penalty_curves(gradient, {'L1': np.abs(gradient)}, {'0.5': 4 * gradient**2})
    for axes, wanted in zip(figure.axes, ([1, 0, 1], [4, 0, 4]), strict=True):
        np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), wanted)


def test_fig_4_shows_every_kernel_once():
    kernel = np.arange(2 * 2 * 3 * 4, dtype=float).reshape(2, 2, 3, 4) - 20.0
    picture = kr.mosaic(kernel)
    assert picture.shape == (3 * 3 - 1, 4 * 3 - 1)
    np.testing.assert_allclose(picture[3:5, 6:8], kernel[:, :, 1, 2] / 27.0)
    assert np.isnan(picture[2]).all() and np.isnan(picture[:, 5]).all()
    assert np.isnan(picture).sum() == picture.size - kernel.size
    assert kr.share_near_zero(np.array([[[[0.0, 0.05, -0.2, 1.0]]]])) == 0.5
    figure = kr.kernels({'recode': kernel, 'dense': np.zeros((1, 1, 1, 2))})
    assert [axes.get_title(loc='left').split(':')[0] for axes in figure.axes[:2]] == ['recode', 'dense']


def test_fig_6_stacks_the_same_points():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    figure = kr.examples({'cifar100': images, 'tcifar100': 255 - images})
    for axes, wanted in zip(figure.axes, (images, 255 - images), strict=True):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), np.concatenate(list(wanted), axis=1))
