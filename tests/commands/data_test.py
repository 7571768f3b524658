"""python -m kcd_jax data."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data
from kcd_jax.commands import data as program
from kcd_jax.data import base, made_up
from tests.data import tiny_tfds


def test_describe(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    sheet = tmp_path / 'new' / 'sheet.png'
    assert program.main(['describe', 'digits', '--out', str(sheet)]) == 0
    printed = capsys.readouterr().out
    for words in ('1,200 points, 112 to 128 a class', '16 x 16 x 3', 'duplicates:', 'mean 0.', 'made hard'):
        assert words in printed
    assert Image.open(sheet).size == (800, 640)


def test_a_streamed_set_is_looked_at_as_a_whole(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Its last image equals its first, which no small sample would find; --sample says what it did not look at."""
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(base, 'machine_memory', lambda: 1000)
    root = made_up.folder(tmp_path / 'data', train=12, test=4, classes=2, size=(16, 16))
    files = sorted((root / 'train').rglob('*.jpg'))
    files[-1].write_bytes(files[0].read_bytes())
    command = ['describe', 'folder:16', '--dir', str(root), '--out', str(tmp_path / 'sheet.png')]
    assert program.main(command) == 0
    printed = capsys.readouterr().out
    assert (
        'streamed' in printed and '0 training images equal an earlier one of their class, 1 one of another' in printed
    )
    loaded = data.load('folder:16', root)
    plain = base.measure(np.stack([loaded.train.images[point] for point in range(12)]))
    assert f'measured:    mean {", ".join(f"{x:.4f}" for x in plain.mean)}' in printed
    assert program.main([*command, '--sample', '4']) == 0
    assert capsys.readouterr().out.count('(of 4 images; --sample=0 looks at all)') == 2


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
