"""Record files without TensorFlow: read whole and verified, or record by record.

A TFRecord file is a sequence of: length u64, masked CRC-32C of the length u32, the record, masked CRC-32C of the
record u32, little endian. No library at hand checks these sums quickly, so it is done here over many records at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_POLYNOMIAL = np.uint32(0x82F63B78)  # Castagnoli, reflected
_HEADER, _FOOTER = 12, 4
_CHUNK_BYTES = 8 << 20


class DamagedError(Exception):
    """A record file that cannot be what was written; the message says where, without the file's name."""


def read(path: str | os.PathLike[str], file_format: str) -> list[memoryview | bytes]:
    """All records of a file, in the order in which they lie.

    Args:
      file_format: 'tfrecord' or 'array_record'.

    Raises:
      DamagedError: cut, or its checksums do not fit.
      OSError: unreadable.
    """
    if file_format == 'tfrecord':
        return _read_tfrecord(np.fromfile(path, np.uint8))
    if file_format == 'array_record':
        return _read_array_record(pathlib.Path(path))
    raise ValueError(f'record format {file_format!r} is not read here; prepare the data as tfrecord or array_record')


@dataclasses.dataclass(frozen=True)
class TFRecords:
    """The records of TFRecord files by their number; each is read by itself and its checksum is not looked at.

    Attributes:
      paths: of the files. sizes: i64[N], bytes of each record, file by file; counts: records of each file.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]
    sizes: np.ndarray

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """i64[N]: where each record begins in its file."""
        steps = self.sizes + (_HEADER + _FOOTER)
        before = np.cumsum(steps) - steps
        first = self._ends - self.counts
        offset = before[np.minimum(first, len(steps) - 1)] if len(steps) else first
        return before - np.repeat(offset, self.counts) + _HEADER

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> bytes:
        path = self.paths[int(np.searchsorted(self._ends, number, side='right'))]
        with open(path, 'rb') as file:
            file.seek(int(self._starts[number]))
            return file.read(int(self.sizes[number]))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith('_')}


def by_number(paths: Sequence[str], counts: Sequence[int], sizes: np.ndarray, file_format: str) -> Any:
    """records[i] -> bytes over several files, for any number of threads and, pickled, in other processes."""
    if file_format == 'tfrecord':
        return TFRecords(tuple(paths), tuple(counts), sizes)
    import grain

    return grain.sources.ArrayRecordDataSource(list(paths))


def _read_array_record(path: pathlib.Path) -> list[bytes]:
    from array_record.python import array_record_module

    path.open('rb').close()  # an OSError of our own: the library's is not told from damage
    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        try:
            return reader.read_all()
        finally:
            reader.close()
    except Exception as error:  # it raises ValueError, IndexError or RuntimeError, by the kind of damage
        raise DamagedError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _read_tfrecord(content: np.ndarray) -> list[memoryview]:
    view = memoryview(content)
    starts, stops, position, size = [], [], 0, len(content)
    while position < size:
        start = position + _HEADER
        length = int.from_bytes(view[position : position + 8], 'little')
        stop = start + length
        if stop + _FOOTER > size:
            # Either cut, or the length itself is damaged: its own checksum tells.
            length_sum = view[position + 8 : position + 12]
            cut = start > size or _masked([view[position : position + 8]])[0] == int.from_bytes(length_sum, 'little')
            what = f'cut in record {len(starts)}' if cut else f'wrong checksum in the length of record {len(starts)}'
            raise DamagedError(f'{what}, at byte {position:,} of {size:,}')
        starts.append(start)
        stops.append(stop)
        position = stop + _FOOTER
    records = [view[start:stop] for start, stop in zip(starts, stops)]
    first, last = np.array(starts, np.int64), np.array(stops, np.int64)
    lengths = [view[start - _HEADER : start - _FOOTER] for start in starts]
    for parts, sums, what in ((lengths, first - _FOOTER, 'the length of record'), (records, last, 'record')):
        wrong = np.flatnonzero(_masked(parts) != _stored(view, sums))
        if len(wrong):
            raise DamagedError(f'wrong checksum in {what} {wrong[0]}, at byte {starts[wrong[0]] - _HEADER:,}')
    return records


def _stored(view: memoryview, positions: np.ndarray) -> np.ndarray:
    """The u32 at each byte position."""
    content = np.frombuffer(view, np.uint8)
    return content[positions[:, None] + np.arange(4)].view('<u4')[:, 0]


def _masked(parts: list[memoryview]) -> np.ndarray:
    """TFRecord's masked CRC-32C of every part: u32[len(parts)]."""
    crc = crc32c(parts)
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """What four zero bytes make of a state's low and high half: u32[65536] each."""
    state = np.arange(65536, dtype=np.uint32)
    tables = []
    for half in (state, state << np.uint32(16)):
        table = half.copy()
        for _ in range(32):
            table = np.where(table & np.uint32(1), (table >> np.uint32(1)) ^ _POLYNOMIAL, table >> np.uint32(1))
        tables.append(table)
    return tables[0], tables[1]


def crc32c(parts: list[memoryview] | list[bytes]) -> np.ndarray:
    """CRC-32C of every part: u32[len(parts)].

    All parts advance together, four bytes a step. They are aligned at their ends, with zeros before them: zeros leave
    the state 0 alone, and the usual start with all ones equals a start with 0 where the first four bytes are inverted.
    """
    low, high = _tables()
    result = np.empty(len(parts), np.uint32)
    sizes = np.array([len(part) for part in parts], np.int64)
    # In the order of the sizes, so that those that advance together are about equally long.
    order = np.argsort(sizes, kind='stable')
    first = 0
    while first < len(order):
        last = first + 1
        width = _width(sizes[order[first]])
        while last < len(order) and (last + 1 - first) * (wider := _width(sizes[order[last]])) <= _CHUNK_BYTES:
            last, width = last + 1, wider
        block = np.zeros((last - first, width), np.uint8)
        inverted = np.zeros(last - first, np.uint32)
        for row, part in enumerate(order[first:last]):
            size = sizes[part]
            if size:
                block[row, width - size :] = np.frombuffer(parts[part], np.uint8)
            # Parts of under four bytes: what is left of the inversion falls on the state after them.
            head = min(size, 4)
            block[row, width - size : width - size + head] ^= np.uint8(255)
            inverted[row] = 0xFFFFFFFF >> (8 * head) if head < 4 else 0
        state = np.zeros(last - first, np.uint32)
        for word in np.ascontiguousarray(block.view('<u4').T):
            state ^= word
            state = low[state & np.uint32(0xFFFF)] ^ high[state >> np.uint32(16)]
        result[order[first:last]] = ~(state ^ inverted)
        first = last
    return result


def _width(size: int) -> int:
    return -(-max(int(size), 4) // 4) * 4
