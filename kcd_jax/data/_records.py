"""Record files without TensorFlow: read whole and verified, or record by record.

A TFRecord file is a sequence of: length u64, masked CRC-32C of the length u32, the record, masked CRC-32C of the
record u32, little endian.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

_HEADER, _FOOTER = 12, 4


class DamagedError(Exception):
    """A record file that is not what was written; the message says where, without the file's name."""


def read(path: str | os.PathLike[str], file_format: str) -> list[memoryview | bytes]:
    """All records of a file, in order.

    Args:
      path: of the file.
      file_format: 'tfrecord' or 'array_record'.

    Raises:
      DamagedError: truncated, or a checksum does not match.
      OSError: unreadable.
    """
    if file_format == 'tfrecord':
        return _read_tfrecord(pathlib.Path(path).read_bytes())
    if file_format == 'array_record':
        return _read_array_record(pathlib.Path(path))
    raise ValueError(f'record format {file_format!r} is not read here; prepare the data as tfrecord or array_record')


@dataclasses.dataclass(frozen=True)
class TFRecords:
    """The records of TFRecord files by number, each read on its own, without looking at its checksum.

    Attributes:
      paths: of the files.
      counts: records of each file.
      sizes: i64[N], bytes of each record, file by file.
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
    from array_record.python import array_record_data_source

    return array_record_data_source.ArrayRecordDataSource(list(paths))


def _read_array_record(path: pathlib.Path) -> list[bytes]:
    from array_record.python import array_record_module

    path.open('rb').close()  # raises OSError; the library's own error looks like damage
    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        try:
            return reader.read_all()
        finally:
            reader.close()
    except Exception as error:  # ValueError, IndexError or RuntimeError, depending on the damage
        raise DamagedError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _read_tfrecord(content: bytes) -> list[memoryview]:
    view = memoryview(content)
    records, position, size = [], 0, len(content)
    while position < size:
        where = f'record {len(records)}, at byte {position:,} of {size:,}'
        start = position + _HEADER
        if start > size:
            raise DamagedError(f'cut in {where}')
        length, length_sum = struct.unpack_from('<QI', view, position)
        if _masked(view[position : position + 8]) != length_sum:
            raise DamagedError(f'wrong checksum in the length of {where}')
        stop = start + length
        if stop + _FOOTER > size:
            raise DamagedError(f'cut in {where}')
        if _masked(view[start:stop]) != struct.unpack_from('<I', view, stop)[0]:
            raise DamagedError(f'wrong checksum in {where}')
        records.append(view[start:stop])
        position = stop + _FOOTER
    return records


def _masked(part: memoryview) -> int:
    """TFRecord's masked CRC-32C."""
    import google_crc32c

    crc = google_crc32c.value(bytes(part))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
