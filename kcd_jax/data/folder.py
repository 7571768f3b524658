"""A folder of images in memory: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val, or validation).

`folder:SIZE` scales the shorter side of every image to SIZE pixels and cuts the middle SIZE x SIZE; `folder` takes the
images as they are, which must then be of one size. Grey, CMYK, palette and transparent images become RGB, and a
camera's rotation mark is followed. Files that are no images by their suffix are passed over; files that say they are
and cannot be decoded are left out, and named before anything is trained.

Order of the points: by their path, class by class. Classes: the folders of train, sorted.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import numpy as np

from kcd_jax.data import cache as cache_lib
from kcd_jax.data.base import Dataset, Normalization, Split, check_memory, describe, measure

NAME = 'folder'
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
_TESTS = ('test', 'val', 'validation')
_NAMED = 10  # bad files named in a line

_log = logging.getLogger(__name__)


def parse(name: str) -> int | None:
    """'folder:64' -> 64, 'folder' -> None; ValueError when it is something else."""
    text = name.partition(':')[2]
    if name == NAME:
        return None
    if not text.isdecimal() or not 8 <= int(text) <= 4096:
        raise ValueError(f'data set {name!r} is not understood; use folder, or folder:SIZE with 8 to 4096 pixels')
    return int(text)


def load(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> Dataset:
    """The whole folder, decoded once and cached.

    Raises:
      ValueError: no folder, no classes, a test class that train has not, a split without a good image, images of
        several sizes and no SIZE, more than the memory.
    """
    size = parse(name)
    if not dir:
        raise ValueError(f'{name} needs the folder that has train and test: set --config.data.dir')
    root = pathlib.Path(dir).expanduser()
    files, classes = _scan(name, root)
    if size is not None:
        check_memory(f'{name} in {root}', sum(map(len, files.values())) * size * size * 3)
    stats = cache_lib.fingerprint(file for split in files.values() for file in split)
    digest = hashlib.sha256(json.dumps([classes, stats]).encode()).hexdigest()
    arrays, meta = cache_lib.fetch(
        name,
        str(root.resolve()),
        {'size': size, 'files': digest},
        lambda: _decode(name, root, files, classes, size),
        cache,
    )
    description = f'images in {root}'
    if meta['bad']:
        some = '; '.join(f'{file} ({why})' for file, why in meta['bad'][:_NAMED])
        more = f'; and {len(meta["bad"]) - _NAMED} more' if len(meta['bad']) > _NAMED else ''
        _log.warning('%d files in %s cannot be decoded and are left out: %s%s', len(meta['bad']), root, some, more)
        description += f', {len(meta["bad"])} bad files left out'
    splits = [
        Split(*(arrays[f'{split}_{part}'] for part in ('images', 'labels', 'ids'))) for split in ('train', 'test')
    ]
    return Dataset(
        name=name,
        train=splits[0],
        test=splits[1],
        class_names=tuple(classes),
        num_classes=len(classes),
        image_shape=splits[0].images.shape[1:],
        normalization=Normalization(*map(tuple, meta['normalization'])),
        description=description,
    )


def check(name: str, dir: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None) -> str:
    """A line on the data. Whether a file is an image is known only by decoding it: so it is done, once, and cached."""
    return describe(load(name, dir, cache))


def _scan(name: str, root: pathlib.Path) -> tuple[dict[str, list[pathlib.Path]], list[str]]:
    """{'train': files, 'test': files}, sorted, and the classes."""
    test = next((split for split in _TESTS if (root / split).is_dir()), None)
    if not (root / 'train').is_dir() or test is None:
        missing = 'train' if not (root / 'train').is_dir() else 'test (or val)'
        raise ValueError(f'{name}: {root} has no folder {missing}; needed are train/CLASS/*.jpg and test/CLASS/*.jpg')
    files, classes = {}, []
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
    if len(classes) < 2:
        raise ValueError(f'{name}: {root / "train"} has {len(classes)} class folders; at least 2 are needed')
    return files, classes


def _open(file: pathlib.Path, size: int | None) -> np.ndarray | str:
    """u8[H, W, 3], or why there is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as picture:
            if size is not None:
                picture.draft('RGB', (size, size))  # JPEG decodes at a half, a quarter, an eighth: never below SIZE
            image = ImageOps.exif_transpose(picture).convert('RGB')
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except Exception as error:  # Pillow's formats raise all sorts
        return 'empty' if file.stat().st_size == 0 else (str(error).splitlines() or [type(error).__name__])[0][:120]


def _decode(
    name: str, root: pathlib.Path, files: dict[str, list[pathlib.Path]], classes: list[str], size: int | None
) -> tuple[cache_lib.Arrays, dict[str, Any]]:
    arrays, bad, shape = {}, [], None
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, paths in files.items():
            images, good = None, []
            for file, image in zip(paths, pool.map(lambda p: _open(p, size), paths)):
                relative = file.relative_to(root)
                if isinstance(image, str):
                    bad.append([str(relative), image.replace(str(file), file.name)])
                    continue
                shape = shape or image.shape
                if image.shape != shape:
                    raise ValueError(
                        f'{name}: {file} has {image.shape[0]}x{image.shape[1]} pixels, others {shape[0]}x{shape[1]}; '
                        f'give one size for all, as data.name=folder:{min(shape[:2])}'
                    )
                if images is None:
                    check_memory(f'{name} in {root}', len(paths) * int(np.prod(shape)))
                    images = np.empty((len(paths), *shape), np.uint8)
                images[len(good)] = image
                good.append(relative)
            if images is None:
                raise ValueError(f'{name}: none of the {len(paths)} images in {paths[0].parents[1]} can be decoded')
            arrays[f'{split}_images'] = images[: len(good)]
            arrays[f'{split}_labels'] = np.array([classes.index(path.parts[1]) for path in good], np.int32)
            arrays[f'{split}_ids'] = np.array([path.as_posix() for path in good])
    return arrays, {'bad': bad, 'normalization': measure(arrays['train_images'])}
