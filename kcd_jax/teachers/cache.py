"""A cache of a frozen teacher's answers: one row of numbers per (point, view), shared by every run that asks for them.

On disk a cache is a folder `DIR/IDENTITY/` with `meta.json`, `rows.bin` (row i at byte i * row_bytes) and `tags.u32`.
A row's bytes are written first and its tag afterwards; the tag is a CRC-32 of position and bytes, 0 means absent. So a
kill at any instant leaves a valid file, a damaged row is computed again, and two processes may fill one file at once:
equal identities give equal bytes. Both files are sparse. Nothing is ever evicted: at the bound, or on a full disk,
storing stops and answers are computed as if there were no cache.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kcd_jax.runtime import console, files

DTYPES = ('float32', 'float16')
_BLOCK = 4096  # rows that a cache in memory grows by
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Cache:
    """Rows f32[width] by position, 0 <= position < size.

    Attributes:
      stored, served, damaged: rows written, read, and found damaged by this object so far.
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | None,
        identity: str,
        *,
        size: int,
        width: int,
        dtype: str = 'float32',
        limit_bytes: float = float('inf'),
        about: Mapping[str, Any] | None = None,
    ):
        """Opens the cache of `identity`, made if it does not exist.

        Args:
          where: the folder that holds caches; None keeps the rows in this process's memory.
          identity: of everything that decides a row: teacher, data, views, program.
          size: number of positions.
          width: numbers per row.
          dtype: of the stored numbers, 'float32' (exact) or 'float16'.
          limit_bytes: bound on the rows that are stored.
          about: JSON values for people, kept in meta.json.

        Raises:
          ValueError: an unknown dtype, or the folder holds a cache of another layout under the same identity.
          OSError: the folder cannot be written.
        """
        if dtype not in DTYPES:
            raise ValueError(f'teaching.cache_dtype is {dtype!r}; use one of {", ".join(DTYPES)}')
        self.size, self.width, self.dtype = size, width, np.dtype(dtype)
        self.row_bytes = width * self.dtype.itemsize
        self.bound(limit_bytes)
        self.stored = self.served = self.damaged = 0
        if where is None:
            # Blocks grow with the rows that are stored; zeros that were never written take no memory.
            self._place = np.zeros(size, np.int32)  # 0: absent, else the row's number in the blocks, from 1
            self._blocks: list[np.ndarray] = []
            self._files: tuple[int, int] | None = None
            self.present = 0
            return
        folder = pathlib.Path(where).expanduser() / identity
        folder.mkdir(parents=True, exist_ok=True)
        layout = {'size': size, 'width': width, 'dtype': dtype}
        known = files.read_json(folder / 'meta.json')
        if known is None:
            files.write_text(folder / 'meta.json', json.dumps({**layout, **(about or {})}, indent=1) + '\n')
        elif {key: known.get(key) for key in layout} != layout:
            raise ValueError(f'{folder} is a cache of another layout; remove it or choose another teaching.cache')
        self._files = tuple(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666) for name in ('rows.bin', 'tags.u32'))
        self.folder = folder
        self.present = self._count()

    def bound(self, limit_bytes: float) -> None:
        """Bounds the rows that are stored from now on; a bound that is raised lets more in."""
        self.limit_rows = min(float(self.size), limit_bytes / (self.row_bytes + 4))
        self._full = False

    def _count(self) -> int:
        """Rows that are there, by their tags."""
        count, start, length = 0, 0, os.fstat(self._files[1]).st_size
        while start < length:
            part = os.pread(self._files[1], 1 << 24, start)
            if not part:
                break
            count += int(np.count_nonzero(np.frombuffer(part[: len(part) // 4 * 4], np.uint32)))
            start += len(part)
        return count

    def get(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that are present and whole.

        Args:
          positions: i64[M].

        Returns:
          (f32[M, width], bool[M]); rows that are absent are 0.
        """
        rows = np.zeros((len(positions), self.width), np.float32)
        if self._files is None:
            places = self._place[positions].astype(np.int64) - 1
            found = places >= 0
            for block in np.unique(places[found] // _BLOCK):
                here = found & (places // _BLOCK == block)
                rows[here] = self._blocks[block][places[here] % _BLOCK]
            self.served += int(found.sum())
            return rows, found
        found = np.zeros(len(positions), bool)
        for number, position in enumerate(positions.tolist()):
            content, tag = self._read(position)
            if tag == 0:
                continue
            if len(content) != self.row_bytes or _tag(position, content) != tag:
                self.damaged += 1
                continue
            rows[number] = np.frombuffer(content, self.dtype)
            found[number] = True
        self.served += int(found.sum())
        return rows, found

    def put(self, positions: np.ndarray, rows: np.ndarray) -> None:
        """Stores rows f32[M, width] at the positions i64[M], as far as the bound and the disk allow."""
        if self._full:
            return
        for position, row in zip(positions.tolist(), np.ascontiguousarray(rows, self.dtype), strict=True):
            known = self._knows(position)  # a damaged row is written again, and counted once
            if not known and self.present >= self.limit_rows:
                self._stop(f'the cache of teacher outputs reached its bound ({self.present:,} rows)')
                return
            if self._files is None:
                if not known:
                    self._keep(position, row)
                continue
            content = row.tobytes()
            try:
                self._write(position, content, _tag(position, content))
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._stop(f'the cache of teacher outputs cannot grow ({error.strerror})')
                return
            self.present += not known
            self.stored += 1

    def _knows(self, position: int) -> bool:
        """Whether there is a row at a position, whole or damaged."""
        if self._files is None:
            return bool(self._place[position])
        return os.pread(self._files[1], 4, position * 4).strip(b'\0') != b''

    def _keep(self, position: int, row: np.ndarray) -> None:
        """Stores a row in memory."""
        block, number = divmod(self.present, _BLOCK)
        if block == len(self._blocks):
            self._blocks.append(np.empty((_BLOCK, self.width), self.dtype))
        self._blocks[block][number] = row
        self.present += 1
        self.stored += 1
        self._place[position] = self.present

    def rounded(self, rows: np.ndarray) -> np.ndarray:
        """Rows as they would come back from the cache, so that stored and computed answers are the same numbers."""
        return rows if self.dtype == np.float32 else rows.astype(self.dtype).astype(np.float32)

    def _stop(self, reason: str) -> None:
        self._full = True
        console.say(f'{reason}; further answers are computed each time (raise teaching.cache_gb, or make room)')

    def _read(self, position: int) -> tuple[bytes, int]:
        tag = os.pread(self._files[1], 4, position * 4)
        if len(tag) < 4 or tag == b'\0\0\0\0':
            return b'', 0
        return os.pread(self._files[0], self.row_bytes, position * self.row_bytes), int.from_bytes(tag, 'little')

    def _write(self, position: int, content: bytes, tag: int) -> None:
        _pwrite(self._files[0], content, position * self.row_bytes)
        _pwrite(self._files[1], tag.to_bytes(4, 'little'), position * 4)

    def sync(self) -> None:
        """Flushes what was stored to the disk."""
        for file in self._files or ():
            os.fsync(file)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files or ():
            os.close(file)
        self._files = None


def _tag(position: int, content: bytes) -> int:
    """CRC-32 of a row at a position, never 0 (absent)."""
    return zlib.crc32(content, zlib.crc32(position.to_bytes(8, 'little'))) or 1


def _pwrite(file: int, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, start)
        view, start = view[count:], start + count
