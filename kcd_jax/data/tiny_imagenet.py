"""Tiny ImageNet: 200 classes of 500 training images of 64 x 64 pixels, and 10,000 validation images to evaluate on.

TFDS does not have it. It is read from the folder `tiny-imagenet-200` as its authors pack it, in the data folder;
`python -m kcd_jax data prepare tiny_imagenet` downloads and unpacks it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pathlib
import shutil
import urllib.request

from kcd_jax.data import _files
from kcd_jax.data._dataset import Dataset, Request, Shapes, progress
from kcd_jax.data._prepared import data_dir

NAME = 'tiny_imagenet'
SHAPES = Shapes(train=100_000, test=10_000, num_classes=200, image_shape=(64, 64, 3))
FOLDER = 'tiny-imagenet-200'
URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
MD5 = '90528d7ca1a48142e341f4ef8d21d0de'
_BLOCK = 1 << 20


def find(dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Its folder: `dir`/tiny-imagenet-200, or `dir` itself; None where there is none."""
    root = data_dir(dir)
    return next((path for path in (root / FOLDER, root) if (path / 'wnids.txt').is_file()), None)


def load(request: Request) -> Dataset:
    """The training and the validation images; ValueError if files are missing."""
    root = find(request.dir)
    if root is None:
        raise ValueError(
            f'{NAME} is not in {data_dir(request.dir)}; run "python -m kcd_jax data prepare {NAME}" where there is a '
            f'network, or set --config.data.dir to the folder that has {FOLDER}'
        )
    return _files.read(request, _scan(root), None)


def _scan(root: pathlib.Path) -> _files.Listing:
    try:
        wnids = sorted((root / 'wnids.txt').read_text().split())
        lines = (root / 'words.txt').read_text('utf-8').splitlines()
        words = dict(line.split('\t', 1) for line in lines if '\t' in line)
        lines = (root / 'val' / 'val_annotations.txt').read_text().splitlines()
        annotated = sorted(tuple(line.split('\t')[:2]) for line in lines if line)
    except (OSError, ValueError) as error:
        raise ValueError(f'{root} is not {NAME} as it was packed ({error}); delete it and prepare it again') from error
    number = {wnid: label for label, wnid in enumerate(wnids)}
    train = [file for wnid in wnids for file in sorted((root / 'train' / wnid / 'images').glob('*.JPEG'))]
    test = [root / 'val' / 'images' / name for name, _ in annotated]
    absent = next((file for file in test if not file.is_file()), None)
    if absent or not train or not test:
        raise ValueError(f'{absent or root / "train"} is missing; delete {root} and prepare {NAME} again')
    labels = {'train': [number[file.parts[-3]] for file in train], 'test': [number[wnid] for _, wnid in annotated]}
    classes = [words.get(wnid, wnid).split(',')[0] for wnid in wnids]
    return _files.Listing(root, {'train': train, 'test': test}, labels, classes)


def prepare(request: Request, file_format: str = '') -> str:
    """Downloads and unpacks it, unless it is there; returns a line on its files.

    Raises:
      ValueError: no connection, or the archive is not the expected one.
    """
    if file_format:
        raise ValueError(f'{NAME} is used as its authors pack it, as JPEG files; leave out --format')
    root = find(request.dir) or _unpack(data_dir(request.dir))
    size = sum(file.stat().st_size for file in root.rglob('*') if file.is_file())
    return f'{root}: {size / 1e6:,.1f} MB of JPEG files'


def _unpack(root: pathlib.Path) -> pathlib.Path:
    """Downloads the archive unless it is there, unpacks it, and returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    archive, scratch = root / f'{FOLDER}.zip', root / f'{FOLDER}.incomplete'
    if not archive.exists():
        _download(archive)
    if hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest() != MD5:
        raise ValueError(f'{archive} is not the archive of {URL} (its MD5 differs); delete it and prepare {NAME} again')
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.unpack_archive(archive, scratch)
    (scratch / FOLDER).rename(root / FOLDER)
    scratch.rmdir()
    archive.unlink()
    return root / FOLDER


def _download(archive: pathlib.Path) -> None:
    part = archive.with_suffix('.part')
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer, open(part, 'wb') as file:
            size = int(answer.headers.get('Content-Length') or 0)
            for block in progress(iter(lambda: answer.read(_BLOCK), b''), -(-size // _BLOCK), f'{NAME}: downloading'):
                file.write(block)
            if size > file.tell():
                raise OSError(f'the connection ended after {file.tell():,} of {size:,} bytes')
    except (OSError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        reason = getattr(error, 'reason', None) or error
        raise ValueError(
            f'{NAME} cannot be downloaded from {URL} ({reason}); put tiny-imagenet-200.zip into {archive.parent}'
        ) from error
    part.rename(archive)
