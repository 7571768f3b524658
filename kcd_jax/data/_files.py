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

from kcd_jax.data import _cache, _encoded, _pictures
from kcd_jax.data._dataset import Dataset, Request, printable, progress, say

_NAMED = 10  # bad files named in one line
_PART = 1024  # images decoded ahead, to bound memory


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of both splits.

    Attributes:
      labels: of the files; 0 for those of a split without labels.
      classes: names by label.
      passed: what was passed over, in words.
      labelled, test_labelled: whether each split has labels.
      held_out: in words, how the test set was made, where the folder has none.
    """

    root: pathlib.Path
    files: dict[str, list[pathlib.Path]]
    labels: dict[str, list[int]]
    classes: list[str]
    passed: str = ''
    labelled: bool = True
    test_labelled: bool = True
    held_out: str = ''

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
    root = listing.root
    side = size or _first_side(listing.files['train'])
    names = [file for split in listing.files for file in listing.names(split)]
    digests = _cache.digests(request.name, root, names, request.cache)
    border = len(listing.files['train'])
    content = {'train': _cache.combined(digests[:border]), 'test': _cache.combined(digests[border:])}
    listed = hashlib.sha256(json.dumps([listing.classes, listing.labels, names]).encode()).hexdigest()
    found = _encoded.dataset(
        request,
        size,
        place=str(root.resolve()),
        memory=len(names) * side * side * 3,
        made_from={'listed': listed, 'content': content},
        make=lambda share, keep: _decode(request.name, listing, size, share, keep),
        source=lambda part, arrays, _: (Paths(str(root), arrays[f'{part}_ids']), content[part]),
        class_names=listing.classes,
        describe=lambda meta: _report(request, listing, meta),
    )
    return dataclasses.replace(found, labelled=listing.labelled, test_labelled=listing.test_labelled)


def _report(request: Request, listing: Listing, meta: dict[str, Any]) -> str:
    """The description; what was passed over or left out is said in one line each."""
    shown = printable(str(listing.root))
    description = f'images in {shown}'
    if not listing.labelled:
        description += ', without labels'
    if listing.held_out:
        description += f', {listing.held_out}'
    if listing.passed:
        if not request.checking:
            say(f'{shown}: passed over are {listing.passed}')
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
    name: str, listing: Listing, size: int | None, share: float, keep: bool
) -> tuple[_cache.Arrays, dict[str, Any]]:
    """What `_encoded.dataset` makes its data set from; the files that cannot be decoded are in the metadata."""
    arrays, bad, gathered, shape = {}, [], {}, None
    for split, files in listing.files.items():
        images = gathered[split] = _encoded.Gathered(name.partition(':')[0], len(files), keep, shape)
        good, labels = [], []
        decoded = progress(_decoded(files, size, share if split == 'test' else 1.0), len(files), f'{name} {split}')
        for file, relative, label, image in zip(files, listing.names(split), listing.labels[split], decoded):
            if isinstance(image, str):
                bad.append([relative, image])
                continue
            images.add(image, printable(str(file)))
            good.append(relative)
            labels.append(label)
        shape = images.shape
        _refuse_lost_classes(name, listing, split, labels, bad)
        if keep:
            arrays[f'{split}_images'] = images.images()
        arrays[f'{split}_labels'] = np.array(labels, np.int32)
        arrays[f'{split}_ids'] = np.array(good)
    return arrays, {
        'bad': bad,
        'shape': shape,
        'normalization': gathered['train'].counts.normalization(),
        'range': {split: images.counts.range() for split, images in gathered.items()},
    }


def _refuse_lost_classes(name: str, listing: Listing, split: str, labels: list[int], bad: list[list[str]]) -> None:
    """ValueError if all files of a class in this split are bad."""
    files = collections.Counter(listing.labels[split])
    lost = sorted(set(files) - set(labels))
    if lost:
        of = dict(zip(listing.names(split), listing.labels[split]))
        file, why = next(one for one in bad if of.get(one[0]) == lost[0])
        if not (listing.labelled if split == 'train' else listing.test_labelled):
            raise ValueError(f'{name}: none of the {files[0]} {split} images can be decoded ({printable(file)}: {why})')
        raise ValueError(
            f'{name}: none of the {files[lost[0]]} {split} images of the class {listing.classes[lost[0]]!r} can be '
            f'decoded ({printable(file)}: {why}); replace them, or remove the class'
        )
