"""What a dataset is in memory, and how parts of it are taken by seed."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# The order from which few-shot subsets are taken: one for all runs, so that a smaller subset lies within a larger one.
_SUBSET_SEED = 20_220_707

_MEMORY_SHARE = 0.5  # of the machine's memory that the images may take
_AUTO_SHARE = 0.25  # of it, and of a device's, that they take before they are streamed of themselves
_threads = threading.local()  # a generator a thread: seeding one takes a tenth of the time of making one


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Images:
    """u8[N, H, W, 3] that is read from `source` when it is asked for; to its users an array that is slow to index.

    Attributes:
      source: `source[i]` -> u8[H, W, 3]. One with `crop(i, random)` -> u8[H, W, 3] draws a random resized crop out of
        the original itself. It is sent to worker processes, so it can be pickled.
      index: i64[N], the points of `source`, in the order of this split.
      image_shape: (H, W, 3).
    """

    source: Any
    index: np.ndarray
    image_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.index), *self.image_shape)

    @property
    def draws_crops(self) -> bool:
        """Whether `training` cuts at random, at the resolution of the file; else augmentation is the device's."""
        return hasattr(self.source, 'crop')

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: Any) -> np.ndarray:
        """The image of one point, or those of a slice, of i64[M] or of bool[N]."""
        points = self.index[item]
        if np.ndim(points) == 0:
            return self.source[int(points)]
        return (
            np.stack([self.source[int(point)] for point in points])
            if len(points)
            else np.zeros((0, *self.image_shape), np.uint8)
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self[:].astype(dtype or np.uint8, copy=False)

    def take(self, index: np.ndarray) -> Images:
        """The points at `index` (i64[M] or bool[N]), in that order; nothing is read."""
        return dataclasses.replace(self, index=self.index[index])

    def training(self, point: int, seed: int, epoch: int) -> np.ndarray:
        """What is trained on, a pure function of its arguments: u8[H, W, 3]."""
        if not self.draws_crops:
            return self[point]
        if not hasattr(_threads, 'random'):
            _threads.random = np.random.RandomState()
        _threads.random.seed([seed % 2**32, epoch, point])  # its streams never change (NEP 19)
        return self.source.crop(int(self.index[point]), _threads.random)


@dataclasses.dataclass(frozen=True)
class Split:
    """Points in one fixed order.

    Attributes:
      images: u8[N, H, W, 3] in memory, perhaps read-only (mapped from a cache); or `Images`, to be streamed.
      labels: i32[N], 0 <= label < classes.
      ids: str[N], the source's own names of the points, or None where it has none.
    """

    images: np.ndarray | Images
    labels: np.ndarray
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def streamed(self) -> bool:
        """Whether the images are read by index, instead of lying in memory."""
        return isinstance(self.images, Images)

    @property
    def draws_crops(self) -> bool:
        """Whether a random resized crop is cut where the images are read."""
        return self.streamed and self.images.draws_crops

    def take(self, index: np.ndarray) -> Split:
        """The points at `index` (i64[M] or bool[N]), in that order."""
        images = self.images.take(index) if self.streamed else self.images[index]
        return Split(images, self.labels[index], None if self.ids is None else self.ids[index])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image classification data set, in memory or to be streamed.

    Attributes:
      name: as given to `load`.
      train, test: the points to learn from and to evaluate on.
      class_names: one a class, in label order.
      num_classes: K. image_shape: (H, W, 3).
      normalization: (mean, std) of the data in [0, 1], a network's default constants. It belongs to the whole training
        split and does not change with `validation` or `num_points`.
      description: a line for the user.
      validation: the held-out part of the training split, or None.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    num_classes: int
    image_shape: tuple[int, int, int]
    normalization: Normalization
    description: str
    validation: Split | None = None


class ChannelCounts:
    """How often each of the 256 levels of each channel occurs: exact mean and deviation of any number of images."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)

    def add(self, images: np.ndarray) -> None:
        """Counts the pixels of u8[..., 3]."""
        for channel, count in enumerate(self.counts):
            count += np.bincount(images[..., channel].reshape(-1), minlength=256)

    def normalization(self) -> Normalization:
        """Mean and standard deviation per channel in [0, 1], four decimals."""
        levels = np.arange(256) / 255.0
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
        # A constant channel would divide by zero; 1 leaves it as it is.
        return Normalization(tuple(round(float(x), 4) for x in mean), tuple(round(float(x), 4) or 1.0 for x in std))


def measure(images: np.ndarray) -> Normalization:
    """Mean and standard deviation of u8[N, H, W, 3] per channel in [0, 1], exact integer sums, four decimals."""
    counts = ChannelCounts()
    for first in range(0, len(images), 4096):
        counts.add(images[first : first + 4096])
    return counts.normalization()


@dataclasses.dataclass(frozen=True)
class Loading:
    """How points are to be had.

    Attributes:
      stream: True reads them by index while they are trained on, False keeps them in memory, None decides by size.
      memory: bytes of a device; None: not asked for.
      area: bounds of a random crop's share of the image, () for none. Where images that have their own sizes are
        streamed, whoever reads them cuts at random out of the original; elsewhere that is left to the devices. Either
        way such images are evaluated by the middle 224 of 256.
    """

    stream: bool | None = None
    memory: int | None = None
    area: tuple[float, ...] = ()

    def streams(self, size: int) -> bool:
        """Whether images of `size` bytes are streamed."""
        if self.stream is not None:
            return self.stream
        memory = machine_memory()
        return size > _AUTO_SHARE * (memory if self.memory is None else min(memory, self.memory))


BY_SIZE = Loading()


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The items, with a bar on a terminal once it takes more than a second."""
    from tqdm import tqdm

    return tqdm(items, desc=what, total=total, unit=' images', delay=1.0, disable=None, leave=False)


def check_memory(what: str, size: int) -> None:
    """Refuses images of `size` bytes that would take more than half of the machine's memory."""
    memory = machine_memory()
    if size > _MEMORY_SHARE * memory:
        raise ValueError(
            f'{what} takes at least {size / 2**30:,.1f} GiB in memory, this machine has {memory / 2**30:,.1f}; '
            'stream it (data.stream=true), or use smaller images or a smaller set'
        )


def by_index(data: Dataset) -> Dataset:
    """The same data with every split to be streamed, if only from memory."""

    def lazy(split: Split) -> Split:
        if split.streamed:
            return split
        source = Images(split.images, np.arange(len(split)), split.images.shape[1:])
        return dataclasses.replace(split, images=source)

    return dataclasses.replace(data, train=lazy(data.train), test=lazy(data.test))


def hold_out(data: Dataset, fraction: float, seed: int) -> Dataset:
    """Moves round(fraction * N) training points, drawn by `seed`, to `validation`; both parts keep the data's order.

    Raises:
      ValueError: fraction outside [0, 1), or one of the parts would be empty.
    """
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
    held = np.zeros(len(data.train), bool)
    held[np.random.RandomState(seed % 2**32).permutation(len(held))[:number]] = True
    description = f'{data.description}; evaluated on {number:,} training points held out by seed {seed}, not on test'
    return dataclasses.replace(
        data, train=data.train.take(~held), validation=data.train.take(held), description=description
    )


def few(data: Dataset, num_points: int) -> Dataset:
    """Keeps `num_points` training points (0: all), the same for every seed, in the data's order.

    They are the first ones of one fixed permutation, so a smaller subset lies within a larger one.

    Raises:
      ValueError: fewer points than that.
    """
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


def describe(data: Dataset) -> str:
    """One line: counts, classes, size."""
    height, width, _ = data.image_shape
    parts = [f'{len(data.train):,} train']
    if data.validation is not None:
        parts.append(f'{len(data.validation):,} validation')
    parts.append(f'{len(data.test):,} test')
    return f'{data.name}: {", ".join(parts)}, {data.num_classes} classes, {height}x{width}; {data.description}'
