"""The contract of every data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from kcd_jax import data
from kcd_jax.checks import require

SEEN = 16  # images that are looked at


class Case:
    """A data set as it is loaded by its name."""

    def __init__(self, name: str):
        self.name = name
        self.dataset = data.load(name)


def cases(module: ModuleType, name: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(title, what builds the case) of a file; it is loaded once."""
    del module
    yield f'data set {name}', functools.cache(lambda: Case(name))


def splits(case: Case) -> None:
    """Images are uint8 [H, W, 3] of one size, and labels are numbers of its classes."""
    dataset = case.dataset
    for name, split in (('train', dataset.train), ('test', dataset.test)):
        require(len(split) > 0 or name == 'test', 'there are no training points')
        images = np.asarray(split.images[:SEEN])
        shape = images.shape[1:] == tuple(dataset.image_shape) and images.dtype == np.uint8
        require(shape, f'{name} images are {images.dtype}{list(images.shape)}')
        labels = np.asarray(split.labels)
        require(len(labels) == len(split), f'{len(labels)} labels for {len(split)} {name} images')
        inside = len(labels) == 0 or (labels.min() >= 0 and labels.max() < dataset.num_classes)
        require(inside, f'a {name} label is not in 0 to {dataset.num_classes - 1}')


def classes(case: Case) -> None:
    """Classes have distinct names, and the normalisation three means and positive deviations."""
    dataset = case.dataset
    require(len(set(dataset.class_names)) == dataset.num_classes, 'two classes have one name, or one has none')
    mean, std = dataset.normalization
    require(len(mean) == len(std) == 3 and min(std) > 0, f'the normalisation is {mean}, {std}')


def order(case: Case) -> None:
    """A second `load` returns the same points in the same order."""
    again = data.load(case.name)
    require(again.identity == case.dataset.identity, 'it does not: sort what is listed, and seed what is drawn')


CHECKS: tuple[Callable[[Case], None], ...] = (splits, classes, order)
