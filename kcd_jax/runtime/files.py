"""Atomic file writes: a process killed at any moment leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

PLAIN_BYTES = 2**26  # larger archives are not compressed


def parsed(line: bytes) -> Any:
    """The value of a line of JSON; None if it is not valid JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _plain_value(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by None, and NumPy scalars by Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | jax.Array) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text of Python and NumPy values; numbers that are not finite become null."""
    return json.dumps(_plain_value(value), indent=indent, allow_nan=False, default=str)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` once it is complete. Processes that write the same one take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with _own(partial) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, path)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OSError(f'{path} cannot be written ({error.strerror}); make room or choose another place') from error


def _own(path: pathlib.Path) -> BinaryIO:
    """An empty file that no other process writes until it is closed, or has another name."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b')
        with contextlib.suppress(OSError):  # file systems without locks: one process at a time is up to the user
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                file.truncate()
                return file
        file.close()  # the process that had it gave it its name, or removed it


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file; on OSError the old one is unchanged."""
    with _replacing(path) as file:
        file.write(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file; on OSError the old one is unchanged."""
    write_bytes(path, text.encode())


def write_npz(path: str | pathlib.Path, **arrays: Any) -> None:
    """Writes a NumPy archive atomically, in chunks, to bound memory.

    Large archives are not compressed: values and orders shrink by only a quarter, and compressing those of 100 million
    points takes a minute.

    Args:
      path: of the archive; its folder is made if it does not exist.
      **arrays: by name.

    Raises:
      OSError: the file cannot be written; an existing one is unchanged.
    """
    large = sum(array.nbytes for array in arrays.values()) > PLAIN_BYTES
    compression = zipfile.ZIP_STORED if large else zipfile.ZIP_DEFLATED
    with (
        _replacing(pathlib.Path(path)) as file,
        zipfile.ZipFile(file, 'w', compression, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as part:
                np.lib.format.write_array(part, np.asanyarray(array), allow_pickle=False)


def is_whole_npz(path: pathlib.Path) -> bool:
    """Whether a file is an archive whose members all match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file does not exist or does not hold an object."""
    try:
        content = parsed(path.read_bytes())
    except FileNotFoundError:
        return None
    return content if isinstance(content, dict) else None
