"""The cache: what is stored comes back, and nothing damaged does."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from kcd_jax.data import _cache as cache

ARRAYS = {'train_images': np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), 'ids': np.array([b'a', b'bc'])}
META = {'note': 'x', 'normalization': [[0.5], [0.25]]}


class _Maker:
    """Counts how often the arrays are made."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS, META


def _fetch(folder: pathlib.Path, make: _Maker, made_from: object = 1):
    return cache.fetch('toy/config:1.0.0', '/somewhere', {'files': made_from}, make, folder)


def _same(result) -> None:
    arrays, meta = result
    assert meta == META
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_the_second_fetch_makes_nothing(tmp_path: pathlib.Path):
    make = _Maker()
    for _ in range(2):
        _same(_fetch(tmp_path / 'new' / 'folder', make))
    assert make.calls == 1
    assert not list(tmp_path.rglob('.tmp-*'))


def test_another_source_replaces_the_entry(tmp_path: pathlib.Path):
    make = _Maker()
    for made_from in (1, 2, 2):
        _same(_fetch(tmp_path, make, made_from))
    assert make.calls == 2
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('victim', ['train_images.npy', 'ids.npy', 'index.json'])
@pytest.mark.parametrize('damage', ['cut', 'flip', 'remove', 'empty'])
def test_a_damaged_entry_is_silently_made_again(
    tmp_path: pathlib.Path, victim: str, damage: str, capsys: pytest.CaptureFixture[str]
):
    make = _Maker()
    _fetch(tmp_path, make)
    [file] = tmp_path.rglob(victim)
    content = bytearray(file.read_bytes())
    if damage == 'remove':
        file.unlink()
    elif damage == 'flip':
        content[-3] ^= 4
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2] if damage == 'cut' else b'')
    if (victim, damage) == ('index.json', 'flip'):
        file.write_text(file.read_text().replace(f'"version": {cache._VERSION}', '"version": 0'))
    _same(_fetch(tmp_path, make))
    assert make.calls == 2
    _same(_fetch(tmp_path, make))
    assert make.calls == 2
    assert not capsys.readouterr().out
    assert not list(tmp_path.rglob('.tmp-*'))


def test_an_unwritable_cache_is_reported_and_costs_nothing_else(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / 'file').touch()
    make = _Maker()
    for _ in range(2):
        _same(_fetch(tmp_path / 'file' / 'below', make))
    assert make.calls == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all('KCD_JAX_CACHE' in line for line in lines)


def test_a_full_disk_leaves_nothing_behind(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'save', full)
    _same(_fetch(tmp_path, _Maker()))
    assert not list(tmp_path.iterdir())


def test_old_scratch_folders_are_removed_and_new_ones_kept(tmp_path: pathlib.Path):
    for name, age in (('.tmp-old', 3 * 24 * 3600), ('.tmp-new', 60)):
        (tmp_path / name).mkdir()
        changed = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (changed, changed))
    _fetch(tmp_path, _Maker())
    assert {path.name for path in tmp_path.glob('.tmp-*')} == {'.tmp-new'}


def _files(root: pathlib.Path) -> list[str]:
    for name in ('a', 'b', 'c'):
        (root / name).write_text(name * 10)
    return ['a', 'b', 'c']


@pytest.mark.parametrize('remembered', [False, True])
def test_digests_follow_the_content_and_the_order(
    tmp_path: pathlib.Path, remembered: bool, monkeypatch: pytest.MonkeyPatch
):
    def digests(files: list[str]) -> str:
        return cache.combined(cache.digests('toy', root, files, store))

    if remembered:
        monkeypatch.setattr(cache, '_ALWAYS_HASHED_BYTES', 0)
    root, store = tmp_path / 'files', tmp_path / 'cache'
    root.mkdir()
    files = _files(root)
    first = digests(files)
    assert len(first) == 64 and digests(files) == first
    assert digests(files[::-1]) != first
    stat = (root / 'b').stat()
    (root / 'b').write_text('B' * 10)
    os.utime(root / 'b', ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time of modification
    changed = digests(files)
    assert changed != first
    (root / 'b').write_text('b' * 10)
    assert digests(files) == first
    (root / 'a').rename(root / 't')
    (root / 'c').rename(root / 'a')
    (root / 't').rename(root / 'c')  # every time and size is as before, but two files changed places
    assert digests(files) not in (first, changed)
    (root / 'a').unlink()
    assert digests(files) != first


def test_large_files_are_hashed_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    files = _files(tmp_path)
    small = cache.digests('toy', tmp_path, files, tmp_path / 'cache')
    assert small.shape == (3, 32)
    assert not (tmp_path / 'cache').exists()
    monkeypatch.setattr(cache, '_ALWAYS_HASHED_BYTES', 0)
    np.testing.assert_array_equal(cache.digests('toy', tmp_path, files, tmp_path / 'cache'), small)
    (tmp_path / 'd').write_text('new')
    hashed = []
    digest = cache._digest
    monkeypatch.setattr(cache, '_digest', lambda file: hashed.append(file.name) or digest(file))
    cache.digests('toy', tmp_path, files, tmp_path / 'cache')
    cache.digests('toy', tmp_path, [*files, 'd'], tmp_path / 'cache')
    assert hashed == ['d']
