"""Parts of a data set: held-out points, fewer points, and data sets of which only the shapes are known."""

from __future__ import annotations

import dataclasses

import numpy as np

from kcd_jax.data._dataset import Dataset, Images, Normalization, Shapes, Split, seed_words

_TEST_SHARE = 10  # every tenth image is held out where a data set has no test images
# Of the permutation that subsets are taken from: one for all runs, so that a smaller subset lies within a larger one.
_SUBSET_SEED = 20_220_707


def by_index(data: Dataset) -> Dataset:
    """The same data with every split to be streamed, if only from memory."""

    def lazy(split: Split) -> Split:
        if split.streamed:
            return split
        return dataclasses.replace(split, images=Images(split.images, np.arange(len(split)), data.image_shape))

    return dataclasses.replace(data, train=lazy(data.train), test=lazy(data.test))


def hold_out(data: Dataset, fraction: float, seed: int) -> Dataset:
    """Moves round(fraction * N) training points, drawn by `seed`, to `validation`; both parts keep the data's order."""
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f'data.validation={fraction} is not a fraction of the training set; use 0 <= validation < 1')
    if fraction == 0.0:
        return data
    number = round(fraction * len(data.train))
    if not 0 < number < len(data.train):
        raise ValueError(
            f'data.validation={fraction} leaves {number} validation and {len(data.train) - number} training points of '
            f'{data.name}; choose a fraction with at least one point on each side'
        )
    words = seed_words(seed)
    random = np.random.RandomState(words[0] if len(words) == 1 else words)
    held = np.zeros(len(data.train), bool)
    held[random.permutation(len(held))[:number]] = True
    description = f'{data.description}; evaluated on {number:,} training points held out by seed {seed}, not on test'
    return dataclasses.replace(
        data, train=data.train.take(~held), validation=data.train.take(held), description=description
    )


def test_rows(labels: np.ndarray) -> np.ndarray:
    """bool[N]: the test set of data without one: a tenth of each class, at least one of two points, always the same."""
    order = np.random.RandomState(_SUBSET_SEED).permutation(len(labels))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        if len(members) > 1:
            held[members[: max(round(len(members) / _TEST_SHARE), 1)]] = True
    return held


def few(data: Dataset, num_points: int) -> Dataset:
    """Keeps `num_points` training points (0: all), the first ones of a fixed permutation, in the data's order."""
    if not 0 <= num_points <= len(data.train):
        raise ValueError(
            f'data.num_points={num_points}, but {data.name} has {len(data.train):,} training points; '
            'use a number up to that, or 0 for all'
        )
    if num_points in (0, len(data.train)):
        return data
    index = np.sort(np.random.RandomState(_SUBSET_SEED).permutation(len(data.train))[:num_points])
    description = f'{data.description}; the first {num_points:,} training points of a fixed permutation'
    return dataclasses.replace(data, train=data.train.take(index), description=description)


def part(data: Dataset, validation: float, seed: int, num_points: int) -> Dataset:
    """The part of a data set that a run uses. Arguments and errors as `load`."""
    taken = few(hold_out(data, validation, seed), num_points)
    parts = {'validation': validation, 'seed': seed, 'num_points': num_points}
    return dataclasses.replace(taken, source={**data.source, **parts}) if data.source else taken


def without_pixels(
    name: str, shapes: Shapes, *, validation: float = 0.0, seed: int = 0, num_points: int = 0
) -> Dataset:
    """A data set of the right counts and shapes whose images are all black and take no memory."""

    def split(count: int) -> Split:
        images = Images(np.zeros(1, np.uint8), np.zeros(count, np.int64), shapes.image_shape)
        return Split(images, (np.arange(count) % shapes.num_classes).astype(np.int32))

    def black(split: Split | None) -> Split | None:
        return (
            None
            if split is None
            else Split(np.broadcast_to(np.uint8(0), (len(split), *shapes.image_shape)), split.labels)
        )

    data = Dataset(
        name=name,
        train=split(shapes.train),
        test=split(shapes.test),
        class_names=tuple(map(str, range(shapes.num_classes))),
        num_classes=shapes.num_classes,
        image_shape=shapes.image_shape,
        normalization=shapes.normalization or Normalization((0.5,) * 3, (0.25,) * 3),
        description='shapes only, no pixels',
        source={'name': name, 'dir': '', 'stream': None},
        shape_only=True,
    )
    data = part(data, validation, seed, num_points)
    splits = {key: black(getattr(data, key)) for key in ('train', 'validation', 'test')}
    return dataclasses.replace(data, **splits)


def describe(data: Dataset) -> str:
    """One line: counts, classes, size."""
    height, width, _ = data.image_shape
    parts = [f'{len(data.train):,} train']
    if data.validation is not None:
        parts.append(f'{len(data.validation):,} validation')
    parts.append(f'{len(data.test):,} test')
    classes = f'{data.num_classes} classes' if data.num_classes else 'classes of the teacher'
    return f'{data.name}: {", ".join(parts)}, {classes}, {height}x{width}; {data.description}'
