"""Encoded pictures, in files or records, as a data set: decoded once and cached, or listed once and streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kcd_jax.data import _cache, _pictures
from kcd_jax.data._dataset import (
    ChannelCounts,
    Dataset,
    Images,
    Normalization,
    Request,
    Split,
    check_memory,
    say_of_range,
)

_Made = tuple[_cache.Arrays, dict[str, Any]]


class Gathered:
    """The decoded images of a split: of one size, counted, and kept if they are to be held in memory."""

    def __init__(self, name: str, number: int, keep: bool, shape: tuple[int, ...] | None = None):
        self.name, self.number, self.keep, self.shape = name, number, keep, shape
        self.counts, self.kept, self._images = ChannelCounts(), 0, None

    def add(self, image: np.ndarray, what: str) -> None:
        """Takes the next image; ValueError, which names it by `what`, if it has another size than the ones before."""
        shape = self.shape = self.shape or image.shape
        if image.shape != shape:
            raise ValueError(
                f'{what} has {image.shape[0]}x{image.shape[1]} pixels, others {shape[0]}x{shape[1]}; give one size for '
                f'all, as data.name={self.name}:{max(8, min(shape[:2]))}'
            )
        if self.keep and self._images is None:
            check_memory(self.name, self.number * image.size)
            self._images = np.empty((self.number, *shape), np.uint8)
        if self.keep:
            self._images[self.kept] = image
        self.kept += 1
        self.counts.add(image)

    def images(self) -> np.ndarray:
        """u8[N, H, W, 3] of those that were added."""
        return self._images[: self.kept]


def dataset(
    request: Request,
    size: int | None,
    *,
    place: str,
    memory: int,
    made_from: dict[str, Any],
    make: Callable[[float, bool], _Made],
    source: Callable[[str, _cache.Arrays, dict[str, Any]], tuple[Any, str]],
    class_names: Sequence[str],
    describe: Callable[[dict[str, Any]], str],
    constants: Normalization | None = None,
) -> Dataset:
    """The data set, in memory or to be streamed.

    Args:
      request: what was asked for.
      size: that pictures are scaled to, or None.
      place: of the files, for the cache.
      memory: bytes that the decoded images take.
      made_from: what identifies the encoded pictures, for the cache.
      make: (share, keep) -> PART_labels, PART_ids (if there are any) and, if they are to be kept, PART_images, for the
        parts train and test; and metadata: shape, range and normalization. Tests are cropped to `share`.
      source: (part, arrays, metadata) -> encoded[i], which is a path or bytes, and the digest of its content.
      class_names: in label order.
      describe: (metadata) -> the description.
      constants: mean and standard deviation, unless they are measured.
    """
    name, loading = request.name, request.loading
    streamed = loading.streams(memory)
    if not streamed:
        check_memory(name, memory)
    share = _pictures.EVALUATED if loading.area and size is not None else 1.0
    made_from = {**made_from, 'size': size, 'share': share, 'filter': '' if streamed else _pictures.FILTER}
    arrays, meta = _cache.fetch(
        f'{name}-index' if streamed else name, place, made_from, lambda: make(share, not streamed), request.cache
    )

    def split(part: str) -> Split:
        labels, ids = arrays[f'{part}_labels'], arrays.get(f'{part}_ids')
        if part in meta['range']:
            say_of_range(name, part, *meta['range'][part])
        if not streamed:
            return Split(arrays[f'{part}_images'], labels, ids)
        encoded, content = source(part, arrays, meta)
        area = loading.area if part == 'train' else ()
        pictures = _pictures.source(encoded, size, share, area, content)
        return Split(Images(pictures, np.arange(len(labels)), tuple(meta['shape'])), labels, ids)

    return Dataset(
        name=name,
        train=split('train'),
        test=split('test'),
        class_names=tuple(class_names),
        num_classes=len(class_names),
        image_shape=tuple(meta['shape']),
        normalization=constants or Normalization(*map(tuple, meta['normalization'])),
        description=describe(meta),
    )
