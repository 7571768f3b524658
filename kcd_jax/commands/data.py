"""python -m kcd_jax data check | describe | prepare NAME: looks at data, and prepares it."""

from __future__ import annotations

import hashlib
import sys

import numpy as np

from kcd_jax import data
from kcd_jax.commands import launch
from kcd_jax.runtime import exitcodes

_EXAMPLES = """examples:
  python -m kcd_jax data check digits
  python -m kcd_jax data describe folder:64 --dir ~/images
  python -m kcd_jax data prepare cifar100 --dir ~/tensorflow_datasets
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, after one line on stderr if that is not 0."""
    parser = launch.Parser(
        prog='python -m kcd_jax data',
        description='Looks at data sets, and prepares them.',
        epilog=f'known names: {", ".join(data.names())}\n\n{_EXAMPLES}',
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='check | describe | prepare')
    for command, words in (
        ('check', 'print one line on a data set; exit code 2 if it is missing or damaged'),
        ('describe', 'print counts, classes, sizes, duplicates, mean and standard deviation'),
        ('prepare', 'download, prepare and decode a data set'),
    ):
        one = commands.add_parser(
            command,
            help=words,
            description=words,
            epilog=f'example: python -m kcd_jax data {command} cifar100 --dir ~/tensorflow_datasets',
        )
        one.add_argument('name', help='a known name, folder:SIZE, or any image classification set of TFDS')
        one.add_argument(
            '--dir', default='', help='folder of the data (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)'
        )
        if command == 'prepare':
            one.add_argument('--format', choices=('tfrecord', 'array_record'), default='', help='of the files')

    def body() -> int:
        options = parser.parse_args(argv)
        if options.command == 'check':
            print(data.check(options.name, options.dir))
        elif options.command == 'prepare':
            if line := data.prepare(options.name, options.dir, options.format):
                print(line)
            print(data.describe(data.load(options.name, options.dir)))
        else:
            _describe(options.name, options.dir)
        return exitcodes.OK

    return launch.run(body)


def _describe(name: str, dir: str) -> None:
    loaded = data.load(name, dir)
    print(data.describe(loaded))
    splits = {'train': (loaded.train, loaded.labelled), 'test': (loaded.test, loaded.test_labelled)}
    for title, (split, labelled) in splits.items():
        if not labelled:
            print(f'{title + ":":<12} {len(split):,} points without labels')
            continue
        counts = np.bincount(split.labels, minlength=loaded.num_classes)
        print(f'{title + ":":<12} {len(split):,} points, {counts.min():,} to {counts.max():,} per class')
    some = (
        'those of the teacher'
        if not loaded.num_classes
        else ', '.join(loaded.class_names[:10]) + (', ...' if loaded.num_classes > 10 else '')
    )
    print(f'{"classes:":<12} {loaded.num_classes} ({some})')
    height, width, channels = loaded.image_shape
    size = (len(loaded.train) + len(loaded.test)) * height * width * channels
    memory = 'streamed; would take' if loaded.train.streamed else 'takes'
    print(f'{"size:":<12} {height} x {width} x {channels}, 8 bits; {memory} {size / 1e6:,.1f} MB in memory')
    same, other, leaked = duplicates(loaded)
    print(
        f'{"duplicates:":<12} {same:,} training images equal an earlier one of their class, {other:,} one of another '
        f'class; {leaked:,} test images are in train'
    )
    mean, std = (', '.join(f'{x:.4f}' for x in channels) for channels in loaded.normalization)
    print(f'{"pixels:":<12} mean {mean}; standard deviation {std}')
    print(f'{"identity:":<12} {loaded.identity}')


def duplicates(loaded: data.Dataset) -> tuple[int, int, int]:
    """Counts images with equal pixels, reading every image once.

    Returns:
      Training images that equal an earlier one of the same class; of another class; test images that equal a training
      image.
    """
    digests = _digests(loaded.train.images)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    again = first[inverse] != np.arange(len(digests))
    agrees = loaded.train.labels == loaded.train.labels[first[inverse]]
    leaked = np.isin(_digests(loaded.test.images), digests)
    return int((again & agrees).sum()), int((again & ~agrees).sum()), int(leaked.sum())


def _digests(images: np.ndarray | data.Images) -> np.ndarray:
    """S16[N], a digest of each image's pixels; 16 bytes per point are in memory."""
    index = np.arange(len(images))[:, None]
    if isinstance(images, np.ndarray):
        images = data.Images(images, np.arange(len(images)), images.shape[1:])
    batches = data.stream.read(data.stream.Steps(images, index, index, train=False))
    found = np.empty(len(images), 'S16')
    for point, batch in enumerate(batches):
        # Zero bytes at the end are not part of NumPy's strings, but equal digests stay equal.
        found[point] = hashlib.blake2b(batch['image'], digest_size=16).digest()
    return found


if __name__ == '__main__':
    sys.exit(main())
