"""python -m kcd_jax.data."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data
from kcd_jax.data import __main__ as program
from tests.data import tiny_tfds


def test_describe(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    sheet = tmp_path / 'new' / 'sheet.png'
    assert program.main(['describe', 'digits', '--out', str(sheet)]) == 0
    printed = capsys.readouterr().out
    for words in ('1,200 points, 112 to 128 a class', '16 x 16 x 3', 'duplicates:', 'mean 0.', 'made hard'):
        assert words in printed
    assert Image.open(sheet).size == (640, 640)


def test_the_sheet_has_a_class_each_row(tmp_path: pathlib.Path):
    loaded = data.load('digits')
    program.contact_sheet(loaded, tmp_path / 'sheet.png')
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    third = np.flatnonzero(loaded.train.labels == 4)[2]
    np.testing.assert_array_equal(sheet[4 * 64 : 5 * 64 : 4, 2 * 64 : 3 * 64 : 4], loaded.train.images[third])


def test_exact_duplicates_are_counted():
    loaded = data.load('digits')
    assert program.duplicates(loaded) == (0, 0, 0)
    train, test = loaded.train, loaded.test
    index = np.concatenate([np.arange(len(train)), [3, 3, 7]])
    more = train.take(index)
    more.labels[-1] += 1
    twice = data.Split(np.concatenate([test.images, train.images[:4]]), np.concatenate([test.labels, train.labels[:4]]))
    assert program.duplicates(dataclasses.replace(loaded, train=more, test=twice)) == (2, 1, 4)


def test_prepare_converts_and_fills_the_cache(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    tiny_tfds.write(tmp_path / 'data')
    common = ['prepare', 'toy', '--dir', str(tmp_path / 'data')]
    assert program.main(common) == 0
    assert 'MB as tfrecord' in capsys.readouterr().out
    assert len(list((tmp_path / 'cache').iterdir())) == 1
    assert program.main([*common, '--format', 'array_record']) == 1
    assert '--to' in capsys.readouterr().err
    assert program.main([*common, '--format', 'array_record', '--to', str(tmp_path / 'other')]) == 0
    assert 'MB as array_record' in capsys.readouterr().out
    assert data.check('toy', tmp_path / 'other').startswith('toy: 12 train, 4 test, 3 classes, 8x8')


def test_check_says_it_in_a_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    assert program.main(['check', 'digits']) == 0
    assert capsys.readouterr().out.count('\n') == 1
    assert program.main(['check', 'cifar10', '--dir', str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: cifar10 is not prepared in')
    assert error.count('\n') == 1
