"""Decoded arrays on disk, so that the second start decodes nothing; and the digests of source files.

An entry is a folder with one `.npy` file per array and `index.json`: what it was made from (digests of the source
files' content, and settings), a CRC-32 of every file, and metadata. It is written to a scratch folder and renamed, so
readers see all of it or nothing. An entry that does not match is silently made again: it is only a copy.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
_INDEX = 'index.json'
_VERSION = 2  # of the stored format; entries of other versions are made again
_STALE_SECONDS = 24 * 3600
# Up to this size, files are read and hashed at every start. Above it, a digest is remembered for as long as a file's
# path, size, inode and times of change stay the same.
_ALWAYS_HASHED_BYTES = 256_000_000

_log = logging.getLogger(__name__)


def folder(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where entries are: the argument, else KCD_JAX_CACHE, else kcd_jax under XDG_CACHE_HOME or ~/.cache."""
    if cache or (cache := os.environ.get('KCD_JAX_CACHE')):
        return pathlib.Path(cache).expanduser()
    base = os.environ.get('XDG_CACHE_HOME')
    return (pathlib.Path(base) if base else pathlib.Path.home() / '.cache') / 'kcd_jax'


def digests(
    name: str, root: pathlib.Path, files: Sequence[str], cache: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """SHA-256 of the content of each file; its place and name do not enter.

    Args:
      name: of the data set, for the cache entry.
      root: folder that the names are relative to.
      files: relative names.
      cache: as in `folder`.

    Returns:
      u8[N, 32]. Unreadable files count as such.
    """
    stats = np.array([_stat(root / file) for file in files], np.int64).reshape(len(files), 4)
    found = np.zeros((len(files), 32), np.uint8)
    todo = np.ones(len(files), bool)
    remember = int(stats[:, 0].sum()) > _ALWAYS_HASHED_BYTES
    entry = _entry(f'{name}-digests', str(root.resolve()), cache)
    wanted = {'version': _VERSION, 'made_from': 'content'}
    if remember:
        with contextlib.suppress(Exception):
            arrays, _ = _read(entry, wanted)
            row = {file: number for number, file in enumerate(arrays['files'].tolist())}
            for number, file in enumerate(files):
                known = row.get(file)
                if known is not None and (arrays['stats'][known] == stats[number]).all():
                    found[number], todo[number] = arrays['digests'][known], False
    if todo.any():
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            points = np.flatnonzero(todo).tolist()
            for number, digest in zip(points, pool.map(lambda i: _digest(root / files[i]), points)):
                found[number] = np.frombuffer(digest, np.uint8)
        if remember:
            with contextlib.suppress(OSError):  # without it, they are hashed again
                arrays = {'files': np.array(files), 'stats': stats, 'digests': found}
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
    # The time of the last change of the inode cannot be set by programs, unlike that of the last modification.
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino % 2**63)


def _digest(file: pathlib.Path) -> bytes:
    try:
        with open(file, 'rb') as content:
            return hashlib.file_digest(content, 'sha256').digest()
    except OSError as error:
        return hashlib.sha256(f'unreadable: {error.errno}'.encode()).digest()


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
        _log.warning(
            '%s was decoded but cannot be stored in %s (%s): every start decodes it again; set KCD_JAX_CACHE to a '
            'writable folder',
            name,
            entry.parent,
            error.strerror or error,
        )
    return arrays, meta


def knows(name: str, source: str, made_from: dict[str, Any], cache: str | os.PathLike[str] | None = None) -> bool:
    """Whether there is an entry made from that; its arrays are not read."""
    with contextlib.suppress(Exception):
        _read_index(_entry(name, source, cache), {'version': _VERSION, 'made_from': made_from})
        return True
    return False


def _entry(name: str, source: str, cache: str | os.PathLike[str] | None) -> pathlib.Path:
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    safe = ''.join(letter if letter.isalnum() or letter in '._-' else '_' for letter in name)
    return folder(cache) / f'{safe}-{digest}'


def _read_index(entry: pathlib.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    index = json.loads((entry / _INDEX).read_text())
    if any(index[key] != json.loads(json.dumps(value)) for key, value in wanted.items()):
        raise ValueError('made from something else')
    return index


def _read(entry: pathlib.Path, wanted: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """The entry; any exception at all when it is missing, old or damaged."""
    index = _read_index(entry, wanted)
    arrays = {}
    for name, checksum in index['arrays'].items():
        content = (entry / f'{name}.npy').read_bytes()
        if zlib.crc32(content) != checksum:
            raise ValueError('damaged')
        arrays[name] = _from_npy(content)
    return arrays, index['meta']


def _from_npy(content: bytes) -> np.ndarray:
    """A .npy file's content as a read-only array on the same bytes."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if fortran:
        raise ValueError('not in C order')
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)


def _write(entry: pathlib.Path, arrays: Arrays, index: dict[str, Any]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix='.tmp-', dir=entry.parent))
    try:
        checksums = {}
        for name, array in arrays.items():
            path = scratch / f'{name}.npy'
            np.save(path, np.ascontiguousarray(array), allow_pickle=False)
            checksums[name] = zlib.crc32(path.read_bytes())
        (scratch / _INDEX).write_text(json.dumps(index | {'arrays': checksums}, indent=1))
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


def _remove_stale(parent: pathlib.Path) -> None:
    """Deletes what killed processes left behind."""
    for path in parent.glob('.tmp-*'):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
