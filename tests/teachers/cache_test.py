"""The cache of teacher outputs: exact, shared by processes, valid after a kill at any instant, bounded."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from kcd_jax.teachers.cache import Cache, rounded

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE, WIDTH = 500, 7


def rows_of(positions):
    """The row of each position, a function of it alone."""
    return np.stack([np.random.RandomState(p).standard_normal(WIDTH).astype(np.float32) for p in positions])


def open_cache(where, **options):
    return Cache(where, 'identity', size=SIZE, width=WIDTH, **options)


@pytest.fixture(params=['memory', 'disk'])
def where(request, tmp_path):
    return None if request.param == 'memory' else tmp_path


def test_what_was_stored_comes_back_bit_for_bit_and_nothing_else(where):
    cache, positions = open_cache(where), np.array([3, 0, 499, 17])
    cache.put(positions, rows_of(positions))
    rows, found = cache.get(np.array([17, 4, 3]))
    assert found.tolist() == [True, False, True]
    np.testing.assert_array_equal(rows[[0, 2]], rows_of([17, 3]))
    np.testing.assert_array_equal(rows[1], 0)
    assert (cache.stored, cache.served, cache.present) == (4, 2, 4)


def test_float16_rounds_once_and_says_what_comes_back(where):
    cache, positions = open_cache(where, dtype='float16'), np.arange(5)
    cache.put(positions, rows_of(positions))
    rows, found = cache.get(positions)
    assert found.all()
    np.testing.assert_array_equal(rows, rounded(rows_of(positions), 'float16'))
    assert np.abs(rows - rows_of(positions)).max() < 2e-3  # half precision has 11 bits


def test_a_number_that_float16_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"outputs reach 7e\+04, more than float16 holds; use .*cache_dtype='float32'"):
        rounded(np.array([[1.0, -70000.0]], np.float32), 'float16')


def test_a_folder_that_cannot_be_made_leaves_the_rows_in_memory(tmp_path, capsys):
    (tmp_path / 'identity').write_text('a file')
    cache, positions = open_cache(tmp_path), np.arange(5)
    assert 'cannot be written (' in capsys.readouterr().out
    cache.put(positions, rows_of(positions))
    assert cache.memory == 5 * (4 * WIDTH + 4) and cache.get(positions)[1].all()


def test_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch, capsys):
    positions, opened = np.arange(5), os.open
    first = open_cache(tmp_path)
    first.put(positions, rows_of(positions))

    def refuse(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, 'Permission denied')
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, 'open', refuse)
    cache = open_cache(tmp_path)
    assert 'cannot be written (Permission denied); it is only read' in capsys.readouterr().out
    cache.put(np.arange(5, 9), rows_of(range(5, 9)))
    np.testing.assert_array_equal(cache.get(np.arange(9))[1], np.arange(9) < 5)


def test_a_bound_counts_the_rows_of_other_processes(tmp_path):
    limit = 10 * (4 * WIDTH + 4)
    first, second = (open_cache(tmp_path, limit_bytes=limit) for _ in range(2))
    first.put(np.arange(10), rows_of(range(10)))
    second.put(np.arange(10, 20), rows_of(range(10, 20)))
    assert second.present == 10 and second.full


def test_writers_that_take_turns_keep_to_the_bound_together(tmp_path):
    writers = [open_cache(tmp_path, limit_bytes=320 * (4 * WIDTH + 4)) for _ in range(4)]
    for start in range(0, SIZE, 10):
        writers[start // 10 % 4].put(np.arange(start, start + 10), rows_of(range(start, start + 10)))
    found = open_cache(tmp_path).present
    assert 300 <= found <= 320 + 4 * 10  # each counts the rows of the others between two calls


def test_the_bound_is_kept_and_told(where, capsys):
    cache = open_cache(where, limit_bytes=10 * (4 * WIDTH + 4))
    cache.put(np.arange(20), rows_of(range(20)))
    assert cache.present == 10 and cache.get(np.arange(20))[1].sum() == 10
    cache.put(np.arange(20, 30), rows_of(range(20, 30)))
    assert capsys.readouterr().out.count('reached its bound') == 1


def test_a_later_process_finds_the_rows(tmp_path):
    first = open_cache(tmp_path)
    first.put(np.arange(100), rows_of(range(100)))
    first.close()
    again = open_cache(tmp_path)
    assert again.present == 100
    np.testing.assert_array_equal(again.get(np.arange(100))[0], rows_of(range(100)))


@pytest.mark.parametrize('damage', ['flip', 'truncate rows', 'truncate tags', 'empty'])
def test_damage_loses_rows_and_never_gives_wrong_ones(tmp_path, damage):
    cache = open_cache(tmp_path)
    cache.put(np.arange(100), rows_of(range(100)))
    cache.close()
    rows, tags = tmp_path / 'identity' / 'rows.bin', tmp_path / 'identity' / 'tags.u32'
    if damage == 'flip':
        content = bytearray(rows.read_bytes())
        content[50 * 4 * WIDTH + 3] ^= 16
        rows.write_bytes(content)
    elif damage == 'truncate rows':
        os.truncate(rows, 60 * 4 * WIDTH + 5)
    elif damage == 'truncate tags':
        os.truncate(tags, 4 * 60 + 2)
    else:
        os.truncate(rows, 0)
        os.truncate(tags, 0)
    again = open_cache(tmp_path)
    found_rows, found = again.get(np.arange(100))
    assert found.sum() == {'flip': 99, 'truncate rows': 60, 'truncate tags': 60, 'empty': 0}[damage]
    np.testing.assert_array_equal(found_rows[found], rows_of(range(100))[found])
    again.put(np.flatnonzero(~found), rows_of(np.flatnonzero(~found)))
    np.testing.assert_array_equal(again.get(np.arange(100))[0], rows_of(range(100)))


@pytest.mark.parametrize('damaged', [1, 10])
def test_a_row_that_is_written_again_counts_once_towards_the_bound(tmp_path, damaged):
    limit = 10 * (4 * WIDTH + 4)
    first = open_cache(tmp_path, limit_bytes=limit)
    first.put(np.arange(10), rows_of(range(10)))
    first.close()
    rows = tmp_path / 'identity' / 'rows.bin'
    content = bytearray(rows.read_bytes())
    for position in range(damaged):
        content[position * 4 * WIDTH] ^= 1
    rows.write_bytes(content)
    cache = open_cache(tmp_path, limit_bytes=limit)
    found = cache.get(np.arange(10))[1]
    assert found.sum() == 10 - damaged == 10 - cache.damaged
    cache.put(np.flatnonzero(~found), rows_of(np.flatnonzero(~found)))
    assert cache.present == 10 and cache.get(np.arange(10))[1].all()


def test_another_layout_under_the_same_identity_is_refused(tmp_path):
    open_cache(tmp_path)
    with pytest.raises(ValueError, match='another layout'):
        Cache(tmp_path, 'identity', size=SIZE, width=WIDTH + 1)
    with pytest.raises(ValueError, match='float32, float16'):
        open_cache(tmp_path, dtype='int8')


FILL = textwrap.dedent("""
    import os, random, signal, sys, time
    import numpy as np
    from kcd_jax.teachers.cache import Cache, rounded
    from tests.teachers.cache_test import SIZE, WIDTH, rows_of

    def fill(seed):
        cache = Cache(sys.argv[1], 'identity', size=SIZE, width=WIDTH)
        for position in np.random.RandomState(seed).permutation(SIZE):
            if not cache.get(np.array([position]))[1][0]:
                cache.put(np.array([position]), rows_of([position]))
        time.sleep(60)

    random.seed(0)
    for attempt in range(10):
        children = []
        for number in range(2):
            child = os.fork()
            if child == 0:
                fill(2 * attempt + number)
            children.append(child)
        time.sleep(random.uniform(0.002, 0.02))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        cache = Cache(sys.argv[1], 'identity', size=SIZE, width=WIDTH)
        rows, found = cache.get(np.arange(SIZE))
        assert cache.damaged == 0
        if found.any():
            np.testing.assert_array_equal(rows[found], rows_of(np.flatnonzero(found)))
        print(int(found.sum()), flush=True)
""")


def test_two_processes_fill_and_are_killed_at_ten_instants(tmp_path):
    """Whatever is found after each kill is right; rows are never lost, and the fillers do make progress."""
    command = [sys.executable, '-c', FILL, str(tmp_path)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    counts = [int(line) for line in ran.stdout.split()]
    assert len(counts) == 10 and counts == sorted(counts) and counts[-1] > 0
