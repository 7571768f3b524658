"""Data in Python: any object with `__len__` and `__getitem__(i) -> {'image', 'label'}`.

`from_objects(train, test)` makes a data set of two of them, for `train.train(config, workdir, dataset=...)`. From a
config or the command line it is `data.name=python:MODULE:FUNCTION`, where FUNCTION() returns (train, test) or what
`from_objects` returns.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcd_jax.data.base import (
    BY_SIZE,
    ChannelCounts,
    Dataset,
    Images,
    Loading,
    Normalization,
    Split,
    check_memory,
    progress,
)

NAME = 'python'


@dataclasses.dataclass(frozen=True)
class Items:
    """A source for `base.Images`: the images of a user's object, found to be what they should be."""

    items: Any
    what: str

    def __getitem__(self, point: int) -> np.ndarray:
        return self.image(point, self.items[point])

    def image(self, point: int, item: Any) -> np.ndarray:
        """u8[H, W, 3] of an item; grey images, [H, W] or [H, W, 1], get three channels. ValueError: neither."""
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
      train, test: `len(x)`, and `x[i]` -> {'image': u8[H, W, 3] or u8[H, W], 'label': int}; images of one size. Their
        order is the order of the points, so x[i] must be the same at every call; streamed with `data.workers`, they
        are pickled.
      class_names: by label; default: '0' to the largest label. normalization: default: measured on train.

    Raises:
      ValueError: an item that is something else, in one line that names the point.
    """
    splits, shape, measured = [], None, None
    for what, items in (('train', train), ('test', test)):
        if not len(items):
            raise ValueError(f'{what} of {name} has no points')
        source = Items(items, f'{what} of {name}')
        first = source[0]
        shape = shape or first.shape
        size = len(items) * first.size
        streamed = loading.streams(size)
        if not streamed:
            check_memory(source.what, size)
        counts = ChannelCounts()
        labels = np.empty(len(items), np.int32)
        images = None if streamed else np.empty((len(items), *shape), np.uint8)
        for point in progress(range(len(items)), len(items), source.what):
            item = items[point]
            image = source.image(point, item)
            if image.shape != shape:
                raise ValueError(
                    f'the image of point {point} of {source.what} is {image.shape[0]}x{image.shape[1]}, the first '
                    f'one {shape[0]}x{shape[1]}; return images of one size'
                )
            labels[point] = _label(item, point, source.what)
            counts.add(image)
            if images is not None:
                images[point] = image
        measured = measured or counts.normalization()
        splits.append(Split(Images(source, np.arange(len(items)), shape) if streamed else images, labels))
    number = 1 + max(int(split.labels.max()) for split in splits)
    class_names = tuple(class_names or map(str, range(number)))
    if len(class_names) < number:
        raise ValueError(f'{name} has the label {number - 1}, but {len(class_names)} class names')
    return Dataset(
        name=name,
        train=splits[0],
        test=splits[1],
        class_names=class_names,
        num_classes=len(class_names),
        image_shape=shape,
        normalization=normalization or measured,
        description=f'objects of {type(train).__module__}.{type(train).__name__}',
    )


def _label(item: Any, point: int, what: str) -> int:
    label = item.get('label') if isinstance(item, dict) else item['label']
    if not np.issubdtype(np.asarray(label).dtype, np.integer) or np.ndim(label) or label < 0:
        raise ValueError(f'the label of point {point} of {what} is {label!r}; return an int from 0')
    return int(label)


def load(name: str, loading: Loading = BY_SIZE) -> Dataset:
    """The data set that 'python:MODULE:FUNCTION' names.

    Raises:
      ValueError: no such module or function, or it returns something else.
    """
    _, _, place = name.partition(':')
    module, _, function = place.partition(':')
    if not module or not function:
        raise ValueError(f'data set {name!r} is not understood; use python:MODULE:FUNCTION')
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f'{name}: {error}; is the folder of {module} in PYTHONPATH?') from error
    if isinstance(made, Dataset):
        return dataclasses.replace(made, name=name)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f'{name} returned a {type(made).__name__}; return (train, test), or what from_objects returns')
    return from_objects(*made, name=name, loading=loading)
