"""Record files: what other writers wrote is read, damage of every kind is seen."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from kcd_jax.data import _records as records
from tests.data import tiny_tfds

EXAMPLES = [bytes([i]) * n for i, n in enumerate((100, 3, 0, 1, 4, 2000, 7))]


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_records_come_in_the_order_of_writing(tmp_path: pathlib.Path, file_format: str):
    file = tmp_path / 'file'
    tiny_tfds.write_records(file, EXAMPLES, file_format)
    assert [bytes(r) for r in records.read(file, file_format)] == EXAMPLES


def test_an_empty_file_has_no_records(tmp_path: pathlib.Path):
    (tmp_path / 'file').touch()
    assert records.read(tmp_path / 'file', 'tfrecord') == []


def test_every_truncation_within_a_record_is_detected(tmp_path: pathlib.Path):
    file = tmp_path / 'file'
    tiny_tfds.write_records(file, EXAMPLES[:5])
    content = file.read_bytes()
    ends = set(np.cumsum([0] + [len(e) + 16 for e in EXAMPLES[:5]]).tolist())
    for size in range(len(content)):
        file.write_bytes(content[:size])
        if size in ends:  # as if fewer had been written: the caller counts
            assert len(records.read(file, 'tfrecord')) < 5
        else:
            with pytest.raises(ValueError, match='cut in record'):
                records.read(file, 'tfrecord')


def test_every_flipped_bit_of_a_tfrecord_is_detected(tmp_path: pathlib.Path):
    file = tmp_path / 'file'
    tiny_tfds.write_records(file, EXAMPLES[1:5])
    content = bytearray(file.read_bytes())
    for position in range(len(content)):
        content[position] ^= 1 << position % 8
        file.write_bytes(content)
        with pytest.raises(ValueError, match='wrong checksum'):
            records.read(file, 'tfrecord')
        content[position] ^= 1 << position % 8


def test_damage_of_an_array_record(tmp_path: pathlib.Path):
    file = tmp_path / 'file'
    tiny_tfds.write_records(file, EXAMPLES, 'array_record')
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b'', content[:100] + b'\xff' + content[101:], b'text' * 40_000):
        file.write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            records.read(file, 'array_record')
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_missing_files(tmp_path: pathlib.Path, file_format: str):
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path / 'none', file_format)
