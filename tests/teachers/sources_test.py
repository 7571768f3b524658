"""What `teacher.checkpoint` names: weights, stored outputs, or several of them as an ensemble."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import safetensors.numpy

from kcd_jax import data, networks
from kcd_jax.commands import teacher as command
from kcd_jax.runtime import distributed
from kcd_jax.teachers import Teacher, torch_file, torch_weights, weights_file
from kcd_jax.teachers.sources import teacher_of
from tests.digits import run_for

SHAPE = (16, 16, 3)


@pytest.fixture
def files(tiny_networks, tmp_path):
    """{kind: path}: weights, stored outputs of the 300 training points of the quick digits and of their test images."""
    network = networks.get('tiny_teacher')(10)
    variables = network.init(jax.random.key(3), SHAPE)
    card = {'network': 'tiny_teacher', 'num_classes': 10, 'image_shape': list(SHAPE), 'normalization': None}
    Teacher(network, variables, card).save(tmp_path / 'weights.safetensors')
    draw = np.random.default_rng(0).normal
    arrays = {'train': draw(size=(300, 10)), 'test': draw(size=(597, 10)), 'embed': draw(size=(300, 5))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(tmp_path / 'outputs.npz', **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / 'outputs.safetensors')
    return {path.name: str(path) for path in tmp_path.iterdir()}, arrays


def test_what_a_name_means_is_what_the_first_process_sees(tmp_path, monkeypatch):
    """A file that is seen by the first process alone is missed in one line, and by all processes at the same place."""
    seen = iter([[f'{tmp_path}/outputs.safetensors'], True])
    monkeypatch.setattr(distributed, 'first', lambda function: next(seen))
    with pytest.raises(ValueError, match='there are no outputs at .*outputs.safetensors'):
        teacher_of(f'{tmp_path}/outputs.safetensors')


def test_a_file_is_recognised_by_its_content(files):
    paths, arrays = files
    weights = teacher_of(paths['weights.safetensors'], 'tiny_teacher', 10, SHAPE)
    assert weights.host is None and weights.identity == Teacher.restore(paths['weights.safetensors']).identity
    for name in ('outputs.npz', 'outputs.safetensors'):
        stored = teacher_of(paths[name])
        assert stored.host.kind == 'outputs' and stored.serves == {'logits', 'embed'} and stored.source == paths[name]
        assert stored.identity == Teacher.from_outputs(**arrays).identity


def test_several_files_are_an_ensemble(files):
    paths = files[0]
    source = f'{paths["weights.safetensors"]}+{paths["outputs.npz"]}'
    both = teacher_of(source)
    assert both.host.kind == 'ensemble' and both.source == source
    members = [Teacher.restore(paths['weights.safetensors']), Teacher.from_outputs(paths['outputs.npz'])]
    assert both.for_images(SHAPE).identity == Teacher.ensemble(members).for_images(SHAPE).identity
    with pytest.raises(ValueError, match='there is no teacher at .*missing'):
        teacher_of(f'{source}+missing.safetensors')
    with pytest.raises(ValueError, match='there are no outputs at missing.npz'):
        teacher_of('missing.npz')
    for unknown in ('~nobody_here/x.pth', '~nobody_here/x.npz', f'{paths["outputs.npz"]}+~nobody_here/x'):
        with pytest.raises(ValueError, match='~nobody_here/x.* names a home folder that does not exist'):
            teacher_of(unknown)


def test_the_normalization_of_every_file_of_an_ensemble_is_asked_for(tiny_networks, tmp_path):
    variables = networks.get('tiny_teacher')(10).init(jax.random.key(3), SHAPE)
    card = {'network': 'tiny_teacher', 'num_classes': 10, 'image_shape': list(SHAPE)}  # no normalization
    for name in ('a.pth', 'b.pth'):
        (tmp_path / name).write_bytes(
            torch_file.encode(torch_weights.to_torch(variables), {weights_file.CARD_KEY: card})
        )
    digits = data.load('digits', num_points=300)
    both = teacher_of(f'{tmp_path}/a.pth+{tmp_path}/b.pth')
    with pytest.raises(ValueError, match=r'a.pth does not say with which mean .* digits has its own'):
        both.fits(digits)
    chosen = teacher_of(f'{tmp_path}/a.pth+{tmp_path}/b.pth', normalization=tuple(digits.normalization))
    assert sum('does not name its classes' in line for line in chosen.fits(digits)) == 3  # the files, and the ensemble


def test_arrays_are_named_where_weights_are_asked_for(files):
    with pytest.raises(ValueError, match=r'archive of NumPy arrays, not of weights; .* teacher.checkpoint=FILE.npz'):
        Teacher.restore(files[0]['outputs.npz'], 'tiny_teacher')


def test_the_command_line_takes_them_and_a_description_finds_them_again(files):
    from kcd_jax.training.run import Run

    paths = files[0]
    for source in (paths['outputs.npz'], f'{paths["outputs.npz"]}+{paths["outputs.safetensors"]}'):
        run = run_for(f'num_points=300,teacher.checkpoint={source},teaching.allow_weak=True', policy='none')
        assert any('answers before the steps' in line for line in run.check(4))
        assert Run.from_description(run.describe()).describe() == run.describe()


def test_stored_embeddings_serve_methods_that_read_them(files, tmp_path):
    words = f'num_points=300,teacher.checkpoint={files[0]["outputs.npz"]},teaching.allow_weak=True,epochs=1'
    result = run_for(words, method='rkd', policy='none').train(tmp_path / 'run')
    assert result.summary['computed']['teacher_rows']['served'] == result.summary['cost']['samples']['teacher_forward']


@pytest.mark.parametrize(
    ('embed', 'told'),
    [
        (np.zeros((5, 3), np.float32), r'embed of stored outputs has shape \[5, 3\]; use \[6, D\]'),
        (np.zeros((6, 3), np.int32), 'use numbers as floating point numbers'),
        (np.full((6, 3), np.nan, np.float32), 'not finite, first in row 0'),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(embed, told):
    with pytest.raises(ValueError, match=told):
        Teacher.from_outputs(np.random.default_rng(0).normal(size=(6, 4)), embed=embed)


@pytest.mark.parametrize('views', [0, 2])
def test_the_command_line_says_what_stored_outputs_hold(tmp_path, capsys, views):
    digits, path = data.load('digits'), tmp_path / 'outputs.npz'
    train, test = (5 * np.eye(10, dtype=np.float32)[part.labels] for part in (digits.train, digits.test))
    check = lambda *words: command.main(['check', str(path), *words])  # noqa: E731
    wrong = np.roll(train, 1, axis=1)
    np.savez(path, train=np.repeat(train[:, None], views, axis=1) if views else train, test=test, embed=np.zeros(0))
    assert check() == 2 and 'embed of outputs.npz has shape [0]' in capsys.readouterr().err
    np.savez(path, train=np.repeat(train[:, None], views, axis=1) if views else train, test=test)
    assert check() == 0
    said = capsys.readouterr().out
    rows = f'train: float32[{len(train)}, {"2, " if views else ""}10]\ntest: float32[{len(test)}, 10]\n'
    assert rows in said and f'--config.teacher.checkpoint={path}' in said
    assert f'identity: {Teacher.from_outputs(path).identity}' in said and 'num_classes: 10' in said
    assert check('--dataset=digits') == 0
    said = capsys.readouterr().out
    assert 'accuracy on the training points of digits: 100.00 %' in said
    assert 'accuracy on the test images of digits: 100.00 %' in said
    np.savez(path, train=train[:300], test=test)
    assert check('--dataset=digits') == 0
    said = capsys.readouterr().out
    assert f'300 rows of training points, and digits has {len(train):,}' in said and 'training points of' not in said
    np.savez(path, train=wrong, test=test)
    assert check('--dataset=digits') == 2
    assert 'right on 0.00 %' in capsys.readouterr().err
    assert check('--network=tiny') == 2
    assert 'holds stored outputs; leave out --network' in capsys.readouterr().err
    np.savez(path, embed=train, test_embed=test)
    assert check('--dataset=digits') == 0
    said = capsys.readouterr().out
    assert f'embed: float32[{len(train)}, 10]' in said and 'train: ' not in said and 'accuracy' not in said
