"""A folder of images: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val, or validation).

Without a folder train, ROOT/CLASS/*.jpg are the training images. Without a test folder, a tenth of each class is held
out. Images that lie in no class folder at all, in ROOT or in train or test, have no labels.

`folder:SIZE` scales the shorter side of every image to SIZE pixels and takes the central SIZE x SIZE; `folder` takes
the images as they are, which must then be of one size. Whether a file is an image is decided by its suffix, and for
unknown suffixes by its content; folders below a class folder count, links are followed. Whatever is passed over is
counted and named, and so are images that cannot be decoded: every file is decoded once, before anything is trained.

Order of the points: by their path, class by class. Classes: the folders of train, sorted.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from kcd_jax import paths
from kcd_jax.data import _files, _parts, _scan
from kcd_jax.data._dataset import Dataset, Request, printable

OPTIONS = 'SIZE'
FLAT = ''  # the "class" of images that lie in no class folder
_TESTS = ('test', 'val', 'validation')
_ALMOST = {
    'train',
    'training',
    *_TESTS,
    'testing',
    'tests',
    'valid',
    'evaluation',
    'eval',
    'images',
}  # names of splits, not of classes
_Found = dict[str, list[pathlib.Path]]


def load(request: Request) -> Dataset:
    """The whole folder.

    Raises:
      ValueError: no folder, no image, a single class, a test class that train lacks, a class without a readable image,
        images of several sizes and no SIZE, more than the memory.
    """
    size = parse(request)
    if not request.dir:
        raise ValueError(f'{request.name} needs the folder of the images: set --config.data.dir')
    return _files.read(request, scan(request.name, paths.expand(request.dir)), size)


def parse(request: Request) -> int | None:
    """The SIZE of 'folder:SIZE', or None; ValueError if it is something else."""
    text = request.option
    if request.name == 'folder':
        return None
    if not (text.isdecimal() and text.isascii()) or not 8 <= int(text) <= 4096:
        raise ValueError(
            f'data set {request.name!r} is not understood; use folder, or folder:SIZE with 8 to 4096 pixels'
        )
    return int(text)


def scan(name: str, root: pathlib.Path) -> _files.Listing:
    """The files and labels of both splits. Arguments and errors as `load`."""
    shown = printable(str(root))
    if not root.is_dir():
        raise ValueError(f'{name}: there is no folder {shown}; needed are train/CLASS/*.jpg and test/CLASS/*.jpg in it')
    test, *others = [split for split in _TESTS if (root / split).is_dir()] or [None]
    where = root / 'train' if (root / 'train').is_dir() else root
    if where == root and test is not None:
        raise ValueError(f'{name}: {shown} has a folder {test} but no folder train; put the training images there')
    passed = _scan.Passed(root)
    train = _images(name, where, passed)
    if where == root and (near := [one for one in train if one.lower() in _ALMOST]):
        raise ValueError(
            f'{name}: in {shown}, {near[0]!r} would be a class; name the folders of the splits train and test'
        )
    labelled = FLAT not in train
    if labelled and len(train) < 2:
        raise ValueError(
            f'{name}: {printable(str(where))} has {len(train)} class folders with images; at least 2 are needed, or '
            'none for images without labels'
        )
    if test is None:
        return _with_held_out(root, train, passed)
    held_out = _images(name, root / test, passed)
    for other in others:
        passed.add('further folders of test images', root / other)
    if labelled and FLAT not in held_out:
        unknown = sorted(set(held_out) - set(train))
        if unknown:
            raise ValueError(
                f'{name}: {shown}/{test} has the class {printable(unknown[0])!r}, of which {shown}/train has no image'
            )
        for one in sorted(set(train) - set(held_out)):
            passed.add('classes without test images', root / test / one)
    return _listing(root, train, held_out, passed.words())


def _listing(root: pathlib.Path, train: _Found, test: _Found, passed: str) -> _files.Listing:
    """The listing of both splits; the classes are those of train, or of test where only that has labels."""
    classes = [one for one in (test if FLAT in train else train) if one != FLAT]
    label = {FLAT: 0} | {one: number for number, one in enumerate(classes)}
    files, labels = {}, {}
    for split, found in (('train', train), ('test', test)):
        files[split] = [file for one in found for file in found[one]]
        labels[split] = [label[one] for one in found for _ in found[one]]
    names = [printable(one) for one in classes]
    return _files.Listing(root, files, labels, names, passed, FLAT not in train, FLAT not in test)


def _with_held_out(root: pathlib.Path, found: _Found, passed: _scan.Passed) -> _files.Listing:
    """The listing of a folder without test images: `_parts.test_rows` of them are held out."""
    order = list(found)
    held = _parts.test_rows(np.array([order.index(one) for one in found for _ in found[one]]))
    places = iter(held.tolist())
    train, test = {}, {}
    for one in order:
        rows = [(file, next(places)) for file in found[one]]
        train[one] = [file for file, out in rows if not out]
        test[one] = [file for file, out in rows if out]
    if not held.any():
        raise ValueError(
            f'{printable(str(root))} has no class of two images, so none can be held out; add test/CLASS/*.jpg'
        )
    words = f'{held.sum():,} of {len(held):,} images are held out as the test set'
    return dataclasses.replace(_listing(root, train, test, passed.words()), held_out=words)


def _images(name: str, folder: pathlib.Path, passed: _scan.Passed) -> _Found:
    """{class: its images}, sorted; {FLAT: images} of a folder that has images and no folders.

    Empty class folders are passed over, class folders with anything but images are refused.
    """
    found = {}
    outside = _scan.Passed(folder)
    for one in _scan.classes(folder, outside):
        inside = _scan.Passed(folder / one)
        found[one] = sorted(_scan.images(str(folder / one), inside))
        if not found[one] and any(kind != _scan.HIDDEN for kind in inside.count):
            raise ValueError(
                f'{name}: the class folder {printable(str(folder / one))} has no image (passed over are '
                f'{inside.words()}); put images there or remove it'
            )
        if not found[one]:
            outside.add('empty class folders', folder / one)
            del found[one]
        outside.include(inside)
    if not found and 'empty class folders' not in outside.count:
        outside = _scan.Passed(folder)
        flat = sorted(_scan.images(str(folder), outside))
        found = {FLAT: flat} if flat else {}
    passed.include(outside)
    if not found:
        raise ValueError(
            f'{name}: no image in {printable(str(folder))} or its folders; known suffixes: {" ".join(_scan.SUFFIXES)}'
        )
    return found
