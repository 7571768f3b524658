"""A folder of images: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val, or validation).

`folder:SIZE` scales the shorter side of every image to SIZE pixels and takes the central SIZE x SIZE; `folder` takes
the images as they are, which must then be of one size. Whether a file is an image is decided by its suffix, and for
unknown suffixes by its content; folders below a class folder count, links are followed. Whatever is passed over is
counted and named, and so are images that cannot be decoded: every file is decoded once, before anything is trained.

Order of the points: by their path, class by class. Classes: the folders of train, sorted.
"""

from __future__ import annotations

import pathlib

from kcd_jax.data import _files, _scan
from kcd_jax.data._dataset import Dataset, Request, printable

OPTIONS = 'SIZE'
_TESTS = ('test', 'val', 'validation')


def load(request: Request) -> Dataset:
    """The whole folder.

    Raises:
      ValueError: no folder, no classes, a test class that train lacks, a class without a readable image, images of
        several sizes and no SIZE, more than the memory.
    """
    size = parse(request)
    if not request.dir:
        raise ValueError(f'{request.name} needs the folder that has train and test: set --config.data.dir')
    return _files.read(request, scan(request.name, pathlib.Path(request.dir).expanduser()), size)


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
    test = next((split for split in _TESTS if (root / split).is_dir()), None)
    missing = 'train' if not (root / 'train').is_dir() else 'test (or val)' if test is None else ''
    if missing:
        raise ValueError(f'{name}: {shown} has no folder {missing}; needed are train/CLASS/*.jpg and test/CLASS/*.jpg')
    passed = _scan.Passed(root)
    train = _images(name, root / 'train', passed)
    held_out = _images(name, root / test, passed)
    unknown = sorted(set(held_out) - set(train))
    if unknown:
        raise ValueError(
            f'{name}: {shown}/{test} has the class {printable(unknown[0])!r}, of which {shown}/train has no image'
        )
    if len(train) < 2:
        raise ValueError(f'{name}: {shown}/train has {len(train)} class folders with images; at least 2 are needed')
    for one in sorted(set(train) - set(held_out)):
        passed.add('classes without test images', root / test / one)
    label = {one: number for number, one in enumerate(train)}
    files, labels = {}, {}
    for split, found in (('train', train), ('test', held_out)):
        files[split] = [file for one in found for file in found[one]]
        labels[split] = [label[one] for one in found for _ in found[one]]
    return _files.Listing(root, files, labels, [printable(one) for one in train], passed.words())


def _images(name: str, folder: pathlib.Path, passed: _scan.Passed) -> dict[str, list[pathlib.Path]]:
    """{class: its images}, sorted; empty folders are passed over, folders with anything but images are refused."""
    found = {}
    for one in _scan.classes(folder, passed):
        inside = _scan.Passed(folder / one)
        found[one] = sorted(_scan.images(str(folder / one), inside))
        if not found[one] and any(kind != _scan.HIDDEN for kind in inside.count):
            raise ValueError(
                f'{name}: the class folder {printable(str(folder / one))} has no image (passed over are '
                f'{inside.words()}); put images there or remove it'
            )
        if not found[one]:
            passed.add('empty class folders', folder / one)
            del found[one]
        passed.include(inside)
    if not found:
        raise ValueError(f'{name}: no image in {printable(str(folder))}/*/; known suffixes: {" ".join(_scan.SUFFIXES)}')
    return found
