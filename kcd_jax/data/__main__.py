"""python -m kcd_jax.data describe | prepare | check NAME: looks at data, and makes them ready.

describe  counts, classes, sizes, exact duplicates, mean and standard deviation; writes a contact sheet
prepare   downloads and prepares (a TFDS set), or writes a prepared one again as array_record; fills the cache
check     one line; exit code 1 and one line when something is missing or damaged
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np

from kcd_jax import data
from kcd_jax.data import base, preparing, tcifar, tfds, tiny_imagenet
from kcd_jax.data import prepared as preparations

_SAMPLE = 2000  # images of a streamed set that are looked at
_SHEET_ROWS, _SHEET_COLUMNS, _SHEET_PIXELS = 20, 10, 64


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 after one line on stderr."""
    known = f'Known names: {", ".join(data.names())}.'
    parser = argparse.ArgumentParser(prog='python -m kcd_jax.data', description=known)
    commands = parser.add_subparsers(dest='command', required=True)
    for command, words in (
        ('describe', 'print what is in a data set and write a contact sheet'),
        ('prepare', 'download, prepare and decode a data set'),
        ('check', 'say in a line whether a data set is there and sound'),
    ):
        one = commands.add_parser(command, help=words)
        one.add_argument('name', help='a known name, folder:SIZE, or any image classification set of TFDS')
        one.add_argument('--dir', default='', help='folder of the data; default: TFDS_DATA_DIR, else that of TFDS')
        if command == 'describe':
            one.add_argument('--out', default='', help='the contact sheet; default: NAME.png')
        if command == 'prepare':
            one.add_argument('--format', choices=('tfrecord', 'array_record'), default='', help='of the files')
            one.add_argument('--to', default='', help='another folder, to write a prepared set again as array_record')
    options = parser.parse_args(arguments)
    try:
        if options.command == 'check':
            print(data.check(options.name, options.dir))
        elif options.command == 'prepare':
            _prepare(options.name, options.dir, options.format, options.to)
        else:
            _describe(options.name, options.dir, options.out)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def _prepare(name: str, dir: str, file_format: str, to: str) -> None:
    if name == tiny_imagenet.NAME:
        path = tiny_imagenet.prepare(dir)
        print(f'{path}: {_megabytes(path)} of JPEG files')
    source = 'cifar100' if name.partition(':')[0] == tcifar.NAME else tfds.parse(name)[0]
    if data.needs_tensorflow(name, dir):
        preparing.prepare(source, dir, file_format or 'tfrecord')
    prepared = preparations.find(source, dir)
    if prepared is not None:
        if file_format not in ('', prepared.file_format) or to:
            if not to or file_format != 'array_record':
                raise ValueError(
                    f'{name} is prepared as {prepared.file_format} in {prepared.path}; to have it as array_record too, '
                    'give --format array_record and another folder by --to'
                )
            dir = to
            preparing.convert(prepared.name, prepared.path.parents[prepared.name.count('/') + 1], to)
            prepared = preparations.find(source, dir)
        print(f'{prepared.path}: {_megabytes(prepared.path)} as {prepared.file_format}')
    print(data.describe(data.load(name, dir)))


def _megabytes(folder: pathlib.Path) -> str:
    return f'{sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6:,.1f} MB'


def _describe(name: str, dir: str, out: str) -> None:
    loaded = data.load(name, dir)
    print(data.describe(loaded))
    for title, split in (('train', loaded.train), ('test', loaded.test)):
        counts = np.bincount(split.labels, minlength=loaded.num_classes)
        print(f'{title + ":":<12} {len(split):,} points, {counts.min():,} to {counts.max():,} a class')
    some = ', '.join(loaded.class_names[:10]) + (', ...' if loaded.num_classes > 10 else '')
    print(f'{"classes:":<12} {loaded.num_classes} ({some})')
    height, width, channels = loaded.image_shape
    size = (len(loaded.train) + len(loaded.test)) * height * width * channels
    memory = 'streamed, for it would take' if loaded.train.streamed else 'takes'
    print(f'{"size:":<12} {height} x {width} x {channels}, 8 bits; {memory} {size / 1e6:,.1f} MB in memory')
    seen, sample = loaded.train.images, ''
    if loaded.train.streamed:
        seen = seen[np.linspace(0, len(seen) - 1, min(_SAMPLE, len(seen))).astype(int)]
        sample = f' (of {len(seen):,} images)'
    else:
        same, other, leaked = duplicates(loaded)
        print(
            f'{"duplicates:":<12} {same} training images equal an earlier one of their class, {other} one of another '
            f'class; {leaked} test images are in train'
        )
    measured = base.measure(seen)
    for title, (mean, std) in ((f'measured{sample}', measured), ('used', loaded.normalization)):
        words = [', '.join(f'{x:.4f}' for x in values) for values in (mean, std)]
        print(f'{title + ":":<12} mean {words[0]}; standard deviation {words[1]}')
    path = pathlib.Path(out or f'{name.replace("/", "_").replace(":", "_")}.png')
    contact_sheet(loaded, path)
    print(f'{"sheet:":<12} {path}: a class each row')


def duplicates(loaded: data.Dataset) -> tuple[int, int, int]:
    """Training images that equal an earlier one, of the same class and of another; test images that are in train."""
    first: dict[bytes, int] = {}
    same = other = 0
    for image, label in zip(loaded.train.images, loaded.train.labels.tolist()):
        earlier = first.setdefault(image.tobytes(), label)
        same += earlier == label
        other += earlier != label
    return same - len(first), other, sum(image.tobytes() in first for image in loaded.test.images)


def contact_sheet(loaded: data.Dataset, path: pathlib.Path) -> None:
    """Ten training images of each of up to twenty classes, evenly chosen, as a PNG."""
    from PIL import Image

    classes = np.unique(np.linspace(0, loaded.num_classes - 1, _SHEET_ROWS).round().astype(int))
    sheet = Image.new('RGB', (_SHEET_COLUMNS * _SHEET_PIXELS, len(classes) * _SHEET_PIXELS))
    for row, label in enumerate(classes):
        for column, point in enumerate(np.flatnonzero(loaded.train.labels == label)[:_SHEET_COLUMNS]):
            image = Image.fromarray(np.ascontiguousarray(loaded.train.images[point]))
            larger = max(image.size) > _SHEET_PIXELS
            image = image.resize((_SHEET_PIXELS,) * 2, Image.Resampling.BOX if larger else Image.Resampling.NEAREST)
            sheet.paste(image, (column * _SHEET_PIXELS, row * _SHEET_PIXELS))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


if __name__ == '__main__':
    sys.exit(main())
