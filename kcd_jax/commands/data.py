"""python -m kcd_jax data describe | prepare | check NAME: looks at data, and makes them ready.

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
from kcd_jax.data import look, preparing, tcifar, tfds, tiny_imagenet
from kcd_jax.data import prepared as preparations


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0, or 1 after one line on stderr."""
    known = f'Known names: {", ".join(data.names())}.'
    parser = argparse.ArgumentParser(prog='python -m kcd_jax data', description=known)
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
            one.add_argument(
                '--sample', type=_count, default=0, help='training images that are looked at; default: all'
            )
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
            _describe(options.name, options.dir, options.out, options.sample)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of images, or 0 for all')
    return int(text)


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


def _describe(name: str, dir: str, out: str, sample: int) -> None:
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
    seen = look.look(loaded, sample)
    part = '' if seen.images == len(loaded.train) else f' (of {seen.images:,} images; --sample=0 looks at all)'
    print(
        f'{"duplicates:":<12} {seen.same:,} training images equal an earlier one of their class, {seen.other:,} one of '
        f'another class; {seen.leaked:,} test images are in train{part}'
    )
    for title, values in (('measured', seen.normalization), ('used', loaded.normalization)):
        mean, std = (', '.join(f'{x:.4f}' for x in channels) for channels in values)
        print(f'{title + ":":<12} mean {mean}; standard deviation {std}{part if title == "measured" else ""}')
    path = pathlib.Path(out or f'{name.replace("/", "_").replace(":", "_")}.png')
    look.contact_sheet(loaded, path)
    print(f'{"sheet:":<12} {path}: a class each row')


if __name__ == '__main__':
    sys.exit(main())
