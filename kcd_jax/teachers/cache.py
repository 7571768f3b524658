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
import weakref
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kcd_jax import paths
from kcd_jax.runtime import console, files

DTYPES = ('float32', 'float16')
_BLOCK = 4096  # rows that a cache in memory grows by
_SHARE = 16  # the rows of other processes are counted again when a sixteenth of the room that was left is written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Cache:
    """Rows f32[width] by position, 0 <= position < size.

    Attributes:
      stored, served, damaged: rows written, read, and found damaged by this object so far.
      present: rows that are there.
      full: whether no more rows are stored: the bound is reached, or the disk takes no more.
      user: what uses it now, a weak reference, for those who keep several caches in memory.
    """

    user: Callable[[], Any] = staticmethod(lambda: None)

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
        room: Callable[[Cache], bool] | None = None,
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
          room: whether a cache in memory may keep another row, besides the bound; asked before each.

        A folder that cannot be written is read only; where there is nothing to read, one line says so, and the rows are
        kept in memory.

        Raises:
          ValueError: an unknown dtype, or the folder holds a cache of another layout under the same identity.
        """
        if dtype not in DTYPES:
            raise ValueError(f'teaching.cache_dtype is {dtype!r}; use one of {", ".join(DTYPES)}')
        self.size, self.width, self.dtype = size, width, np.dtype(dtype)
        self.row_bytes = width * self.dtype.itemsize
        self.stored = self.served = self.damaged = self.present = 0
        self._read_only, self._room = False, room
        self._files: tuple[int, int] | None = None
        if where is not None:
            self.folder = paths.expand(where) / identity
            self._files = self._open({'size': size, 'width': width, 'dtype': dtype}, about or {})
        if self._files is None:
            # Blocks grow with the rows that are stored; zeros that were never written take no memory.
            self._place = np.zeros(size, np.int32)  # 0: absent, else the row's number in the blocks, from 1
            self._blocks: list[np.ndarray] = []
        self._closing = weakref.finalize(self, _close, self._files or ())
        self.bound(limit_bytes)

    def _open(self, layout: dict[str, Any], about: Mapping[str, Any]) -> tuple[int, int] | None:
        """Its two files, made if they do not exist; None if they can be neither made nor read."""
        places = [self.folder / name for name in ('rows.bin', 'tags.u32')]
        known = files.read_json(self.folder / 'meta.json') if self.folder.is_dir() else None
        if known is not None and {key: known.get(key) for key in layout} != layout:
            raise ValueError(f'{self.folder} is a cache of another layout; remove it or choose another teaching.cache')
        try:
            if known is None:
                files.write_text(self.folder / 'meta.json', json.dumps({**layout, **about}, indent=1) + '\n')
            return tuple(os.open(place, os.O_RDWR | os.O_CREAT, 0o666) for place in places)
        except OSError as error:
            self._read_only = known is not None and all(os.access(place, os.R_OK) for place in places)
            kept = 'it is only read' if self._read_only else 'answers are kept in memory'
            reason = getattr(error.__cause__ or error, 'strerror', error)
            console.say(f'the cache of teacher outputs {self.folder} cannot be written ({reason}); {kept}')
        return tuple(os.open(place, os.O_RDONLY) for place in places) if self._read_only else None

    def bound(self, limit_bytes: float) -> None:
        """Bounds the rows that are stored from now on; a higher bound lets more in."""
        self.limit_bytes = limit_bytes
        self.limit_rows = min(float(self.size), limit_bytes / (self.row_bytes + 4))
        self.full = self._read_only
        self._recount()

    @property
    def memory(self) -> int:
        """Bytes of the rows that it keeps in memory."""
        return 0 if self._files is not None else self.present * (self.row_bytes + 4)

    @property
    def in_memory(self) -> bool:
        """Whether rows stay in memory, for want of a folder or because it can be neither written nor read."""
        return self._files is None

    @property
    def on_disk(self) -> bool:
        """Whether what is stored goes to its folder."""
        return not self.in_memory and not self._read_only

    def _recount(self) -> None:
        """Counts the rows on disk, others' too, and says when to do it again: 16 writers together keep to the bound."""
        if self._files is not None:
            self.present = self._count()
        self._recount_at = self.stored + (self.limit_rows - self.present) // _SHARE

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
        if self.full:
            return
        if self._files is not None and self.stored >= self._recount_at:
            self._recount()
        for position, row in zip(positions.tolist(), np.ascontiguousarray(rows, self.dtype), strict=True):
            known = self._knows(position)  # a damaged row is written again, and counted once
            if not known and self.present + 1 > self.limit_rows:
                self._stop(f'the cache of teacher outputs reached its bound ({self.present:,} rows)')
                return
            if not known and self._room is not None and not self._room(self):
                self._stop('the caches of teacher outputs in memory reached their bound')
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

    def _stop(self, reason: str) -> None:
        self.full = True
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
        """Closes the files; they are closed with the object too."""
        self._closing()
        self._files = None


def rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Rows f32[M, width] as a cache of this dtype gives them back, so that stored and computed answers are equal.

    Raises:
      ValueError: a number is too large for the dtype.
    """
    if dtype == 'float32':
        return rows
    with np.errstate(over='ignore'):
        found = rows.astype(dtype).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(
            f"the teacher's outputs reach {np.abs(rows).max():.3g}, more than {dtype} holds; use "
            "teaching.cache_dtype='float32'"
        )
    return found


def _tag(position: int, content: bytes) -> int:
    """CRC-32 of a row at a position, never 0 (absent)."""
    return zlib.crc32(content, zlib.crc32(position.to_bytes(8, 'little'))) or 1


def _close(descriptors: tuple[int, ...]) -> None:
    for file in descriptors:
        os.close(file)


def _pwrite(file: int, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, start)
        view, start = view[count:], start + count
