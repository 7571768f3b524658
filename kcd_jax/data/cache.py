"""Decoded arrays on disk, so that the second start decodes nothing.

An entry is a folder with one `.npy` file an array and `index.json`: what it was made from (the fingerprint), a CRC-32
of every file, and what else belongs to it. It is written beside its place and renamed, so a reader sees all of it or
nothing. An entry that does not fit its fingerprint or its checksums is made again without a word: it is only a copy.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
_INDEX = 'index.json'
_VERSION = 1  # of what is stored; another one is made again
_STALE_SECONDS = 24 * 3600

_log = logging.getLogger(__name__)


def folder(cache: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where entries are: the argument, else KCD_JAX_CACHE, else kcd_jax under XDG_CACHE_HOME or ~/.cache."""
    if cache or (cache := os.environ.get('KCD_JAX_CACHE')):
        return pathlib.Path(cache).expanduser()
    base = os.environ.get('XDG_CACHE_HOME')
    return (pathlib.Path(base) if base else pathlib.Path.home() / '.cache') / 'kcd_jax'


def fingerprint(files: Iterable[pathlib.Path]) -> dict[str, list[int]]:
    """{path: [bytes, time of change in ns]} of the source files; OSError when one is missing."""
    stats = {str(file): file.stat() for file in files}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in sorted(stats.items())}


def fetch(
    name: str,
    source: str,
    made_from: dict[str, Any],
    make: Callable[[], tuple[Arrays, dict[str, Any]]],
    cache: str | os.PathLike[str] | None = None,
) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of an entry and what else belongs to it; made and stored when there is no sound entry.

    Args:
      name: of the data set, for the folder's name. source: what tells equally named ones apart (a path).
      made_from: JSON; an entry made from anything else is replaced.
      make: () -> ({name: array}, JSON).
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
            '%s was decoded but cannot be kept in %s (%s): every start decodes it again; set KCD_JAX_CACHE to a '
            'writable folder',
            name,
            entry.parent,
            error.strerror or error,
        )
    return arrays, meta


def knows(name: str, source: str, made_from: dict[str, Any], cache: str | os.PathLike[str] | None = None) -> bool:
    """Whether there is an entry made from that; its arrays are not looked at."""
    with contextlib.suppress(Exception):
        _read_index(_entry(name, source, cache), {'version': _VERSION, 'made_from': made_from})
        return True
    return False


def _entry(name: str, source: str, cache: str | os.PathLike[str] | None) -> pathlib.Path:
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
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
            # There is one already: old, damaged, or another process was faster. A folder cannot be replaced in one
            # step; a reader in between finds none and makes its own.
            old = pathlib.Path(tempfile.mkdtemp(prefix='.tmp-', dir=entry.parent))
            with contextlib.suppress(FileNotFoundError):
                entry.rename(old / 'entry')
            scratch.rename(entry)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_stale(parent: pathlib.Path) -> None:
    """What killed processes left behind."""
    for path in parent.glob('.tmp-*'):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
