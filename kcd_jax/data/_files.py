"""Image files on disk, decoded once: kept in a cache of arrays, or listed to be streamed."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
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
    printable,
    progress,
    say,
    say_of_range,
)

_NAMED = 10  # bad files named in one line
_PART = 1024  # images decoded ahead, to bound memory


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
      root: the folder that names are relative to.
      files: {'train', 'test': the files}.
      labels: {'train', 'test': the label of each file}.
      classes: names by label.
      passed: what was passed over, in words.
    """

    root: pathlib.Path
    files: dict[str, list[pathlib.Path]]
    labels: dict[str, list[int]]
    classes: list[str]
    passed: str = ''

    def names(self, split: str) -> list[str]:
        """The files of a split relative to `root`, with slashes."""
        return [file.relative_to(self.root).as_posix() for file in self.files[split]]


@dataclasses.dataclass(frozen=True)
class Paths:
    """paths[i]: the path of a point's file; `names` are relative to `root`, which makes them short to pickle."""

    root: str
    names: np.ndarray

    def __getitem__(self, point: int) -> str:
        return os.path.join(self.root, self.names[point])


def read(request: Request, listing: Listing, size: int | None) -> Dataset:
    """The data set of a listing.

    Raises:
      ValueError: a class without a readable image, images of several sizes and no `size`, more than the memory.
    """
    name, root, loading = request.name, listing.root, request.loading
    shown = printable(str(root))
    number = sum(map(len, listing.files.values()))
    side = size or _first_side(listing.files['train'])
    streamed = loading.streams(number * side * side * 3)
    if size is not None and not streamed:
        check_memory(f'{name} in {shown}', number * size * size * 3)
    share = _pictures.EVALUATED if loading.area and size is not None else 1.0
    names = [file for split in listing.files for file in listing.names(split)]
    digests = _cache.digests(name, root, names, request.cache)
    border = len(listing.files['train'])
    content = {'train': _cache.combined(digests[:border]), 'test': _cache.combined(digests[border:])}
    made_from = {
        'size': size,
        'listed': hashlib.sha256(json.dumps([listing.classes, listing.labels, names]).encode()).hexdigest(),
        'content': content,
        'filter': 'bilinear' if streamed else _pictures.FILTER,
        'share': share,
    }
    arrays, meta = _cache.fetch(
        f'{name}-files' if streamed else name,
        str(root.resolve()),
        made_from,
        lambda: _decode(name, listing, size, share, keep=not streamed),
        request.cache,
    )

    def split(part: str) -> Split:
        labels, ids = arrays[f'{part}_labels'], arrays[f'{part}_ids']
        say_of_range(name, part, *meta['range'][part])
        if not streamed:
            return Split(arrays[f'{part}_images'], labels, ids)
        area = loading.area if part == 'train' else ()
        source = _pictures.source(Paths(str(root), ids), size, share, area, content[part])
        return Split(Images(source, np.arange(len(ids)), tuple(meta['shape'])), labels, ids)

    return Dataset(
        name=name,
        train=split('train'),
        test=split('test'),
        class_names=tuple(listing.classes),
        num_classes=len(listing.classes),
        image_shape=tuple(meta['shape']),
        normalization=Normalization(*map(tuple, meta['normalization'])),
        description=_report(shown, listing, meta),
    )


def _report(shown: str, listing: Listing, meta: dict[str, Any]) -> str:
    """The description; what was passed over or left out is said in one line each."""
    description = f'images in {shown}'
    if listing.passed:
        say(f'{shown}: passed over are {listing.passed}', in_description=True)
        description += f', passed over are {listing.passed}'
    if bad := meta['bad']:
        some = '; '.join(f'{printable(file)} ({why})' for file, why in bad[:_NAMED])
        more = f'; and {len(bad) - _NAMED} more' if len(bad) > _NAMED else ''
        say(f'{len(bad)} files in {shown} cannot be decoded and are left out: {some}{more}')
        description += f', {len(bad)} bad files left out'
    return description


def _first_side(files: list[pathlib.Path]) -> int:
    """About how large images of unscaled size are: the longer side of the first one that opens."""
    from PIL import Image

    for file in files[:100]:
        try:
            with Image.open(file) as picture:
                return max(picture.size)
        except Exception:  # bad files are named when all of them are decoded
            continue
    return 0


def _open(file: pathlib.Path, size: int | None, share: float) -> np.ndarray | str:
    """u8[H, W, 3], or why there is none."""
    try:
        box = functools.partial(_pictures.middle_box, share=share)
        return _pictures.read(str(file), size, box)
    except ValueError as error:
        return 'empty' if file.stat().st_size == 0 else _pictures.reason(error.__cause__, str(file))


def _decoded(files: list[pathlib.Path], size: int | None, share: float) -> Iterator[np.ndarray | str]:
    """Each image, or why there is none; on all cores."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(files), _PART):
            yield from pool.map(lambda file: _open(file, size, share), files[first : first + _PART])


def _decode(
    name: str, listing: Listing, size: int | None, share: float, *, keep: bool
) -> tuple[_cache.Arrays, dict[str, Any]]:
    """Labels and names of the good files, and with `keep` their images; metadata, among it the bad files."""
    arrays, bad, shape = {}, [], None
    counts = {split: ChannelCounts() for split in listing.files}
    for split, files in listing.files.items():
        images, good, labels = None, [], []
        decoded = progress(_decoded(files, size, share if split == 'test' else 1.0), len(files), f'{name} {split}')
        for file, relative, label, image in zip(files, listing.names(split), listing.labels[split], decoded):
            if isinstance(image, str):
                bad.append([relative, image])
                continue
            shape = shape or image.shape
            if image.shape != shape:
                raise ValueError(
                    f'{name}: {printable(str(file))} has {image.shape[0]}x{image.shape[1]} pixels, others '
                    f'{shape[0]}x{shape[1]}; give one size for all, as data.name=folder:{max(8, min(shape[:2]))}'
                )
            if keep and images is None:
                check_memory(f'{name} in {printable(str(listing.root))}', len(files) * int(np.prod(shape)))
                images = np.empty((len(files), *shape), np.uint8)
            if keep:
                images[len(good)] = image
            counts[split].add(image)
            good.append(relative)
            labels.append(label)
        _refuse_lost_classes(name, listing, split, labels, bad)
        if keep:
            arrays[f'{split}_images'] = images[: len(good)]
        arrays[f'{split}_labels'] = np.array(labels, np.int32)
        arrays[f'{split}_ids'] = np.array(good)
    return arrays, {
        'bad': bad,
        'shape': shape,
        'normalization': counts['train'].normalization(),
        'range': {split: count.range() for split, count in counts.items()},
    }


def _refuse_lost_classes(name: str, listing: Listing, split: str, labels: list[int], bad: list[list[str]]) -> None:
    """ValueError if all files of a class in this split are bad."""
    files = collections.Counter(listing.labels[split])
    lost = sorted(set(files) - set(labels))
    if lost:
        of = dict(zip(listing.names(split), listing.labels[split]))
        file, why = next(one for one in bad if of.get(one[0]) == lost[0])
        raise ValueError(
            f'{name}: none of the {files[lost[0]]} {split} images of the class {listing.classes[lost[0]]!r} can be '
            f'decoded ({printable(file)}: {why}); replace them, or remove the class'
        )
