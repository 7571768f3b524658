"""TFRecord and array_record files, without TensorFlow: read whole and verified, or record by record.

A TFRecord file is a sequence of: length u64, masked CRC-32C of the length u32, the record, masked CRC-32C of the
record u32, little endian.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

_HEADER, _FOOTER = 12, 4
FRAME = _HEADER + _FOOTER  # bytes around a record of a TFRecord file


def read(path: pathlib.Path, file_format: str) -> list[memoryview | bytes]:
    """All records of a file ('tfrecord' or 'array_record'), in order.

    Raises:
      ValueError: truncated, or a checksum does not match; the message does not name the file.
      OSError: unreadable.
    """
    if file_format == 'tfrecord':
        return _read_tfrecord(memoryview(path.read_bytes()))
    from array_record.python import array_record_module

    path.open('rb').close()  # raises OSError; the library's own error looks like damage
    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        try:
            return reader.read_all()
        finally:
            reader.close()
    except Exception as error:  # ValueError, IndexError or RuntimeError, depending on the damage
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error


def _read_tfrecord(content: memoryview) -> list[memoryview]:
    records, position, size = [], 0, len(content)
    while position < size:
        where = f'record {len(records)}, at byte {position:,} of {size:,}'
        start = position + _HEADER
        if start > size:
            raise ValueError(f'cut in {where}')
        length, checksum = struct.unpack_from('<QI', content, position)
        if _masked_crc(content[position : position + 8]) != checksum:
            raise ValueError(f'wrong checksum in the length of {where}')
        stop = start + length
        if stop + _FOOTER > size:
            raise ValueError(f'cut in {where}')
        if _masked_crc(content[start:stop]) != struct.unpack_from('<I', content, stop)[0]:
            raise ValueError(f'wrong checksum in {where}')
        records.append(content[start:stop])
        position = stop + _FOOTER
    return records


def _masked_crc(part: memoryview) -> int:
    import google_crc32c

    crc = google_crc32c.value(bytes(part))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class TFRecords:
    """The records of TFRecord files by number, each read on its own; checksums are not verified.

    Attributes:
      paths: of the files.
      counts: records of each file.
      offsets: i64[N], where each record's frame begins in its file.
    """

    paths: Sequence[str]
    counts: Sequence[int]
    offsets: np.ndarray

    def __getitem__(self, number: int) -> bytes:
        path = self.paths[int(np.searchsorted(np.cumsum(self.counts), number, side='right'))]
        with open(path, 'rb') as file:
            file.seek(int(self.offsets[number]))
            length, _ = struct.unpack('<QI', file.read(_HEADER))
            return file.read(length)


def by_number(paths: Sequence[str], counts: Sequence[int], offsets: np.ndarray, file_format: str) -> Any:
    """records[i] -> bytes over several files, for any number of threads and, pickled, in other processes."""
    if file_format == 'tfrecord':
        return TFRecords(paths, counts, offsets)
    from array_record.python import array_record_data_source

    return array_record_data_source.ArrayRecordDataSource(paths)
