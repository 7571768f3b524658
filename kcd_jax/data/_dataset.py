"""What a data set is: images and labels of each split, in memory or read by index, and what identifies them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_MEMORY_SHARE = 0.5  # fraction of the machine's memory that images may take
_STREAM_SHARE = 0.25  # fraction of the machine's or a device's memory above which images are streamed
_NARROW = 32  # levels of 255: pictures of 12 bits in files of 16 span 16
_BLOCK = 256  # images per step of a pass over all pixels
_threads = threading.local()  # one generator per thread: seeding takes a tenth of the time of making one


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Images:
    """u8[N, H, W, 3] read from `source` on demand; to its users, an array that is slow to index.

    Attributes:
      source: `source[i]` -> u8[H, W, 3], picklable. Optional are `crop(i, random)` -> u8[H, W, 3], a random resized
        crop of the original, and `content`, a string that identifies all pixels; without it `digest` reads them.
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
        """Whether `training` crops at random on the host, at the resolution of the file."""
        return hasattr(self.source, 'crop')

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 that identifies the images and their order."""
        content = getattr(self.source, 'content', '')
        if not content:
            return _digest_of_pixels(self)
        return hashlib.sha256(content.encode() + np.ascontiguousarray(self.index, np.int64).tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: Any) -> np.ndarray:
        """The image of one point, or those of a slice, of i64[M] or of bool[N]."""
        points = self.index[item]
        if np.ndim(points) == 0:
            return self.source[int(points)]
        images = [self.source[int(point)] for point in points]
        return np.array(images, np.uint8).reshape(-1, *self.image_shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self[:].astype(dtype or np.uint8, copy=False)

    def take(self, index: np.ndarray) -> Images:
        """The points at `index` (i64[M] or bool[N]), in that order; nothing is read."""
        return dataclasses.replace(self, index=self.index[index])

    def training(self, point: int, seed: int, epoch: int, partner: int | None = None) -> np.ndarray:
        """The view of a point in training, a pure function of the arguments: u8[H, W, 3].

        Args:
          point: decides, with `seed` and `epoch`, which random crop is drawn, if any.
          seed: of the run.
          epoch: from 0.
          partner: the point that is mixed into `point`, seen through the same crop; None: `point` itself.
        """
        shown = point if partner is None else partner
        if not self.draws_crops:
            return self[shown]
        if not hasattr(_threads, 'random'):
            _threads.random = np.random.RandomState()
        _threads.random.seed([*seed_words(seed), epoch, point])  # NumPy guarantees these streams (NEP 19)
        return self.source.crop(int(self.index[shown]), _threads.random)


@dataclasses.dataclass(frozen=True)
class Split:
    """Points in one fixed order.

    Attributes:
      images: u8[N, H, W, 3] in memory, possibly read-only; or `Images`, to be streamed.
      labels: i32[N], 0 <= label < classes; all 0 where the points have none (`Dataset.labelled`, `test_labelled`).
      ids: str[N], the source's own names of the points, or None where it has none.
    """

    images: np.ndarray | Images
    labels: np.ndarray
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def streamed(self) -> bool:
        """Whether the images are read by index."""
        return isinstance(self.images, Images)

    @property
    def draws_crops(self) -> bool:
        """Whether random resized crops are cut on the host, where the images are read."""
        return self.streamed and self.images.draws_crops

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """{'images', 'labels'}: SHA-256 of each, in order."""
        images = self.images.digest if self.streamed else _digest_of_pixels(self.images)
        labels = hashlib.sha256(np.ascontiguousarray(self.labels, np.int32).tobytes()).hexdigest()
        return {'images': images, 'labels': labels}

    def take(self, index: np.ndarray) -> Split:
        """The points at `index` (i64[M] or bool[N]), in that order."""
        images = self.images.take(index) if self.streamed else self.images[index]
        return Split(images, self.labels[index], None if self.ids is None else self.ids[index])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image classification data set, in memory or to be streamed.

    Attributes:
      class_names: in label order; () where no point has a label and nobody named the classes.
      num_classes: K; 0 where the classes are those of the teacher, which the run fills in.
      image_shape: (H, W, 3).
      normalization: of the whole training split, whatever `validation` and `num_points` are.
      description: one line for the user.
      validation: the held-out part of the training split, or None.
      source: the arguments of `load` that give this data set again; empty for one built from objects.
      shape_only: whether the pixels are placeholders (`shapes_of`), so that it can be counted but not trained on.
      labelled: whether the training points have labels.
      test_labelled: whether the test images have.
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
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shape_only: bool = False
    labelled: bool = True
    test_labelled: bool = True

    def __post_init__(self) -> None:
        mean, std = (np.asarray(part, np.float64) for part in self.normalization)
        if mean.shape != (3,) or std.shape != (3,) or not ((std > 0) & np.isfinite(mean + std)).all() or mean.max() > 1:
            raise ValueError(
                f'the normalization of {self.name} is {self.normalization}; give three means and three positive '
                'deviations of pixels in [0, 1]'
            )

    def __repr__(self) -> str:
        height, width, _ = self.image_shape
        counts = f'{len(self.train):,} training, {len(self.held_out):,} held-out images of {height}x{width} pixels'
        return f'Dataset({self.name}, {counts}, {self.num_classes} classes{"" if self.labelled else ", no labels"})'

    @property
    def held_out(self) -> Split:
        """The images that are evaluated: the validation split, or the test set."""
        return self.test if self.validation is None else self.validation

    def pictures(self) -> dict[str, Any]:
        """The training images, their labels (None without) and the class names, for a page of a report."""
        labels = self.train.labels if self.labelled else None
        return {'images': self.train.images, 'labels': labels, 'class_names': self.class_names}

    @property
    def scored(self) -> bool:
        """Whether the held-out images have labels, so that there is an accuracy."""
        return self.test_labelled if self.validation is None else self.labelled

    def with_classes(self, count: int, names: Sequence[str] = ()) -> Dataset:
        """The same points with the classes of a teacher, for data whose points have no labels."""
        return dataclasses.replace(self, num_classes=count, class_names=tuple(names) or tuple(map(str, range(count))))

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each part that results depend on: 'train images', 'train labels', ..., 'class names', ..."""
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        parts = {f'{n} {part}': d for n, s in splits.items() if s is not None for part, d in s.digests.items()}
        if self.labelled:  # else they are the teacher's, which has an identity of its own
            parts['class names'] = _digest_of_json(self.class_names)
        parts['mean and standard deviation'] = _digest_of_json([self.image_shape, self.normalization])
        return parts

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 over `digests`; names and places of files do not enter.

        Pixels that are streamed are identified by the content of their files and the size they are scaled to.
        """
        return _digest_of_json(['shapes only', self.name, self.digests] if self.shape_only else self.digests)

    def changes(self, digests: Mapping[str, str]) -> list[str]:
        """The parts that differ from those of `digests`, an earlier `Dataset.digests`."""
        return [part for part in {**digests, **self.digests} if digests.get(part) != self.digests.get(part)]


def seed_words(seed: int) -> list[int]:
    """The 32-bit words of a seed, at least one: all 64 bits count, and seeds below 2**32 are one word."""
    low, high = seed % 2**32, seed // 2**32 % 2**32
    return [low, high] if high and seed >= 0 else [low]


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_pixels(images: np.ndarray | Images) -> str:
    """SHA-256 of all pixels, in order."""
    digest = hashlib.sha256(str(images.shape).encode())
    if isinstance(images, np.ndarray) and images.strides[:1] == (0,):  # one image, broadcast over the points
        images = images[:1]
    for first in range(0, len(images), _BLOCK):
        digest.update(np.ascontiguousarray(images[first : first + _BLOCK]))
    return digest.hexdigest()


class ChannelCounts:
    """How often each of the 256 levels of each channel occurs: exact statistics of any number of images."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), np.int64)

    def add(self, images: np.ndarray) -> None:
        """Counts the pixels of u8[..., 3]."""
        for channel, count in enumerate(self.counts):
            count += np.bincount(images[..., channel].reshape(-1), minlength=256)

    def range(self) -> tuple[int, int]:
        """The smallest and the largest level of any channel."""
        levels = np.flatnonzero(self.counts.sum(axis=0))
        return int(levels[0]), int(levels[-1])

    def normalization(self) -> Normalization:
        """Mean and standard deviation per channel in [0, 1], rounded to four decimals."""
        levels = np.arange(256) / 255.0
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
        # A constant channel would divide by zero; 1 leaves it unscaled.
        return Normalization(tuple(round(float(x), 4) for x in mean), tuple(round(float(x), 4) or 1.0 for x in std))


def measure(images: np.ndarray) -> Normalization:
    """Mean and standard deviation of u8[N, H, W, 3] per channel in [0, 1], from exact integer sums."""
    counts = ChannelCounts()
    for first in range(0, len(images), _BLOCK):
        counts.add(images[first : first + _BLOCK])
    return counts.normalization()


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a data set is loaded: in memory, or to be streamed.

    Attributes:
      stream: True reads points by index during training, False keeps them in memory, None decides by size.
      memory: bytes of a device's memory, or None if unknown.
      area: bounds of a random crop's share of the image area, () for no such crop. Streamed images of varying sizes
        are then cropped from the original on the host. In any case, they are evaluated on the central 224/256.
    """

    stream: bool | None = None
    memory: int | None = None
    area: tuple[float, ...] = ()

    def streams(self, size: int) -> bool:
        """Whether images of `size` bytes are streamed."""
        if self.stream is not None:
            return self.stream
        memory = machine_memory()
        return size > _STREAM_SHARE * (memory if self.memory is None else min(memory, self.memory))


BY_SIZE = Loading()


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is known of a data set without its files: numbers of points and classes, (H, W, 3).

    Attributes:
      normalization: published constants; None: measured on the training split.
      scaled: whether the images vary in size and are scaled to `image_shape` unless another size is given.
    """

    train: int
    test: int
    num_classes: int
    image_shape: tuple[int, int, int]
    normalization: Normalization | None = None
    scaled: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """What a data set's module is asked for.

    Attributes:
      name: as the user gave it, 'folder:64'.
      option: what follows the colon, '64'; '' if nothing does.
      dir: folder of the files, or None.
      cache: folder for decoded arrays, or None for the default one.
      shapes: the module's own `SHAPES` or `shapes(request)`, or None.
      checking: nothing is downloaded, and nothing printed that the description says too.
    """

    name: str
    option: str = ''
    dir: str | os.PathLike[str] | None = None
    cache: str | os.PathLike[str] | None = None
    loading: Loading = BY_SIZE
    shapes: Shapes | None = None
    checking: bool = False


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """The items, with a bar on a terminal once they take more than a second."""
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


def say(line: str) -> None:
    """Prints a line about the data."""
    from kcd_jax.runtime import console  # imports jax, which worker processes do without

    console.say(line)


def say_of_range(name: str, split: str, low: int, high: int) -> None:
    """Prints one line if the pixels of a split are constant or nearly so, from `low` to `high`."""
    if high - low < _NARROW:
        say(f'{name}: all pixels of the split {split} lie between {low} and {high} of 255; check its images')


def printable(text: str) -> str:
    r"""Text from the file system in one line of UTF-8: other bytes and control characters are written as \xNN."""
    try:
        content = os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name has
        content = text.encode('utf-8', 'backslashreplace')
    shown = content.decode('utf-8', 'backslashreplace')
    return ''.join(letter if letter >= ' ' else f'\\x{ord(letter):02x}' for letter in shown)
