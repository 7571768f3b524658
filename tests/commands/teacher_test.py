"""`python -m kcd_jax teacher`: in from PyTorch, out to it, checked, and one line for a mistake."""

from __future__ import annotations

import hashlib
import pathlib
import re

import jax
import numpy as np
import pytest

from kcd_jax import data, networks
from kcd_jax.commands import teacher as command
from kcd_jax.teachers import Teacher, torch_weights

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parent.parent.parent
NAME, CLASSES, SHAPE = 'resnet8x0_25', 5, (8, 8, 3)
PIXELS = data.Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope='module')
def variables():
    network = networks.get(NAME)(CLASSES, normalization=tuple(PIXELS))
    return network.init(jax.random.key(0), SHAPE)


@pytest.fixture(scope='module')
def known(variables):
    """A data set with its own normalization, whose labels are what the network says with it."""
    network = networks.get(NAME)(CLASSES)
    images = np.random.default_rng(0).integers(0, 256, (200, *SHAPE), np.uint8)
    outputs, _ = jax.jit(network.apply, static_argnums=2)(variables, images.astype(np.float32) / 255, False)
    labels = np.array(np.argmax(np.asarray(outputs.logits), -1), np.int32)
    split = data.Split(images, labels)
    return data.Dataset('known', split, split, tuple('abcde'), CLASSES, SHAPE, PIXELS, 'made by a test')


@pytest.fixture
def files(tmp_path, variables, known, monkeypatch):
    monkeypatch.setattr(data, 'load', lambda name, folder: known)
    torch_weights.write(tmp_path / 'public.pth', variables)
    return tmp_path


def run(*words):
    return command.main([str(word) for word in words])


def imported(files, *words):
    flags = (f'--network={NAME}', '--dataset=known', f'--out={files}/teacher.safetensors')
    return run('import', files / 'public.pth', *flags, *words)


def test_import_export_and_import_again_keep_the_accuracy(files, variables, capsys):
    assert imported(files, '--normalization=data') == 0
    said = capsys.readouterr().out
    assert 'test accuracy on known: 100.00 %' in said
    assert hashlib.sha256((files / 'public.pth').read_bytes()).hexdigest() in said
    first = Teacher.restore(files / 'teacher.safetensors')
    jax.tree.map(np.testing.assert_array_equal, first.variables, variables)
    assert first.card['accuracy'] == 1.0 and first.card['dataset'] == 'known' and first.card['source'] == 'public.pth'
    assert first.card['class_names'] == list('abcde') and first.card['image_shape'] == list(SHAPE)
    for name in ('new folder/back.pth', 'back.bin', 'back.safetensors'):
        assert run('export', files / 'teacher.safetensors', f'--out={files / name}') == 0
        assert 'mean [0.5, 0.5, 0.5]' in capsys.readouterr().out
        # Neither network nor normalization has to be given again.
        assert run('import', files / name, '--dataset=known', f'--out={files}/again.safetensors') == 0
        assert 'test accuracy on known: 100.00 %' in capsys.readouterr().out
        again = Teacher.restore(files / 'again.safetensors')
        jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
        assert again.identity == first.identity
    assert run('check', files / 'back.bin', '--dataset=known') == 0
    said = capsys.readouterr().out
    assert 'class_names: a, b, c, d, e' in said and f'identity: {first.identity}' in said and '100.00 %' in said


def test_what_a_file_lacks_is_asked_for(files, capsys):
    assert imported(files) == 2
    assert 'known has its own; name them by' in capsys.readouterr().err
    assert imported(files, '--normalization=cifar') == 2
    assert 'unknown normalization' in capsys.readouterr().err
    assert imported(files, '--normalization=0.5,0.5,0.5,0.25,0.25,0.25') == 0
    assert '100.00 %' in capsys.readouterr().out
    assert run('check', files / 'public.pth') == 2
    assert 'does not say which network it is' in capsys.readouterr().err
    assert run('check', files / 'public.pth', f'--network={NAME}', '--normalization=data') == 2
    assert '--normalization=data needs --dataset' in capsys.readouterr().err


def test_other_class_names_are_refused_or_replaced(files, known, monkeypatch, capsys):
    assert imported(files, '--normalization=data') == 0
    other = data.Dataset(**{**vars(known), 'class_names': tuple('abcdx')})
    monkeypatch.setattr(data, 'load', lambda name, folder: other)
    again = ('import', files / 'teacher.safetensors', '--dataset=known', f'--out={files}/renamed.safetensors')
    assert run(*again) == 2
    assert "class 4 is 'e' there and 'x' in the data" in capsys.readouterr().err
    assert run(*again, '--rename_classes') == 0
    assert Teacher.restore(files / 'renamed.safetensors').card['class_names'] == list('abcdx')


def test_refusals_are_one_line_and_write_nothing(files, known, monkeypatch, capsys):
    wrong = data.Split(known.test.images, (known.test.labels + 1) % CLASSES)
    monkeypatch.setattr(data, 'load', lambda name, folder: data.Dataset(**{**vars(known), 'test': wrong}))
    assert imported(files, '--normalization=data') == 2
    assert capsys.readouterr().err.startswith('error: the teacher is right on 0.00 % of the 200 test images')
    assert not (files / 'teacher.safetensors').exists()
    assert imported(files, '--normalization=data', '--allow_weak') == 0
    assert 'accepted, because teaching.allow_weak is True' in capsys.readouterr().out
    (files / 'file').write_bytes(b'')
    out = f'--out={files}/teacher.safetensors'
    for words in (
        ('export', files / 'absent', '--out=x.pth'),
        ('export', files / 'teacher.safetensors', f'--out={files}/file/student.pth'),
        ('export', files / 'teacher.safetensors', f'--out={files}'),
        ('export', files / 'teacher.safetensors'),
        ('remove', files / 'teacher.safetensors'),
        ('import', files / 'teacher.safetensors', '--dataset=known', out),
    ):
        assert run(*words) == 2
        assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('words', [(), ('import',), ('export',), ('check',)])
def test_help_has_an_example(words, capsys):
    with pytest.raises(SystemExit) as done:
        run(*words, '--help')
    assert done.value.code == 0 and 'python -m kcd_jax teacher import wrn_40_2.pth' in capsys.readouterr().out


def test_fill_computes_what_runs_ask_for_once(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(command.launch, 'prepare_jax', lambda *_: None)  # the tests' devices stay
    monkeypatch.chdir(ROOT)
    teacher = networks.get(NAME)(10)
    card = {'network': NAME, 'num_classes': 10, 'image_shape': [16, 16, 3]}
    Teacher(teacher, teacher.init(jax.random.key(0), (16, 16, 3)), card).save(tmp_path / 't.safetensors')
    argv = [
        'fill', '--config=configs/digits_kd.py:num_points=200,trials=1', '--config.student.name=resnet8x0_25',
        f'--config.teacher.name={NAME}', f'--config.teacher.checkpoint={tmp_path}/t.safetensors', '--epochs=2',
    ]  # fmt: skip
    assert command.main(argv) == 2
    assert 'name a folder' in capfd.readouterr().err
    argv.append(f'--config.teaching.cache={tmp_path}/cache')
    assert command.main(argv) == 0
    computed, there = map(
        int, re.search(r'(\d+) answers computed, (\d+) already cached', capfd.readouterr().out).groups()
    )
    assert computed + there == 400 and there < 20  # a point may look the same in both epochs
    assert command.main(argv) == 0
    assert ': 0 answers computed, 400 already cached' in capfd.readouterr().out
