"""Atomic writes of archives and JSON."""

from __future__ import annotations

import concurrent.futures
import os

import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.runtime import files


def test_archives_are_whole_or_absent(tmp_path):
    files.write_npz(tmp_path / 'knowledge' / 'stage_1.npz', order=np.arange(5), num_keep=jnp.int32(3))
    with np.load(tmp_path / 'knowledge' / 'stage_1.npz') as archive:
        assert archive['order'].tolist() == [0, 1, 2, 3, 4] and archive['num_keep'] == 3
    assert os.listdir(tmp_path / 'knowledge') == ['stage_1.npz']


@pytest.mark.parametrize(('limit', 'compressed'), [(10**6, True), (10**3, False)])
def test_large_archives_are_not_compressed(tmp_path, monkeypatch, limit, compressed):
    monkeypatch.setattr(files, 'PLAIN_BYTES', limit)
    files.write_npz(tmp_path / 'stage.npz', zeros=np.zeros(1000))
    assert ((tmp_path / 'stage.npz').stat().st_size < 2000) == compressed
    with np.load(tmp_path / 'stage.npz') as archive:
        np.testing.assert_array_equal(archive['zeros'], np.zeros(1000))


def test_damage_to_an_archive_is_detected(tmp_path):
    path = tmp_path / 'points.npz'
    files.write_npz(path, value=np.arange(1000))
    assert files.is_whole_npz(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not files.is_whole_npz(path)
    path.write_bytes(content[:100])
    assert not files.is_whole_npz(path) and not files.is_whole_npz(tmp_path / 'nothing.npz')


def test_json_has_no_infinities_and_no_arrays():
    value = {'a': np.float32(0.5), 'b': jnp.int32(3), 'c': (float('nan'), np.inf), 4: None}
    assert files.dumps(value) == '{"a": 0.5, "b": 3, "c": [null, null], "4": null}'


def test_writers_of_one_file_take_turns(tmp_path):
    """Two jobs of a sweep may write the result of the same teacher at once."""

    def write(number: int) -> None:
        for _ in range(50):
            files.write_text(tmp_path / 'shared.json', str(number) * 5000)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))  # raises what a writer raised
    text = (tmp_path / 'shared.json').read_text()
    assert len(text) == 5000 and len(set(text)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['shared.json']
