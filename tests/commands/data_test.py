"""python -m kcd_jax data."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.commands import data as program
from kcd_jax.data import _dataset
from tests.data import photographs, tiny_tfds


@pytest.mark.parametrize('command', ['', 'check', 'describe', 'prepare'])
def test_help_has_every_flag_and_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        program.main([*filter(None, [command]), '--help'])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and 'python -m kcd_jax data' in printed and 'example' in printed
    words = {'': 'known names: cifar10,', 'prepare': '--format {tfrecord,array_record}'}
    assert words.get(command, '--dir') in printed


def test_describe(capsys: pytest.CaptureFixture[str]):
    assert program.main(['describe', 'digits']) == 0
    printed = capsys.readouterr().out
    for words in ('1,200 points, 112 to 128 per class', '16 x 16 x 3', 'duplicates:', 'mean 0.', 'made hard'):
        assert words in printed
    assert data.load('digits').identity in printed


def test_describe_reads_every_image_of_a_streamed_set(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Its last image equals its first, which no small sample would find."""
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(_dataset, 'machine_memory', lambda: 1000)
    root = photographs.folder(tmp_path / 'data', train=12, test=4, classes=2, size=(16, 16))
    files = sorted((root / 'train').rglob('*.jpg'))
    files[-1].write_bytes(files[0].read_bytes())
    assert program.main(['describe', 'folder:16', '--dir', str(root)]) == 0
    printed = capsys.readouterr().out
    assert 'streamed' in printed
    assert '0 training images equal an earlier one of their class, 1 one of another class' in printed
    loaded = data.load('folder:16', root)
    plain = data.measure(np.stack([loaded.train.images[point] for point in range(12)]))
    assert f'pixels:      mean {", ".join(f"{x:.4f}" for x in plain.mean)}' in printed


def _repeated(loaded: data.Dataset) -> data.Dataset:
    """With points 3, 3 and 7 again, the last under another label, and four training images among the test images."""
    train, test = loaded.train, loaded.test
    more = train.take(np.concatenate([np.arange(len(train)), [3, 3, 7]]))
    more.labels[-1] += 1
    twice = data.Split(np.concatenate([test.images, train.images[:4]]), np.concatenate([test.labels, train.labels[:4]]))
    return dataclasses.replace(loaded, train=more, test=twice)


@pytest.mark.parametrize('streamed', [False, True])
def test_exact_duplicates_are_counted(streamed: bool):
    for loaded, counts in ((data.load('digits'), (0, 0, 0)), (_repeated(data.load('digits')), (2, 1, 4))):
        assert program.duplicates(data.by_index(loaded) if streamed else loaded) == counts


def test_prepare_fills_the_cache(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    tiny_tfds.write(tmp_path / 'data')
    common = ['prepare', 'toy', '--dir', str(tmp_path / 'data')]
    assert program.main(common) == 0
    assert 'MB as tfrecord' in capsys.readouterr().out
    assert len(list((tmp_path / 'cache').iterdir())) == 1
    assert program.main([*common, '--format', 'array_record']) == 2
    assert 'is prepared as tfrecord' in capsys.readouterr().err


def test_check_prints_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert program.main(['check', 'digits']) == 0
    assert capsys.readouterr().out.count('\n') == 1
    assert program.main(['check', 'cifar10', '--dir', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: cifar10 is not prepared in')
    assert error.count('\n') == 1
    monkeypatch.setenv('HOME', str(tmp_path))
    photographs.folder(tmp_path / 'images', train=4, test=2, classes=2, size=(16, 16))
    assert program.main(['check', 'folder', '--dir', '~/images']) == 0
    assert 'folder: 4 train, 2 test, 2 classes, 16x16' in capsys.readouterr().out


def test_describe_without_labels(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    root = photographs.folder(tmp_path / 'data', train=12, test=4, classes=2, size=(16, 16))
    flat = tmp_path / 'flat'
    flat.mkdir()
    for number, file in enumerate(sorted((root / 'train').rglob('*.jpg'))):
        file.rename(flat / f'{number}.jpg')
    count = len(list(flat.iterdir()))
    assert program.main(['describe', 'folder:16', '--dir', str(flat)]) == 0
    printed = capsys.readouterr().out
    held = max(round(count / 10), 1)
    assert f'{count - held} points without labels' in printed and '0 (those of the teacher)' in printed
