"""One look at every image of a data set: exact duplicates, mean and deviation, a contact sheet."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kcd_jax.data.base import ChannelCounts, Dataset, Images, Normalization, progress

_PART = 1024  # images that are decoded before they are counted
_DIGEST = 16  # bytes a point
_ROWS, _COLUMNS, _PIXELS, _NAME = 20, 10, 64, 160  # of the contact sheet; the last: pixels for a row's name


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was found.

    Attributes:
      images: training images that were looked at.
      same, other: of these, how many equal an earlier one of the same class, of another class.
      leaked: test images that equal a training image that was looked at.
      normalization: of the training images that were looked at.
    """

    images: int
    same: int
    other: int
    leaked: int
    normalization: Normalization


def look(loaded: Dataset, sample: int = 0) -> Seen:
    """Reads the training images (`sample` of them, evenly chosen; 0: all) and the test images once.

    Images are compared by their pixels, as they are trained on. In memory are 16 bytes a point and a few images.
    """
    counts = ChannelCounts()
    train, labels = loaded.train.images, loaded.train.labels
    if 0 < sample < len(train):
        index = np.linspace(0, len(train) - 1, sample).astype(int)
        train, labels = train[index] if not loaded.train.streamed else train.take(index), labels[index]
    digests = _digests(train, f'{loaded.name} train', counts)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    again = first[inverse] != np.arange(len(digests))
    agrees = labels == labels[first[inverse]]
    leaked = np.isin(_digests(loaded.test.images, f'{loaded.name} test'), digests)
    same, other = int((again & agrees).sum()), int((again & ~agrees).sum())
    return Seen(len(digests), same, other, int(leaked.sum()), counts.normalization())


def _digests(images: np.ndarray | Images, what: str, counts: ChannelCounts | None = None) -> np.ndarray:
    """S16[N], a digest of each image's pixels; `counts`, if given, counts these."""
    found = np.empty(len(images), f'S{_DIGEST}')
    for point, image in enumerate(progress(_decoded(images), len(images), what)):
        found[point] = hashlib.blake2b(image, digest_size=_DIGEST).digest()
        if counts is not None:
            counts.add(image)
    return found


def _decoded(images: np.ndarray | Images) -> Iterator[np.ndarray]:
    """Each image, decoded on all cores; in parts, for what waits here would else be all that is decoded."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(images), _PART):
            part = range(first, min(first + _PART, len(images)))
            yield from pool.map(lambda point: np.ascontiguousarray(images[point]), part)


def contact_sheet(loaded: Dataset, path: pathlib.Path) -> None:
    """Ten training images of each of up to twenty classes, evenly chosen of those that have any, as a PNG."""
    from PIL import Image, ImageDraw

    used = np.unique(loaded.train.labels)
    classes = used[np.unique(np.linspace(0, len(used) - 1, _ROWS).round().astype(int))]
    sheet = Image.new('RGB', (_NAME + _COLUMNS * _PIXELS, len(classes) * _PIXELS), 'white')
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(classes.tolist()):
        draw.text((4, (row + 0.5) * _PIXELS), _shortened(draw, loaded.class_names[label]), 'black', anchor='lm')
        for column, point in enumerate(np.flatnonzero(loaded.train.labels == label)[:_COLUMNS].tolist()):
            image = Image.fromarray(np.ascontiguousarray(loaded.train.images[point]))
            larger = max(image.size) > _PIXELS
            image = image.resize((_PIXELS,) * 2, Image.Resampling.BOX if larger else Image.Resampling.NEAREST)
            sheet.paste(image, (_NAME + column * _PIXELS, row * _PIXELS))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _shortened(draw: Any, name: str) -> str:
    """As much of a class's name as fits beside its row."""
    if draw.textlength(name) <= _NAME - 8:
        return name
    while name and draw.textlength(f'{name}...') > _NAME - 8:
        name = name[:-1]
    return f'{name}...'
