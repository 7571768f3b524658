"""Paths as users type them, and the folder of caches."""

from __future__ import annotations

import pathlib

import pytest

from kcd_jax import data, paths


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert paths.expand('~/data') == tmp_path / 'data'
    assert paths.expand('runs/~') == pathlib.Path('runs/~')
    with pytest.raises(ValueError, match='~nobody_of_that_name/x names a home folder that does not exist'):
        paths.expand('~nobody_of_that_name/x')


@pytest.mark.parametrize(
    ('variables', 'wanted'),
    [
        ({'KCD_JAX_CACHE': '~/own', 'XDG_CACHE_HOME': '/xdg'}, '{home}/own'),
        ({'XDG_CACHE_HOME': '/xdg'}, '/xdg/kcd_jax'),
        ({}, '{home}/.cache/kcd_jax'),
    ],
)
def test_cache_folder(monkeypatch, tmp_path, variables, wanted):
    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('KCD_JAX_CACHE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(paths.cache_folder()) == wanted.format(home=tmp_path)
    assert paths.cache_folder('/given') == pathlib.Path('/given')


@pytest.mark.parametrize('name', ['folder:16', 'cifar100'])
def test_data_below_an_unknown_home_is_one_line(name):
    with pytest.raises(ValueError, match='~nobody_of_that_name/x names a home folder that does not exist'):
        data.load(name, '~nobody_of_that_name/x')
