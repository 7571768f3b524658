"""What a set of runs falls into, and what its page says."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from kcd_jax.commands.report import main
from kcd_jax.report import drawings, findings, parts, report, tables
from kcd_jax.report.groups import group_runs
from tests.report.runs import make_summary
from tests.report.sweeps_test import card, results

METHODS = ('at', 'kd', 'crd', 'dkd', 'fitnet', 'nst', 'pkt', 'rkd', 'sp', 'vid')


def methods():
    """Ten methods with two seeds: KD at 80 and 82 %, the others a point apart."""
    made = []
    for place, method in enumerate(METHODS):
        for seed in (0, 1):
            accuracy = 0.80 + 0.02 * seed + 0.01 * (place - 1)
            made.append(make_summary('kd' if method == 'kd' else method, seed, accuracy, method=method, policy='none'))
    return made


def labelled(runs, label, **config):
    """Runs of a sweep's row."""
    return [{**run, 'cell': card(label, 9), 'config': {**run['config'], **config}} for run in runs]


def test_sweeps_then_experiments():
    sweep, experiment = parts.split([*methods(), *results()])
    assert (sweep.sweep, experiment.sweep) == ('mine', '')
    assert sweep.title == sweep.table.title and sweep.title.startswith('My sweep')
    rows = {group.label: group for group in sweep.groups}
    assert sweep.base(rows['KC-KD, 60 %']).label == 'KD' and sweep.base(rows['KD']) is None
    assert [group.label for group in experiment.groups][:2] == ['KD', 'AT'], 'plain KD comes before other methods'


def test_another_reference():
    (part,) = parts.split([*methods(), make_summary('student', 0, 0.7), make_summary('student', 1, 0.7)], 'student')
    assert part.base(part.groups[1]).label == 'Student alone'


def test_many_rows_get_a_line_each():
    (part,) = parts.split(methods())
    drawn = {one.name: one for one in part.draw()}['accuracy_against_cost']
    (axes,) = drawn.figure.axes
    assert drawn.title == 'Accuracy of each run' and len(axes.get_yticks()) == len(METHODS)
    assert axes.get_xlabel() == 'accuracy (%); dotted: KD'
    assert 'KD 81.00 % at 100.0 %' in drawn.alt


def test_of_many_rows_the_two_ends_are_told():
    (part,) = parts.split(methods())
    sentence, tiles = findings.found(part)
    assert 'Of 9 rows against their reference: highest VID' in sentence and 'lowest AT' in sentence
    assert '\N{MINUS SIGN}1.00 ± 0.00 percentage points over 2 seeds from KD' in sentence
    assert 'partly luck' in sentence and 'KD, last epoch' in tiles


def test_ratios_and_reuse_of_a_sweep_are_drawn():
    runs = results()
    for ratio, label in ((0.5, 'KC-KD, ratio 0.5'), (0.9, 'KC-KD, ratio 0.9')):
        runs += labelled([make_summary('kcd', 0, 0.7 + ratio / 10)], label, policy={'name': 'kcd', 'ratio': ratio})
    runs += labelled([make_summary('reuse', 0, 0.8, policy='reuse')], 'KD + DS')
    (part,) = parts.split(runs)
    drawn = {one.name: one for one in part.draw()}
    assert list(drawn) == ['accuracy_against_cost', 'accuracy_against_ratio', 'reuse']
    (axes,) = drawn['accuracy_against_ratio'].figure.axes
    (line,) = [container.lines[0] for container in axes.containers]
    np.testing.assert_allclose(line.get_xdata(), [50, 90])
    np.testing.assert_allclose(line.get_ydata(), [75, 79])
    assert 'KD + DS 80.00 %' in drawn['reuse'].alt


def test_costs_are_multiply_accumulates_where_samples_say_too_little():
    runs = methods()[2:4]
    for seed in (0, 1):
        run = make_summary('unix', seed, 0.8)
        run['cost'] |= {'relative_macs': 0.9, 'relative_processed': 0.75}
        runs.append(run)
    for run in runs[:2]:
        run['cost']['relative_macs'] = 1.0
    drawn = drawings.of_costs(group_runs(runs))
    (axes,) = drawn.figure.axes
    assert axes.get_xlabel().startswith('multiply-accumulates') and 'UNIX-KD 80.00 % at 90.0 %' in drawn.alt


def test_the_page_of_a_sweep_has_its_rows(tmp_path):
    for place, run in enumerate(results()):
        (tmp_path / f'{place}.json').write_text(json.dumps(run))
    source = report.write(tmp_path).read_text(encoding='utf-8')
    root = ElementTree.fromstring(source.removeprefix('<!DOCTYPE html>\n'))
    assert root.find('.//h1').text == 'My sweep (digits: resnet20 -> resnet8, 6 epochs)'.replace('->', '→')
    rows = [cell.text for cell in root.iter('th') if cell.get('scope') == 'row']
    assert rows[:3] == ['Student alone', 'KD', 'Random KD, 60 %']


def test_long_curves_of_many_runs_show_few(tmp_path):
    groups = group_runs(methods())
    for group in groups:
        group.runs[0]['_file'] = str(tmp_path / group.label / 'summary.json')
        (tmp_path / group.label).mkdir()
        ends = {'kind': 'eval', 'epoch': 1, 'accuracy': group.runs[0]['accuracy']}
        (tmp_path / group.label / 'metrics.jsonl').write_text(json.dumps(ends) + '\n')
        group.runs[1:] = []
    drawn = drawings.learning_curves(groups)
    shown = [line.get_label() for line in drawn.figure.axes[0].get_lines()]
    assert shown == ['KD', 'AT', 'NST', 'PKT', 'RKD', 'SP', 'VID'] and 'Of 10 runs' in drawn.alt


def test_gallery_is_drawn_from_the_last_condensation(experiment):
    run = next(run for run in tables.collect([experiment]) if run['policy'] == 'kcd')
    images = np.zeros((300, 4, 4, 3), np.uint8)
    value = drawings.read_stages(drawings.run_folder(run))[-1].value
    images[np.argmax(value)] = 255
    drawn = drawings.gallery(run, images, lambda point: f'p{point}', 3)
    shown = [axes for axes in drawn.figure.axes if axes.get_images()]
    assert len(shown) == 6 and shown[0].get_images()[0].get_array().min() == 255
    assert shown[0].get_title() == f'p{np.argmax(value)}\n{value.max():.3f} nats'
    with pytest.raises(ValueError, match='5 images do not belong'):
        drawings.gallery(run, images[:5], str)


def test_a_gallery_that_cannot_be_had_is_said(experiment, capsys, tmp_path):
    assert main(['figures', str(experiment), f'--folder={tmp_path / "figures"}']) == 0
    assert capsys.readouterr().err.startswith('no gallery of images: ')


def test_sets_of_everything_are_not_compared(experiment):
    for seed in range(3):
        path = experiment / 'random' / f'trial_{seed}' / 'knowledge' / 'stage_3.npz'
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, 'num_keep': np.int32(300)})
    drawn = drawings.hamming_distances(group_runs(tables.collect([experiment])))
    labels = [text.get_text() for text in drawn.figure.axes[0].get_yticklabels()]
    assert labels == ['KC-KD, seed 0', 'KC-KD, seed 1', 'KC-KD, seed 2']
