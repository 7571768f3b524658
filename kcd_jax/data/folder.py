"""A folder of images: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val, or validation).

`folder:SIZE` scales the shorter side of every image to SIZE pixels and cuts the middle SIZE x SIZE; `folder` takes the
images as they are, which must then be of one size. Files that are no images by their suffix are passed over; files that
say they are and cannot be decoded are left out, and named before anything is trained: every file is decoded once.

Order of the points: by their path, class by class. Classes: the folders of train, sorted.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import numpy as np

from kcd_jax.data import cache as cache_lib
from kcd_jax.data import pictures
from kcd_jax.data.base import (
    BY_SIZE,
    ChannelCounts,
    Dataset,
    Images,
    Loading,
    Normalization,
    Split,
    check_memory,
    describe,
    progress,
)

NAME = 'folder'
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
_TESTS = ('test', 'val', 'validation')
_NAMED = 10  # bad files named in a line

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a data set under `root`: {'train', 'test': files}, their labels, and the classes by label."""

    root: pathlib.Path
    files: dict[str, list[pathlib.Path]]
    labels: dict[str, list[int]]
    classes: list[str]


@dataclasses.dataclass(frozen=True)
class Paths:
    """paths[i]: the path of a point's file; names are relative to `root`, which is short to send to workers."""

    root: str
    names: np.ndarray

    def __getitem__(self, point: int) -> str:
        return os.path.join(self.root, self.names[point])


def parse(name: str) -> int | None:
    """'folder:64' -> 64, 'folder' -> None; ValueError when it is something else."""
    text = name.partition(':')[2]
    if name == NAME:
        return None
    if not text.isdecimal() or not 8 <= int(text) <= 4096:
        raise ValueError(f'data set {name!r} is not understood; use folder, or folder:SIZE with 8 to 4096 pixels')
    return int(text)


def load(
    name: str,
    dir: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    loading: Loading = BY_SIZE,
) -> Dataset:
    """The whole folder, decoded once, to be cached or to be streamed.

    Raises:
      ValueError: no folder, no classes, a test class that train has not, a split without a good image, images of
        several sizes and no SIZE, more than the memory.
    """
    size = parse(name)
    if not dir:
        raise ValueError(f'{name} needs the folder that has train and test: set --config.data.dir')
    return read(name, _scan(name, pathlib.Path(dir).expanduser()), size, cache, loading)


def check(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> str:
    """A line on the data. Whether a file is an image is known only by decoding it: so it is done, once, and cached."""
    return describe(load(name, dir, cache))


def read(
    name: str, listing: Listing, size: int | None, cache: str | os.PathLike[str] | None, loading: Loading
) -> Dataset:
    """The data set of a listing. Arguments and errors as `load`."""
    root, files = listing.root, listing.files
    number = sum(map(len, files.values()))
    side = size or _first_side(files['train'])
    streamed = loading.streams(number * side * side * 3)
    if size is not None and not streamed:
        check_memory(f'{name} in {root}', number * size * size * 3)
    stats = cache_lib.fingerprint(file for split in files.values() for file in split)
    digest = hashlib.sha256(json.dumps([listing.classes, stats]).encode()).hexdigest()
    share = pictures.EVALUATED if loading.area and size is not None else 1.0
    made_from = {'size': size, 'files': digest, 'filter': 'bilinear' if streamed else pictures.FILTER, 'share': share}
    arrays, meta = cache_lib.fetch(
        f'{name}-files' if streamed else name,
        str(root.resolve()),
        made_from,
        lambda: _decode(name, listing, size, share, keep=not streamed),
        cache,
    )
    description = f'images in {root}'
    if meta['bad']:
        some = '; '.join(f'{file} ({why})' for file, why in meta['bad'][:_NAMED])
        more = f'; and {len(meta["bad"]) - _NAMED} more' if len(meta['bad']) > _NAMED else ''
        _log.warning('%d files in %s cannot be decoded and are left out: %s%s', len(meta['bad']), root, some, more)
        description += f', {len(meta["bad"])} bad files left out'

    def split(part: str) -> Split:
        labels, ids = arrays[f'{part}_labels'], arrays[f'{part}_ids']
        if not streamed:
            return Split(arrays[f'{part}_images'], labels, ids)
        source = pictures.source(Paths(str(root), ids), size, share, loading.area if part == 'train' else ())
        return Split(Images(source, np.arange(len(ids)), tuple(meta['shape'])), labels, ids)

    return Dataset(
        name=name,
        train=split('train'),
        test=split('test'),
        class_names=tuple(listing.classes),
        num_classes=len(listing.classes),
        image_shape=tuple(meta['shape']),
        normalization=Normalization(*map(tuple, meta['normalization'])),
        description=description,
    )


def _first_side(files: list[pathlib.Path]) -> int:
    """About how large the images are that stay as they are: the longer side of the first one that opens."""
    from PIL import Image

    for file in files[:100]:
        try:
            with Image.open(file) as picture:
                return max(picture.size)
        except Exception:  # bad files are named when all of them are decoded
            continue
    return 0


def _scan(name: str, root: pathlib.Path) -> Listing:
    test = next((split for split in _TESTS if (root / split).is_dir()), None)
    if not (root / 'train').is_dir() or test is None:
        missing = 'train' if not (root / 'train').is_dir() else 'test (or val)'
        raise ValueError(f'{name}: {root} has no folder {missing}; needed are train/CLASS/*.jpg and test/CLASS/*.jpg')
    files, labels, classes = {}, {}, []
    for split, folder in (('train', root / 'train'), ('test', root / test)):
        # What begins with a dot belongs to systems, as .DS_Store.
        found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))
        classes = classes or found
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise ValueError(f'{name}: {folder} has the class {unknown[0]!r}, which {root / "train"} has not')
        files[split] = sorted(
            p
            for one in found
            for p in (folder / one).rglob('*')
            if p.suffix.lower() in SUFFIXES and not p.name.startswith('.') and p.is_file()
        )
        if not files[split]:
            raise ValueError(f'{name}: no image in {folder}/*/; known suffixes: {" ".join(SUFFIXES)}')
        number = {one: label for label, one in enumerate(classes)}
        labels[split] = [number[file.relative_to(folder).parts[0]] for file in files[split]]
    if len(classes) < 2:
        raise ValueError(f'{name}: {root / "train"} has {len(classes)} class folders; at least 2 are needed')
    return Listing(root, files, labels, classes)


def _open(file: pathlib.Path, size: int | None, share: float) -> np.ndarray | str:
    """u8[H, W, 3], or why there is none."""
    try:
        box = functools.partial(pictures.middle_box, share=share)
        return pictures.read(str(file), size, box)
    except ValueError as error:
        return 'empty' if file.stat().st_size == 0 else pictures.reason(error.__cause__, str(file))


def _decode(
    name: str, listing: Listing, size: int | None, share: float, *, keep: bool
) -> tuple[cache_lib.Arrays, dict[str, Any]]:
    """Labels and names of the good files, and with `keep` their images; the bad ones, shape and constants as JSON."""
    arrays, bad, shape = {}, [], None
    counts = {split: ChannelCounts() for split in listing.files}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, paths in listing.files.items():
            images, good, labels = None, [], []
            seen = share if split == 'test' else 1.0
            # In parts: what waits between the decoders and here would else be all that is decoded.
            decoded = (
                image
                for first in range(0, len(paths), 1024)
                for image in pool.map(lambda p, seen=seen: _open(p, size, seen), paths[first : first + 1024])
            )
            for file, label, image in zip(
                paths, listing.labels[split], progress(decoded, len(paths), f'{name} {split}')
            ):
                relative = file.relative_to(listing.root)
                if isinstance(image, str):
                    bad.append([str(relative), image])
                    continue
                shape = shape or image.shape
                if image.shape != shape:
                    raise ValueError(
                        f'{name}: {file} has {image.shape[0]}x{image.shape[1]} pixels, others {shape[0]}x{shape[1]}; '
                        f'give one size for all, as data.name=folder:{min(shape[:2])}'
                    )
                if keep and images is None:
                    check_memory(f'{name} in {listing.root}', len(paths) * int(np.prod(shape)))
                    images = np.empty((len(paths), *shape), np.uint8)
                if keep:
                    images[len(good)] = image
                counts[split].add(image)
                good.append(relative.as_posix())
                labels.append(label)
            if not good:
                folder = listing.root / paths[0].relative_to(listing.root).parts[0]
                raise ValueError(f'{name}: none of the {len(paths)} images in {folder} can be decoded')
            if keep:
                arrays[f'{split}_images'] = images[: len(good)]
            arrays[f'{split}_labels'] = np.array(labels, np.int32)
            arrays[f'{split}_ids'] = np.array(good)
    return arrays, {'bad': bad, 'shape': shape, 'normalization': counts['train'].normalization()}
