"""Data sets from objects in Python: arrays of images and labels, or anything that can be indexed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcd_jax.data import _dataset, _parts
from kcd_jax.data._dataset import BY_SIZE, ChannelCounts, Dataset, Images, Loading, Normalization, Split


def from_arrays(
    images: Any,
    labels: Any = None,
    *,
    test: Any = None,
    classes: Sequence[str] | int | None = None,
    name: str = 'arrays',
    normalization: Normalization | None = None,
) -> Dataset:
    """A data set of arrays. They are not copied: do not change them afterwards.

    Args:
      images: u8[N, H, W, 3], or u8[N, H, W] or u8[N, H, W, 1] for grey images, 0 to 255.
      labels: integers [N]; from 0, without gaps unless `classes` is given. None: there are none.
      test: (images, labels) to evaluate on; labels may be None. None: a tenth of each class, always the same images.
      classes: names by label, or their number; default: '0' to the largest label, and those of the teacher for training
        images without labels.
      name: for tables.
      normalization: default: measured on `images`.

    Raises:
      ValueError: arrays of another kind, in one line with the remedy.

    >>> rows = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    >>> from_arrays(rows, [0, 1, 0, 1], test=(rows, [0, 1, 0, 1])).image_shape
    (8, 8, 3)
    """
    train, description = _split(images, labels, f'train of {name}'), 'arrays in memory'
    labelled = labels is not None
    if test is None:
        held, test_labelled = _parts.test_rows(train.labels), labelled
        if not held.any():
            raise ValueError(f'{name} has no class of two images, so none can be held out; give test=(images, labels)')
        train, held_out = train.take(~held), train.take(held)
        description += f'; {len(held_out):,} of {len(held):,} images are held out as the test set'
    else:
        if not isinstance(test, tuple) or len(test) != 2:
            raise ValueError(
                f'test of {name} is a {type(test).__name__}; give test=(images, labels), or (images, None)'
            )
        pixels, numbers = test
        held_out, test_labelled = _split(pixels, numbers, f'test of {name}'), numbers is not None
    shapes = [_size(split.images[0]) for split in (train, held_out)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'{name} has images of {shapes[0]} in train and {shapes[1]} in test')
    normalization = normalization or _dataset.measure(train.images)
    names = tuple(map(str, range(classes))) if isinstance(classes, int | np.integer) else classes
    return _of_splits(name, [train, held_out], names, normalization, description, labelled, test_labelled)


def _split(images: Any, labels: Any, what: str) -> Split:
    """The checked arrays of a split; labels of None are all 0."""
    pixels = _images(images, what)
    numbers = np.zeros(len(pixels), np.int32) if labels is None else _labels(labels, what)
    if len(pixels) != len(numbers):
        raise ValueError(f'{what} has {len(pixels):,} images and {len(numbers):,} labels')
    split, _, name = what.partition(' of ')
    _dataset.say_of_range(name, split, int(pixels.min()), int(pixels.max()))
    return Split(pixels, numbers)


@dataclasses.dataclass(frozen=True)
class Items:
    """A source for `Images`: the images of a user's object, each checked; `what` is its name in messages."""

    items: Any
    what: str
    content: str = ''

    def __getitem__(self, point: int) -> np.ndarray:
        return self.image(point, self.items[point])

    def image(self, point: int, item: Any) -> np.ndarray:
        """u8[H, W, 3] of an item."""
        try:
            image = np.asarray(item['image'])
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"point {point} of {self.what} is no {{'image', 'label'}}; return such a dict") from error
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            raise ValueError(
                f'the image of point {point} of {self.what} is {image.dtype}{list(image.shape)}; '
                'return uint8[H, W, 3] or uint8[H, W], 0 to 255'
            )
        return image if image.shape[-1] == 3 else image.repeat(3, axis=-1)

    def label(self, point: int, item: Any) -> int:
        """The label of an item."""
        label = item.get('label') if isinstance(item, dict) else item['label']
        if not np.issubdtype(np.asarray(label).dtype, np.integer) or np.ndim(label) or not 0 <= label < 2**31:
            raise ValueError(f'the label of point {point} of {self.what} is {label!r}; return an int from 0')
        return int(label)


def from_objects(
    train: Any,
    test: Any,
    *,
    name: str = 'custom',
    class_names: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    loading: Loading = BY_SIZE,
) -> Dataset:
    """A data set of two objects, each read once: in memory, or to be streamed where that does not fit.

    Args:
      train: `len(x)`, and `x[i]` -> {'image': u8[H, W, 3] or u8[H, W], 'label': int}; images of one size. The order is
        that of the points, so x[i] must be the same at every call; streamed with `data.workers`, it is pickled.
      test: the same, to evaluate on.
      name: for tables.
      class_names: by label; default: '0' to the largest label.
      normalization: default: measured on train.
      loading: in memory, or to be streamed.

    Raises:
      ValueError: an item of another kind, in one line that names the point.
    """
    splits, shape = [], None
    for what, items in (('train', train), ('test', test)):
        if not len(items):
            raise ValueError(f'{what} of {name} has no points')
        source = Items(items, f'{what} of {name}')
        first = source[0]
        shape = shape or first.shape
        size = len(items) * first.size
        streamed = loading.streams(size)
        if not streamed:
            _dataset.check_memory(source.what, size)
        images = None if streamed else np.empty((len(items), *shape), np.uint8)
        labels, counts, digest = [], ChannelCounts(), hashlib.sha256()
        for point in _dataset.progress(range(len(items)), len(items), source.what):
            item = items[point]
            image = source.image(point, item)
            if image.shape != shape:
                raise ValueError(
                    f'the image of point {point} of {source.what} is {_size(image)}, the first one '
                    f'{shape[0]}x{shape[1]}; return images of one size'
                )
            labels.append(source.label(point, item))
            counts.add(image)
            if images is None:
                digest.update(np.ascontiguousarray(image))
            else:
                images[point] = image
        _dataset.say_of_range(name, what, *counts.range())
        normalization = normalization or counts.normalization()
        if images is None:
            source = dataclasses.replace(source, content=digest.hexdigest())
            images = Images(source, np.arange(len(items)), shape)
        splits.append(Split(images, _labels(labels, source.what)))
    description = f'objects of {type(train).__module__}.{type(train).__name__}'
    return _of_splits(name, splits, class_names, normalization, description)


def _of_splits(
    name: str,
    splits: list[Split],
    names: Sequence[str] | None,
    normalization: Normalization,
    description: str,
    labelled: bool = True,
    test_labelled: bool = True,
) -> Dataset:
    train, test = splits
    class_names = _class_names(name, train.labels, test.labels, names, labelled)
    return Dataset(
        name=name,
        train=train,
        test=test,
        class_names=class_names,
        num_classes=len(class_names),
        image_shape=train.images.shape[1:],
        normalization=normalization,
        description=description if labelled else f'{description}; without labels',
        labelled=labelled,
        test_labelled=test_labelled,
    )


def _labels(labels: Any, what: str) -> np.ndarray:
    """i32[N] of integer labels; ValueError: not integers, not in one dimension, negative, or beyond int32."""
    array = np.asarray(labels)
    if array.ndim != 1 or not array.size:
        raise ValueError(f'the labels of {what} have the shape {list(array.shape)}; give one integer per image')
    if not np.issubdtype(array.dtype, np.integer):
        kind = {'f': 'floats', 'b': 'booleans', 'U': 'strings', 'S': 'bytes'}.get(array.dtype.kind, str(array.dtype))
        raise ValueError(
            f'the labels of {what} are {kind}; give integers from 0, as numpy.unique(labels, return_inverse=True)[1]'
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= 2**31:
        raise ValueError(f'the labels of {what} go from {low} to {high:,}; number the classes from 0 without gaps')
    return array.astype(np.int32)


def _class_names(
    name: str, train: np.ndarray, test: np.ndarray, names: Sequence[str] | None, labelled: bool
) -> tuple[str, ...]:
    """The class names by label: those given, or the numbers, which must then have no gap; () without labels."""
    present, largest = np.unique(train), int(max(train.max(), test.max()))
    if not labelled and names is None:
        return ()
    if labelled and len(present) < 2:
        raise ValueError(f'the labels of train of {name} are all {present[0]}; at least two classes are needed')
    if names is not None:
        if isinstance(names, str) or not np.iterable(names) or not all(isinstance(one, str) for one in names):
            raise ValueError(f'the class names of {name} are {names!r:.60}; give a sequence of strings')
        if len(names) <= largest:
            raise ValueError(f'{name} has the label {largest}, but {len(names)} class names')
        if len(set(names)) < len(names):
            raise ValueError(f'the class names of {name} are not all different')
        return tuple(_dataset.printable(one) for one in names)
    if len(present) <= largest:
        raise ValueError(
            f'the labels of {name} go up to {largest:,}, but only {len(present):,} values occur in train; number the '
            'classes without gaps, as numpy.unique(labels, return_inverse=True)[1], or give the class names'
        )
    return tuple(map(str, range(largest + 1)))


def _images(images: Any, what: str) -> np.ndarray:
    """u8[N, H, W, 3] of an array; ValueError if it is something else."""
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
        remedy = 'give uint8[N, H, W, 3] or uint8[N, H, W], 0 to 255'
        if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[-1] not in (1, 3):
            remedy += ', as images.transpose(0, 2, 3, 1)'
        raise ValueError(f'the images of {what} are {array.dtype}{list(array.shape)}; {remedy}')
    if not array.size:
        raise ValueError(f'{what} has no points')
    return array if array.shape[-1] == 3 else array.repeat(3, axis=-1)


def _size(image: np.ndarray) -> str:
    return f'{image.shape[0]}x{image.shape[1]}'
