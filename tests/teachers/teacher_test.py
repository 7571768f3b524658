"""Teachers: to a file and back, from PyTorch, and what is refused."""

from __future__ import annotations

import hashlib

import jax
import numpy as np
import pytest

from kcd_jax import data, networks
from kcd_jax.teachers import teacher, torch_weights
from kcd_jax.trees import leaf_paths

NAME, CLASSES, SHAPE = 'resnet8x0_25', 5, (8, 8, 3)
SIZES = {'num_classes': CLASSES, 'image_shape': SHAPE}
CARD = {'network': NAME, 'num_classes': CLASSES, 'image_shape': SHAPE, 'accuracy': 0.5}


@pytest.fixture(scope='module')
def network():
    return networks.get(NAME)(CLASSES)


@pytest.fixture(scope='module')
def variables(network):
    return network.init(jax.random.key(0), SHAPE)


@pytest.fixture(scope='module')
def known(network, variables):
    """A data set whose labels are what the network says, in parts that do not fill the evaluation's batches."""
    images = np.random.default_rng(0).integers(0, 256, (47, *SHAPE), np.uint8)
    outputs, _ = jax.jit(network.apply, static_argnums=2)(variables, images.astype(np.float32) / 255, False)
    labels = np.array(np.argmax(np.asarray(outputs.logits), -1), np.int32)
    split = data.Split(images, labels)
    usual = data.Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return data.Dataset('known', split, split, tuple('abcde'), CLASSES, SHAPE, usual, 'made by a test')


@pytest.fixture
def saved(tmp_path, variables):
    path = tmp_path / teacher.FILE
    teacher.save(path, variables, CARD)
    return path


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_teacher_comes_back_to_the_bit(saved, variables):
    for source in (saved, saved.parent):  # the file, or the run's folder
        for name in (NAME, ''):
            restored, found, card = teacher.restore(name, source, **SIZES)
            same(found, variables)
            assert restored.name == NAME and card == {**CARD, 'image_shape': list(SHAPE)}
    assert [path.name for path in saved.parent.iterdir()] == [teacher.FILE]  # nothing partial is left


def test_a_pytorch_checkpoint_is_a_teacher(tmp_path, variables):
    path = tmp_path / 'public.pth'
    torch_weights.write(path, variables)
    _, found, card = teacher.restore(NAME, path, **SIZES)
    same(found, variables)
    assert card['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest() and card['source'] == 'public.pth'
    assert card['normalization']['mean'] == [0.5071, 0.4867, 0.4408]
    _, found, _ = teacher.restore(NAME, path, **SIZES, normalization='half')
    np.testing.assert_array_equal(found['constants']['std'], np.full(3, 0.5, np.float32))
    with pytest.raises(ValueError, match='does not say which network it is; set teacher.name to one of'):
        teacher.restore('', path, **SIZES)


def test_another_network_or_class_count_is_refused(saved, tmp_path, variables):
    with pytest.raises(ValueError, match=f'holds a {NAME}, not a resnet8; set teacher.name={NAME}'):
        teacher.restore('resnet8', saved, **SIZES)
    with pytest.raises(ValueError, match='knows 5 classes and the data has 10'):
        teacher.restore(NAME, saved, num_classes=10, image_shape=SHAPE)
    torch_weights.write(tmp_path / 'public.pth', variables)
    with pytest.raises(ValueError, match=r'public.pth: these are not the weights of resnet8x0_25: 2 of another shape'):
        teacher.restore(NAME, tmp_path / 'public.pth', num_classes=10, image_shape=SHAPE)


def test_damaged_files_are_one_line(saved, tmp_path, variables):
    whole = saved.read_bytes()
    for data_ in (whole[: len(whole) // 2], whole[:4], b'', b'\xff' * 64):
        saved.write_bytes(data_)
        with pytest.raises(ValueError, match='cannot be read as a teacher') as error:
            teacher.restore(NAME, saved, **SIZES)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='there is no teacher at'):
        teacher.restore(NAME, tmp_path / 'absent.safetensors', **SIZES)
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    saved.write_bytes(flipped)
    with pytest.raises(ValueError, match='it does not agree with its digest'):
        teacher.restore(NAME, saved, **SIZES)
    assert not teacher.is_whole(saved)
    broken = jax.tree.map(np.array, variables)
    broken['params']['fc']['bias'][0] = np.nan
    teacher.save(saved, broken, CARD)
    with pytest.raises(ValueError, match='not finite, first in params/fc/bias'):
        teacher.restore(NAME, saved, **SIZES)
    del broken['params']['fc']['bias']
    teacher.save(saved, broken, CARD)
    with pytest.raises(ValueError, match='1 tensors differ, the first is params/fc/bias'):
        teacher.restore(NAME, saved, **SIZES)


@pytest.mark.parametrize(('classes', 'refused', 'taken'), [(100, 0.0199, 0.02), (10, 0.19, 0.2), (2, 0.74, 0.76)])
def test_a_teacher_near_chance_is_refused(classes, refused, taken):
    teacher.refuse_near_chance(taken, classes)
    for accuracy in (refused, float('nan')):
        with pytest.raises(ValueError, match='normalization, the order of its labels and its data set'):
            teacher.refuse_near_chance(accuracy, classes)


def test_a_teacher_of_a_few_steps_is_a_test_of_the_program():
    says = teacher.refuse_near_chance(0.001, 1000, steps=8)
    assert says.startswith('the teacher is right on 0.10 %') and 'after 8 steps' in says
    assert teacher.refuse_near_chance(0.5, 1000, steps=8) == ''
    with pytest.raises(ValueError, match='train it longer'):
        teacher.refuse_near_chance(0.001, 1000, steps=teacher.SMOKE_STEPS)


def test_every_test_image_counts_once(network, variables, known):
    images, labels = known.test.images, known.test.labels.copy()
    assert teacher.accuracy(network, variables, images, labels, batch=20) == 1.0
    labels[-3:] += 1
    assert teacher.accuracy(network, variables, images, labels, batch=20) == pytest.approx(44 / 47)
    assert teacher.accuracy(network, variables, images[:7], labels[:7]) == 1.0


def test_the_command_line_imports_and_exports(tmp_path, variables, known, monkeypatch, capsys):
    monkeypatch.setattr(data, 'load', lambda name, folder: known)
    public, out, back = (str(tmp_path / name) for name in ('public.pth', 'teacher.safetensors', 'back.pth'))
    torch_weights.write(public, variables)
    assert teacher.main(['import', public, f'--network={NAME}', '--dataset=known', f'--out={out}']) == 0
    said = capsys.readouterr().out
    assert 'test accuracy on known: 100.00 %' in said and hashlib.sha256(open(public, 'rb').read()).hexdigest() in said
    _, found, card = teacher.restore(NAME, out, **SIZES)
    same(found, variables)
    assert card['accuracy'] == 1.0 and card['dataset'] == 'known' and card['source'] == 'public.pth'
    assert teacher.main(['export', out, f'--out={back}']) == 0
    assert 'mean' in capsys.readouterr().out
    assert open(back, 'rb').read() == open(public, 'rb').read()


def test_the_command_line_refuses_in_one_line(tmp_path, variables, known, monkeypatch, capsys):
    wrong = data.Split(known.test.images, (known.test.labels + 1) % CLASSES)
    monkeypatch.setattr(data, 'load', lambda name, folder: data.Dataset(**{**vars(known), 'test': wrong}))
    public, out = tmp_path / 'public.pth', tmp_path / 'teacher.safetensors'
    torch_weights.write(public, variables)
    command = ['import', str(public), f'--network={NAME}', '--dataset=known', f'--out={out}']
    assert teacher.main(command) == 1
    assert capsys.readouterr().err.startswith('error: the teacher is right on 0.00 % of the test images')
    assert not out.exists()  # a teacher that is refused is not written
    assert teacher.main([*command, '--normalization=cifar']) == 1
    assert 'unknown normalization' in capsys.readouterr().err
    assert teacher.main(['export', str(tmp_path / 'absent'), '--out=x.pth']) == 1
    assert capsys.readouterr().err.count('\n') == 1


def test_leaf_names_of_a_file_are_the_paths_of_the_variables(saved, variables):
    tensors, _ = teacher.load(saved)
    assert set(tensors) == set(leaf_paths(variables))
