"""A user's own objects as data: read once, refused in one line, trained on from the command line's name."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.data import python


class Shapes:
    """Bright squares on the left (0) or on the right (1)."""

    def __init__(self, number: int, seed: int, shape: tuple[int, ...] = (8, 8)):
        self.number, self.seed, self.shape = number, seed, shape

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, i: int) -> dict:
        random = np.random.RandomState([self.seed, i])
        image, label = random.randint(0, 64, self.shape).astype(np.uint8), int(random.randint(2))
        image[2:6, 4 * label : 4 * label + 4] += 128
        return {'image': image, 'label': label}


def make() -> tuple[Shapes, Shapes]:
    return Shapes(30, 0), Shapes(10, 1)


@pytest.mark.parametrize('shape', [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_objects_become_points(shape):
    memory = data.from_objects(Shapes(30, 0, shape), Shapes(10, 1, shape), class_names=('left', 'right'))
    streamed = data.from_objects(Shapes(30, 0, shape), Shapes(10, 1, shape), loading=data.Loading(stream=True))
    assert memory.image_shape == (8, 8, 3) and memory.num_classes == streamed.num_classes == 2
    assert streamed.train.streamed and not memory.train.streamed
    assert memory.normalization == streamed.normalization
    for i in (0, 17, 29):
        item = Shapes(30, 0, shape)[i]
        assert memory.train.labels[i] == streamed.train.labels[i] == item['label']
        expected = np.broadcast_to(item['image'].reshape(8, 8, -1), (8, 8, 3))
        np.testing.assert_array_equal(memory.train.images[i], expected)
        np.testing.assert_array_equal(streamed.train.images[i], expected)


def test_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[2]))
    name = f'python:{__name__}:make'
    loaded = data.load(name, num_points=20)
    assert len(loaded.train) == 20 and loaded.name == name
    assert '20 train, 10 test, 2 classes, 8x8' in data.describe(loaded)
    assert not data.needs_tensorflow(name)


class Items(list):
    """A list is an object with `__len__` and `__getitem__`."""


IMAGE = np.zeros((8, 8, 3), np.uint8)
GOOD = Items([{'image': IMAGE, 'label': 0}, {'image': IMAGE, 'label': 1}])


@pytest.mark.parametrize(
    ('item', 'words'),
    [
        ({'image': IMAGE.astype(np.float32), 'label': 0}, 'point 1 of train of mine is float32[8, 8, 3]'),
        ({'image': IMAGE[0, 0], 'label': 0}, 'uint8[3]'),
        ({'image': np.zeros((8, 9, 3), np.uint8), 'label': 0}, 'is 8x9, the first one 8x8'),
        ({'image': IMAGE, 'label': 0.5}, 'the label of point 1 of train of mine is 0.5'),
        ({'image': IMAGE, 'label': -1}, 'is -1'),
        ({'image': IMAGE}, 'is None'),
        ((IMAGE, 0), "point 1 of train of mine is no {'image', 'label'}"),
    ],
)
def test_invalid_items_raise_one_line(item, words: str):
    with pytest.raises(ValueError) as error:
        data.from_objects(Items([GOOD[0], item]), GOOD, name='mine')
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('code', 'words'),
    [
        ('def make():\n    raise RuntimeError("two\\nlines")\n', 'raised RuntimeError: two lines'),
        ('def make(needed):\n    pass\n', 'raised TypeError: make'),
        ('def make():\n    return 1, 2\n', 'raised TypeError: object of type'),
        ('def make(:\n', 'raised SyntaxError'),
        ('1 / 0\n', 'raised ZeroDivisionError'),
    ],
)
def test_what_a_users_code_raises_is_one_line(tmp_path, monkeypatch, code, words):
    (tmp_path / 'users_module.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'users_module', raising=False)
    with pytest.raises(ValueError) as error:
        data.load('python:users_module:make')
    sys.modules.pop('users_module', None)
    assert words in str(error.value) and '\n' not in str(error.value) and 'KCD_JAX_TRACEBACK' in str(error.value)


def test_invalid_names_raise_one_line():
    for name, words in (
        ('python:', 'python:MODULE:FUNCTION'),
        ('python:no_such_module:make', 'PYTHONPATH'),
        (f'python:{python.__name__}:no_such', 'no_such'),
        ('python:builtins:dict', 'returned a dict'),
    ):
        with pytest.raises(ValueError) as error:
            data.load(name)
        assert words in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ValueError, match='no points'):
        data.from_objects(Items(), GOOD)
    with pytest.raises(ValueError, match='1 class names'):
        data.from_objects(GOOD, GOOD, class_names=('one',))


IMAGES = np.random.RandomState(0).randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize('images', [IMAGES, IMAGES[..., 0], IMAGES[..., :1]])
@pytest.mark.parametrize('dtype', [np.int64, np.uint8, np.int32])
def test_arrays_become_points(images: np.ndarray, dtype: type):
    labels = LABELS.astype(dtype)
    loaded = data.from_arrays(images, labels, test=(images[:3], labels[:3]), name='mine')
    assert loaded.name == 'mine' and loaded.class_names == ('0', '1', '2') and loaded.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(loaded.train.images, np.broadcast_to(images.reshape(6, 8, 8, -1), (6, 8, 8, 3)))
    np.testing.assert_array_equal(loaded.train.labels, LABELS)
    assert loaded.train.labels.dtype == np.int32 and loaded.source == {}


def test_gaps_between_labels_need_class_names():
    loaded = data.from_arrays(IMAGES, LABELS * 2, test=(IMAGES, LABELS), classes=tuple('abcde'))
    assert loaded.num_classes == 5
    loaded = data.from_arrays(IMAGES, LABELS, test=(IMAGES, LABELS), classes=('caf\udce9', 'b', 'c'))
    assert loaded.class_names[0] == 'caf\\xe9'


@pytest.mark.parametrize(
    ('labels', 'words'),
    [
        ([1] * 6, 'the labels of train of arrays are all 1; at least two classes'),
        ([0, 1, 2, 0, 1, 3_000_001], 'go up to 3,000,001, but only 4 values occur'),
        ([0, 1, 2, 0, 1, 2**31], 'to 2,147,483,648; number the classes from 0'),
        ([0, 1, 2, 0, 1, 2**70], 'are object; give integers'),
        ([0, 1, 2, 0, 1, -1], 'go from -1 to'),
        ([0, 1, 3, 0, 1, 3], 'without gaps, as numpy.unique'),
        ([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], 'are floats; give integers'),
        (['a', 'b', 'c'] * 2, 'are strings; give integers'),
        ([True, False] * 3, 'are booleans; give integers'),
        ([[0], [1]] * 3, 'have the shape [6, 1]'),
        ([0, 1], 'has 6 images and 2 labels'),
        ([], 'have the shape [0]'),
    ],
)
def test_invalid_labels_raise_one_line(labels: list, words: str):
    with pytest.raises(ValueError) as error:
        data.from_arrays(IMAGES, labels, test=(IMAGES[:2], [0, 1]))
    assert words in str(error.value) and '\n' not in str(error.value)


def test_invalid_labels_of_objects_raise_one_line():
    for label, words in ((3_000_001, 'go up to 3,000,001'), (2**31, 'is 2147483648'), (0, 'are all 0')):
        items = Items([GOOD[0], {'image': IMAGE, 'label': label}])
        with pytest.raises(ValueError) as error:
            data.from_objects(items, items)
        assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'images': IMAGES / 255}, 'are float64[6, 8, 8, 3]; give uint8'),
        ({'images': IMAGES.transpose(0, 3, 1, 2)}, 'images.transpose(0, 2, 3, 1)'),
        ({'images': IMAGES[:0]}, 'has no points'),
        ({'test': IMAGES}, 'give test=(images, labels)'),
        ({'test': (IMAGES, LABELS + 1)}, 'go up to 3'),
        ({'test': (IMAGES[:, :4], LABELS)}, 'images of 8x8 in train and 4x8 in test'),
        ({'classes': ('a', 'b')}, 'has the label 2, but 2 class names'),
        ({'classes': ('a', 'b', 'b')}, 'not all different'),
        ({'classes': 'abc'}, 'give a sequence of strings'),
    ],
)
def test_invalid_arrays_raise_one_line(change: dict, words: str):
    arguments = {'images': IMAGES, 'labels': LABELS, 'test': (IMAGES, LABELS)} | change
    with pytest.raises(ValueError) as error:
        data.from_arrays(**arguments)
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('build', ['arrays', 'objects'])
def test_a_split_with_few_levels_is_reported(build: str, capsys: pytest.CaptureFixture[str]):
    flat = np.full_like(IMAGES, 100)
    flat[0, 0] = 115  # as 12 bits in 16, and fewer
    if build == 'arrays':
        data.from_arrays(IMAGES, LABELS, test=(flat, LABELS), name='mine')
    else:
        train, test = ([{'image': i, 'label': n} for i, n in zip(images, LABELS)] for images in (IMAGES, flat))
        data.from_objects(train, test, name='mine')
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith('mine: all pixels of the split test lie between 100 and 115 of 255')


def test_arrays_without_labels_or_without_a_test_set():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    labels = np.arange(40) % 2
    loaded = data.from_arrays(images, labels)
    assert (len(loaded.train), np.bincount(loaded.test.labels).tolist()) == (36, [2, 2])
    assert '4 of 40 images are held out' in loaded.description and loaded.labelled and loaded.scored
    flat = data.from_arrays(images)
    assert (len(flat.train), len(flat.test), flat.num_classes, flat.class_names) == (36, 4, 0, ())
    assert not flat.labelled and not flat.scored and not flat.train.labels.any()
    assert flat.with_classes(3, 'abc').identity == flat.identity  # the classes are the teacher's
    scored = data.from_arrays(images, test=(images[:4], labels[:4]), classes=['amber', 'blue', 'cyan'])
    assert (scored.labelled, scored.scored, scored.num_classes) == (False, True, 3)
    assert not data.from_arrays(images, labels, test=(images[:4], None)).scored
    assert data.from_arrays(images, classes=3).class_names == ('0', '1', '2')
    for arguments, words in (
        ({'labels': labels, 'test': [1, 2]}, 'test of arrays is a list'),
        ({'labels': np.arange(40)}, 'no class of two images'),
        ({'test': (images[:4], labels[:4]), 'classes': 1}, '1 class names'),
    ):
        with pytest.raises(ValueError) as error:
            data.from_arrays(images, **arguments)
        assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('given', [((0.5,) * 3, (0.0,) * 3), ((0.5,), (0.5,)), ((127.0,) * 3, (60.0,) * 3)])
def test_a_normalization_of_another_kind_is_refused(given):
    rows = np.arange(512).astype(np.uint8).reshape(8, 8, 8)
    with pytest.raises(ValueError, match=r'give three means and three positive deviations of pixels in \[0, 1\]'):
        data.from_arrays(rows, [0, 1] * 4, normalization=given)


def test_the_number_of_classes_may_be_of_numpy():
    rows = np.arange(512).astype(np.uint8).reshape(8, 8, 8)
    assert data.from_arrays(rows, [0, 1] * 4, classes=np.int64(3)).class_names == ('0', '1', '2')
    with pytest.raises(ValueError, match='give a sequence of strings'):
        data.from_arrays(rows, [0, 1] * 4, classes=2.5)
