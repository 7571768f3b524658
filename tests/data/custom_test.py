"""A user's own objects as data: read once, refused in one line, trained on from the command line's name."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.data import custom


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
def test_other_items_are_one_line(item, words: str):
    with pytest.raises(ValueError) as error:
        data.from_objects(Items([GOOD[0], item]), GOOD, name='mine')
    assert words in str(error.value) and '\n' not in str(error.value)


def test_other_names_are_one_line():
    for name, words in (
        ('python:', 'python:MODULE:FUNCTION'),
        ('python:no_such_module:make', 'PYTHONPATH'),
        (f'python:{custom.__name__}:no_such', 'no_such'),
        ('python:builtins:dict', 'returned a dict'),
    ):
        with pytest.raises(ValueError) as error:
            data.load(name)
        assert words in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(ValueError, match='no points'):
        data.from_objects(Items(), GOOD)
    with pytest.raises(ValueError, match='1 class names'):
        data.from_objects(GOOD, GOOD, class_names=('one',))
