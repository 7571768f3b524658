"""The bench's rows of very many points."""

from __future__ import annotations

import subprocess
import types

import numpy as np
import pytest

from benchmarks import life, scale

FOUND = {
    'record': 1e-4, 'record_copied': 8208, 'record_moved': 0.0, 'condense': 0.05, 'stage': 1.0, 'order': 0.1,
    'condense_and_stage_bytes': 70.0,
}  # fmt: skip


def test_rows(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(scale, 'live', lambda number, folder: asked.append(number) or FOUND)
    found = list(scale.rows(False, tmp_path))
    assert asked == [1_280_000, 14_000_000, 100_000_000] and [row.met for row in found] == [True] * 6
    assert found[0].measured == '0.10 ms; in place' and '70 bytes a point' in found[1].measured


@pytest.mark.parametrize('fault', [{'record_copied': 8 * 1_280_000}, {'record_moved': 1.0}])
def test_a_copy_of_the_table_is_seen(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(scale, 'live', lambda number, folder: {**FOUND, **fault, 'condense': 0.2})
    assert [row.met for row in scale.rows(True, tmp_path)] == [False, False]


def test_a_life_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        subprocess, 'run', lambda *args, **keys: types.SimpleNamespace(returncode=-9, stderr='', stdout='')
    )
    with pytest.raises(ValueError, match='100,000 points failed: status -9, perhaps out of memory'):
        scale.live(100_000, tmp_path)


@pytest.mark.slow
def test_a_life(tmp_path):
    """It condenses to 0.7 on the host, records in place, and leaves the stage file."""
    number = life.FEW
    found = life.live(number, tmp_path)
    assert found['record_copied'] < number and not found['record_moved']
    assert set(FOUND) <= set(found) and all(found[key] > 0 for key in ('condense', 'stage', 'order', 'checkpoint'))
    with np.load(tmp_path / 'knowledge' / 'stage_1.npz') as stage:
        assert int(stage['num_keep']) == round(0.7 * number) and np.count_nonzero(stage['epsilon']) == 0.3 * number
