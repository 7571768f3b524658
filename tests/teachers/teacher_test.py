"""Teachers: to a file and back, from PyTorch, compared with the data, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import data, networks
from kcd_jax.teachers import Teacher, chance, teacher, torch_weights, weights_file
from kcd_jax.trees import leaf_paths

NAME, CLASSES, SHAPE = 'resnet8x0_25', 5, (8, 8, 3)
SIZES = {'num_classes': CLASSES, 'image_shape': SHAPE}
CARD = {'network': NAME, 'num_classes': CLASSES, 'image_shape': SHAPE, 'accuracy': 0.5}
NAMES = tuple('abcde')


@pytest.fixture(scope='module')
def network():
    return networks.get(NAME)(CLASSES)


@pytest.fixture(scope='module')
def variables(network):
    return network.init(jax.random.key(0), SHAPE)


def dataset(names=NAMES, image_shape=SHAPE, normalization=((0.5,) * 3, (0.25,) * 3), name='known'):
    split = data.Split(np.zeros((3, *image_shape), np.uint8), np.zeros(3, np.int32))
    pixels = data.Normalization(*normalization)
    return data.Dataset(name, split, split, tuple(names), len(names), image_shape, pixels, 'made by a test')


@pytest.fixture
def saved(tmp_path, variables):
    path = tmp_path / teacher.FILE
    teacher.save(path, variables, CARD)
    return path


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_teacher_comes_back_bit_for_bit(saved, variables):
    for source in (saved, saved.parent):  # the file, or the run's folder
        for name in (NAME, ''):
            restored = Teacher.restore(source, name)
            same(restored.variables, variables)
            assert restored.network.name == NAME and restored.source == str(source)
            pixels = {'mean': [0.5071, 0.4867, 0.4408], 'std': [0.2675, 0.2565, 0.2761]}
            assert restored.card == {**CARD, 'image_shape': list(SHAPE), 'normalization': pixels}
    assert [path.name for path in saved.parent.iterdir()] == [teacher.FILE]  # nothing partial is left
    restored.save(saved.parent / 'again.safetensors')
    assert Teacher.restore(saved.parent / 'again.safetensors').card == restored.card


def test_it_is_printed_as_one_line(saved):
    assert repr(Teacher.restore(saved)) == f'Teacher({NAME}, from {saved})'


def test_a_home_folder_is_expanded(saved, monkeypatch):
    monkeypatch.setenv('HOME', str(saved.parent.parent))
    assert Teacher.restore(f'~/{saved.parent.name}').network.name == NAME


def test_identity_follows_the_content(network, variables):
    def identity(variables=variables, name=NAME, **card):
        return Teacher(dataclasses.replace(network, name=name), variables, {**CARD, **card}).identity

    flipped = jax.tree.map(np.array, variables)
    flipped['params']['fc']['bias'][0] += 1
    other_pixels = {**variables, 'constants': {**variables['constants'], 'mean': jnp.zeros(3)}}
    changed = [
        identity(flipped),
        identity(other_pixels),
        identity(name='resnet8'),
        identity(class_names=NAMES),
        identity(class_names=NAMES[::-1]),
    ]
    assert len({identity(), *changed}) == 6 and len(identity()) == 64
    assert identity(accuracy=0.9) == identity() == identity(jax.device_get(variables))
    assert identity(class_names=list(NAMES)) == identity(class_names=NAMES)


def test_a_pytorch_checkpoint_is_a_teacher(tmp_path, variables):
    path = tmp_path / 'public.pth'
    torch_weights.write(path, variables)
    restored = Teacher.restore(path, NAME, image_shape=SHAPE)  # the number of classes is the classifier's
    same(restored.variables, variables)
    assert restored.card['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert restored.card['source'] == 'public.pth' and restored.card['num_classes'] == CLASSES
    assert restored.card['normalization']['mean'] == [0.5071, 0.4867, 0.4408]
    half = Teacher.restore(path, NAME, **SIZES, normalization='half')
    np.testing.assert_array_equal(half.variables['constants']['std'], np.full(3, 0.5, np.float32))
    with pytest.raises(ValueError, match='does not say which network it is; set teacher.name to one of'):
        Teacher.restore(path, **SIZES)
    with pytest.raises(ValueError, match='does not say its image size; give num_classes and image_shape'):
        Teacher.restore(path, NAME)


@pytest.mark.parametrize('name', ['student.pth', 'student.safetensors'])
def test_an_exported_teacher_keeps_its_card(name, tmp_path, network):
    ours = networks.get(NAME)(CLASSES, normalization=((0.1, 0.2, 1 / 3), (0.4, 0.5, 0.6)))
    variables = ours.init(jax.random.key(1), SHAPE)
    weights_file.export(tmp_path / name, variables, {**CARD, 'class_names': NAMES})
    restored = Teacher.restore(tmp_path / name)
    same(restored.variables, variables)  # the constants as well, bit for bit
    assert restored.card['class_names'] == list(NAMES) and restored.card['accuracy'] == 0.5
    assert 'normalization_assumed' not in restored.card and restored.fits(dataset()) == []
    with pytest.raises(ValueError, match=r'was trained with mean \(0.1, .* leave that out'):
        Teacher.restore(tmp_path / name, normalization='half')


def test_a_normalization_that_nobody_says_is_asked_for(tmp_path, variables):
    torch_weights.write(tmp_path / 'public.pth', variables)
    with pytest.raises(ValueError, match='known has its own; name them by teacher.normalization .*: cifar100, '):
        Teacher.restore(tmp_path / 'public.pth', NAME, **SIZES).fits(dataset())
    public = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # CIFAR-10's: any of the known sets
    _, line = Teacher.restore(tmp_path / 'public.pth', NAME, **SIZES).fits(dataset(normalization=public))
    assert 'the usual one is used: mean [0.5071' in line
    chosen = Teacher.restore(tmp_path / 'public.pth', NAME, **SIZES, normalization='0.5,0.5,0.5,0.25,0.25,0.25')
    assert len(chosen.fits(dataset())) == 1  # only the classes' names are not known
    assert chosen.card['normalization'] == {'mean': [0.5] * 3, 'std': [0.25] * 3}


def test_a_home_folder_that_does_not_exist_is_one_line(variables):
    told = '~nobody_here/x names a home folder that does not exist'
    with pytest.raises(ValueError, match=told):
        Teacher.restore('~nobody_here/x')
    for write in (teacher.save, weights_file.export):
        with pytest.raises(ValueError, match=told):
            write('~nobody_here/x', variables, CARD)


def test_another_network_class_count_or_size_is_refused(saved, tmp_path, variables):
    with pytest.raises(ValueError, match=f'holds a {NAME}, not a resnet8; set teacher.name={NAME}'):
        Teacher.restore(saved, 'resnet8')
    with pytest.raises(ValueError, match='knows 5 classes and the data has 10'):
        Teacher.restore(saved, NAME, num_classes=10)
    with pytest.raises(ValueError, match='trained on images of 8x8 pixels and the data has 16x16 pixels'):
        Teacher.restore(saved, NAME, image_shape=(16, 16, 3))
    torch_weights.write(tmp_path / 'public.pth', variables)
    with pytest.raises(ValueError, match=r'public.pth: these are not the weights of resnet8x0_25: 2 of another shape'):
        Teacher.restore(tmp_path / 'public.pth', NAME, 10, SHAPE)


def test_the_data_is_compared(network, variables):
    def fits(data_, **card):
        return Teacher(network, variables, {**CARD, 'class_names': NAMES, **card}).fits(data_)

    assert fits(dataset()) == []
    assert fits(dataset(), dataset='known') == []
    assert fits(dataset(), dataset='other') == ['the teacher resnet8x0_25 was trained on other, and this is known']
    (line,) = fits(dataset(), class_names=None)
    assert 'does not name its classes' in line
    with pytest.raises(ValueError, match='knows 5 classes and known has 6'):
        fits(dataset('abcdef'))
    with pytest.raises(ValueError, match="same classes in another order: class 3 is 'd' there and 'e' in the data, "):
        fits(dataset('abced'))
    with pytest.raises(ValueError, match=r'and 2 more\); its logits would teach the wrong classes. Order the data'):
        fits(dataset('bcdea'))
    with pytest.raises(
        ValueError, match="other classes: class 4 is 'e' there and 'x' in the data. .* --rename_classes"
    ):
        fits(dataset('abcdx'))
    with pytest.raises(ValueError, match='images of 8x8 pixels and known has 16x8 pixels'):
        fits(dataset(image_shape=(16, 8, 3)))
    # One file system composes letters, another does not: 'é' is one character or two.
    assert fits(dataset(['e\u0301', *'bcde']), class_names=['\u00e9', *'bcde']) == []


def test_every_member_of_an_ensemble_is_compared_with_the_data(network, variables):
    def member(**card):
        return Teacher(network, variables, {**CARD, 'class_names': NAMES, **card})

    def fits(data_, **card):  # in an ensemble of ensembles
        inner = Teacher.ensemble([member(), member(**card)])
        return Teacher.ensemble([inner, member()]).fits(data_)

    assert all('is the mean of' in line for line in fits(dataset()))
    assert len(fits(dataset())) == 2
    assert 'the teacher resnet8x0_25 was trained on other, and this is known' in fits(dataset(), dataset='other')
    assert any('the teacher resnet8x0_25 does not name its classes' in line for line in fits(dataset(), class_names=()))
    with pytest.raises(ValueError, match='trained on images of 16x16 pixels and known has 8x8 pixels'):
        fits(dataset(), image_shape=(16, 16, 3))
    assumed = {'normalization_assumed': True, 'normalization': {'mean': [0.5] * 3, 'std': [0.25] * 3}}
    with pytest.raises(ValueError, match='the teacher resnet8x0_25 does not say with which mean'):
        fits(dataset(), **assumed)
    public = dataset(normalization=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    assert any('the usual one is used' in line for line in fits(public, **assumed))


def test_damaged_files_are_one_line(saved, tmp_path, variables):
    whole = saved.read_bytes()
    for data_ in (whole[: len(whole) // 2], whole[:4], b'', b'\xff' * 64, b'<!doctype html>', b'\x89HDF\r\n\x1a\n'):
        saved.write_bytes(data_)
        with pytest.raises(ValueError, match='cannot be read as a teacher') as error:
            Teacher.restore(saved, NAME)
        assert '\n' not in str(error.value)
        assert not teacher.is_whole(saved)
    with pytest.raises(ValueError, match='there is no teacher at'):
        Teacher.restore(tmp_path / 'absent.safetensors')
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    saved.write_bytes(flipped)
    with pytest.raises(ValueError, match='it does not agree with its digest'):
        Teacher.restore(saved)
    assert not teacher.is_whole(saved)
    broken = jax.tree.map(np.array, variables)
    broken['params']['fc']['bias'][0] = np.nan
    teacher.save(saved, broken, CARD)
    with pytest.raises(ValueError, match='not finite, first in params/fc/bias'):
        Teacher.restore(saved)
    del broken['params']['fc']['bias']
    teacher.save(saved, broken, CARD)
    with pytest.raises(ValueError, match='1 tensors differ, the first is params/fc/bias'):
        Teacher.restore(saved)


@pytest.mark.parametrize(('classes', 'refused', 'taken'), [(100, 0.0199, 0.02), (10, 0.19, 0.2), (2, 0.74, 0.76)])
def test_a_teacher_near_chance_is_refused(classes, refused, taken):
    assert teacher.refuse_near_chance(taken, classes) == ''
    for accuracy in (refused, float('nan')):
        with pytest.raises(ValueError, match='normalization, the order of its labels and its data set'):
            teacher.refuse_near_chance(accuracy, classes)


@pytest.mark.parametrize(
    ('classes', 'images', 'refused', 'taken'),
    # Guessing 50 of 100 has a deviation of 5, 500 of 1,000 one of 16, 1,000 of 10,000 one of 30.
    [(2, 100, 0.6, 0.67), (2, 1000, 0.54, 0.56), (10, 10_000, 0.107, 0.111), (100, 10_000, 0.0125, 0.0135)],
)
def test_many_images_tell_a_weak_teacher_from_guessing(classes, images, refused, taken):
    assert teacher.refuse_near_chance(taken, classes, num_images=images) == ''
    for accuracy in (refused, 0.9 / classes, float('nan')):
        with pytest.raises(ValueError, match=f'of the {images:,} test images, and chance is'):
            teacher.refuse_near_chance(accuracy, classes, num_images=images)
        line = teacher.refuse_near_chance(accuracy, classes, num_images=images, allow_weak=True)
        assert 'teaching.allow_weak' in line


def test_the_tail_of_guessing_by_counting():
    assert chance._guessing(3, 4, 0.5) == pytest.approx(5 / 16)  # 4 of 16 outcomes have three hits, 1 has four
    assert chance._guessing(0, 7, 0.1) == pytest.approx(1.0)
    assert chance._guessing(50_000, 50_000, 0.001) == 0.0


def test_a_teacher_of_a_few_steps_is_a_test_of_the_program():
    says = teacher.refuse_near_chance(0.001, 1000, steps=8)
    assert says.startswith('the teacher is right on 0.10 %') and 'after 8 steps' in says
    assert teacher.refuse_near_chance(0.5, 1000, steps=8) == ''
    with pytest.raises(ValueError, match='train it longer'):
        teacher.refuse_near_chance(0.001, 1000, steps=chance.SMOKE_STEPS)


def test_every_test_image_counts_once(network, variables):
    images = np.random.default_rng(0).integers(0, 256, (47, *SHAPE), np.uint8)
    outputs, _ = jax.jit(network.apply, static_argnums=2)(variables, images.astype(np.float32) / 255, False)
    labels = np.array(np.argmax(np.asarray(outputs.logits), -1), np.int32)
    assert teacher.accuracy(network, variables, images, labels, batch=20) == 1.0
    assert teacher.accuracy(network, variables, images[:7], labels[:7]) == 1.0
    labels[-3:] += 1
    assert teacher.accuracy(network, variables, images, labels, batch=20) == pytest.approx(44 / 47)


def test_leaf_names_of_a_file_are_the_paths_of_the_variables(saved, variables):
    tensors, _ = teacher.load(saved)
    assert set(tensors) == set(leaf_paths(variables))
