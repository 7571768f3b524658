"""Decoded arrays on disk, so that the second start decodes nothing; and the digests of source files.

An entry is a folder with one `.npy` file per array and `index.json`: what it was made from (digests of the source
files' content, and settings), a CRC-32 of every array, and metadata. It is written to a scratch folder and renamed, so
readers see all of it or nothing. An entry that does not match is silently made again: it is only a copy.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kcd_jax import paths
from kcd_jax.data._dataset import say

Arrays = dict[str, np.ndarray]
_INDEX = 'index.json'
_VERSION = 4  # of the stored format; entries of other versions are made again
_STALE_SECONDS = 24 * 3600
# Up to this size, files are read and hashed at every start. Above it, a digest is remembered for as long as a file's
# path, size, inode and times of change stay the same.
_ALWAYS_HASHED_BYTES = 256_000_000


def digests(
    name: str, root: pathlib.Path, files: Sequence[str], cache: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """SHA-256 of the content of each file, u8[N, 32]; names, which are relative to `root`, do not enter."""
    stats = [_stat(root / file) for file in files]
    remember = sum(size for size, *_ in stats) > _ALWAYS_HASHED_BYTES
    entry = _entry(f'{name}-digests', str(root.resolve()), cache)
    wanted = {'version': _VERSION, 'made_from': 'content'}
    known = {}
    if remember:
        with contextlib.suppress(Exception):
            arrays, _ = _read(entry, wanted)
            for file, stat, digest in zip(arrays['files'].tolist(), arrays['stats'].tolist(), arrays['digests']):
                known[file, *stat] = digest
    todo = [file for file, stat in zip(files, stats) if (file, *stat) not in known]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = dict(zip(todo, pool.map(lambda file: _digest(root / file), todo)))
    found = [hashed[file] if file in hashed else known[file, *stat] for file, stat in zip(files, stats)]
    found = np.array(found, np.uint8).reshape(len(files), 32)
    if remember and todo:
        with contextlib.suppress(OSError):  # without it, they are hashed again
            arrays = {'files': np.array(files), 'stats': np.array(stats, np.int64), 'digests': found}
            _write(entry, arrays, wanted | {'meta': {}})
    return found


def combined(digests: np.ndarray) -> str:
    """One digest of several, u8[N, 32], in their order: 64 hexadecimal digits."""
    return hashlib.sha256(digests.tobytes()).hexdigest()


def _stat(file: pathlib.Path) -> tuple[int, int, int, int]:
    try:
        stat = file.stat()
    except OSError:
        return (0, 0, 0, 0)
    # Programs cannot set the time of change (ctime), unlike that of modification (mtime).
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino % 2**63)


def _digest(file: pathlib.Path) -> np.ndarray:
    try:
        with open(file, 'rb') as content:
            digest = hashlib.file_digest(content, 'sha256')
    except OSError as error:
        digest = hashlib.sha256(f'unreadable: {error.errno}'.encode())
    return np.frombuffer(digest.digest(), np.uint8)


def fetch(
    name: str,
    source: str,
    made_from: dict[str, Any],
    make: Callable[[], tuple[Arrays, dict[str, Any]]],
    cache: str | os.PathLike[str] | None = None,
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and metadata of an entry; made and stored when there is no sound entry.

    Args:
      name: of the data set, for the folder's name.
      source: what tells data sets of the same name apart (a path).
      made_from: JSON with the digest of the sources; an entry made from anything else is replaced.
      make: () -> ({name: array}, JSON).
      cache: as in `folder`.
    """
    entry = _entry(name, source, cache)
    wanted = {'version': _VERSION, 'made_from': made_from}
    with contextlib.suppress(Exception):
        return _read(entry, wanted)
    arrays, meta = make()
    try:
        _write(entry, arrays, wanted | {'meta': meta})
    except OSError as error:
        say(
            f'{name} was decoded but cannot be stored in {entry.parent} ({error.strerror or error}): every start '
            'decodes it again; set KCD_JAX_CACHE to a writable folder'
        )
    return arrays, meta


def _entry(name: str, source: str, cache: str | os.PathLike[str] | None) -> pathlib.Path:
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    safe = ''.join(letter if letter.isalnum() or letter in '._-' else '_' for letter in name)
    return paths.cache_folder(cache) / f'{safe}-{digest}'


def _read(entry: pathlib.Path, wanted: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """The entry; any exception at all when it is missing, old or damaged."""
    index = json.loads((entry / _INDEX).read_text())
    if any(index[key] != json.loads(json.dumps(value)) for key, value in wanted.items()):
        raise ValueError('made from something else')
    arrays = {name: np.load(entry / f'{name}.npy', allow_pickle=False) for name in index['arrays']}
    if {name: _signature(array) for name, array in arrays.items()} != index['arrays']:
        raise ValueError('damaged')
    return arrays, index['meta']


def _signature(array: np.ndarray) -> list[Any]:
    return [zlib.crc32(array), array.dtype.str, list(array.shape)]


def _write(entry: pathlib.Path, arrays: Arrays, index: dict[str, Any]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    for left in entry.parent.glob('.tmp-*'):  # by a process that was killed
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix='.tmp-', dir=entry.parent))
    try:
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            np.save(scratch / f'{name}.npy', array, allow_pickle=False)
        signatures = {name: _signature(array) for name, array in arrays.items()}
        (scratch / _INDEX).write_text(json.dumps(index | {'arrays': signatures}, indent=1))
        scratch.chmod(0o755)
        try:
            scratch.rename(entry)
        except OSError:
            # There is one already: old, damaged, or written by another process. A folder cannot be replaced in one
            # step; a reader in between finds none and makes its own.
            old = pathlib.Path(tempfile.mkdtemp(prefix='.tmp-', dir=entry.parent))
            with contextlib.suppress(FileNotFoundError):
                entry.rename(old / 'entry')
            scratch.rename(entry)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
