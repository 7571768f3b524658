"""TFDS sets that are prepared: one order whatever the reader, damage named, nothing decoded twice."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow_datasets

from kcd_jax import data
from kcd_jax.data import _prepared as prepared
from kcd_jax.data import _preparing as preparing
from kcd_jax.data import _tfds as tfds
from tests.data import tiny_tfds


def _load(root: pathlib.Path, name: str = 'toy', **keywords) -> data.Dataset:
    return data.load(name, root / 'data', cache=root / 'cache', **keywords)


def _one_line(call, *words: str) -> str:
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert '\n' not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
@pytest.mark.parametrize('shards', [(12,), (5, 7), (3, 1, 8)])
def test_the_order_is_that_of_the_ids_whatever_the_reader(tmp_path: pathlib.Path, file_format: str, shards):
    tiny_tfds.write(tmp_path / 'data', shards=shards, file_format=file_format)
    loaded = _load(tmp_path)
    for split, name, number, seed in ((loaded.train, 'train', 12, 0), (loaded.test, 'test', 4, 1)):
        images, labels = tiny_tfds.points(number, seed)
        # Numbers in ids count as numbers: 2 before 10.
        assert split.ids.tolist() == [f'{name}_{i}' for i in range(number)]
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert split.labels.dtype == np.int32
    assert loaded.class_names == ('ant', 'bee', 'cow')
    assert loaded.num_classes == 3
    assert loaded.image_shape == (8, 8, 3)
    assert file_format in loaded.description


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_without_ids_the_order_is_that_on_disk(tmp_path: pathlib.Path, file_format: str):
    tiny_tfds.write(tmp_path / 'data', ids=False, file_format=file_format)
    loaded = _load(tmp_path)
    assert loaded.train.ids is None
    np.testing.assert_array_equal(loaded.train.images, tiny_tfds.points(12, 0)[0][::-1])


def test_grey_images_get_three_channels(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data', shape=(8, 6, 1))
    loaded = _load(tmp_path)
    assert loaded.image_shape == (8, 6, 3)
    np.testing.assert_array_equal(loaded.train.images, tiny_tfds.points(12, 0, (8, 6, 1))[0].repeat(3, axis=-1))


def test_validation_stands_in_for_a_missing_test_split(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data', test='validation')
    loaded = _load(tmp_path)
    assert len(loaded.test) == 4
    assert "evaluated on its split 'validation'" in loaded.description


def test_validation_stands_in_for_hidden_labels(tmp_path: pathlib.Path):
    folder = tiny_tfds.write(tmp_path / 'data', hide_test_labels=True)
    _one_line(lambda: _load(tmp_path), 'no split with labels')
    other = tiny_tfds.write(tmp_path / 'other', test='validation')
    shard = 'toy-validation.tfrecord-00000-of-00001'
    shutil.copyfile(other / shard, folder / shard)
    info = json.loads((folder / 'dataset_info.json').read_text())
    info['splits'].append(info['splits'][1] | {'name': 'validation'})
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    assert "evaluated on its split 'validation'" in _load(tmp_path).description


def test_the_second_load_decodes_nothing_and_is_the_same(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    tiny_tfds.write(tmp_path / 'data')
    first = _load(tmp_path)
    monkeypatch.setattr(tfds, '_read', lambda *args, **keywords: pytest.fail('decoded again'))
    second = _load(tmp_path)
    for before, after in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(before.images, after.images)
        np.testing.assert_array_equal(before.labels, after.labels)
        np.testing.assert_array_equal(before.ids, after.ids)
    assert first.normalization == second.normalization
    assert isinstance(second.normalization.mean, tuple)


def test_files_prepared_anew_are_decoded_anew(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data')
    assert len(_load(tmp_path).train) == 12
    shutil.rmtree(tmp_path / 'data')
    tiny_tfds.write(tmp_path / 'data', shards=(3, 3))
    assert len(_load(tmp_path).train) == 6


def test_a_second_start_imports_neither_tensorflow_nor_tfds(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data')
    _load(tmp_path)
    program = (
        'import sys; from kcd_jax import data; '
        f'd = data.load("toy", {str(tmp_path / "data")!r}, cache={str(tmp_path / "cache")!r}); '
        'print(len(d.train), [m for m in ("tensorflow", "tensorflow_datasets", "sklearn") if m in sys.modules])'
    )
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert result.stdout.split(maxsplit=1) == ['12', '[]\n']


def test_a_read_only_cache_is_reported_in_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    tiny_tfds.write(tmp_path / 'data')
    (tmp_path / 'cache').touch()  # a file: not even root can write below it
    assert len(_load(tmp_path).train) == 12
    [line] = capsys.readouterr().out.splitlines()
    assert 'KCD_JAX_CACHE' in line


def test_directory_by_argument_by_environment_by_default(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    tiny_tfds.write(tmp_path / 'data')
    assert prepared.data_dir('/given') == pathlib.Path('/given')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'data'))
    assert len(data.load('toy', cache=tmp_path / 'cache').train) == 12
    assert len(data.load('toy', '', cache=tmp_path / 'cache').train) == 12
    monkeypatch.delenv('TFDS_DATA_DIR')
    monkeypatch.setenv('HOME', '/home/of/somebody')
    assert prepared.data_dir() == pathlib.Path('/home/of/somebody/tensorflow_datasets')


def test_the_newest_version_or_the_one_that_is_named(tmp_path: pathlib.Path):
    old = tiny_tfds.write(tmp_path / 'data')
    for version in ('9.0.0', '10.0.0'):
        shutil.copytree(old, old.parent / version)
        info = json.loads((old / 'dataset_info.json').read_text()) | {'version': version}
        (old.parent / version / 'dataset_info.json').write_text(json.dumps(info))
    (old.parent / '11.0.0.incompleteABC').mkdir()
    assert prepared.find('toy', tmp_path / 'data').version == '10.0.0'
    assert prepared.find('toy:9.0.0', tmp_path / 'data').version == '9.0.0'
    assert prepared.find('toy', old).version == '1.0.0'
    assert len(_load(tmp_path, 'toy:9.0.0').train) == 12


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
@pytest.mark.parametrize('damage', ['cut', 'flip', 'missing', 'empty', 'fewer'])
def test_a_bad_shard_is_named_with_what_to_do(tmp_path: pathlib.Path, file_format: str, damage: str):
    folder = tiny_tfds.write(tmp_path / 'data', file_format=file_format)
    file = folder / f'toy-train.{file_format}-00001-of-00002'
    content = bytearray(file.read_bytes())
    if damage == 'missing':
        file.unlink()
    elif damage == 'fewer':
        shutil.copyfile(folder / f'toy-train.{file_format}-00000-of-00002', file)
    else:
        content[200] ^= 16 if damage == 'flip' else 0
        file.write_bytes({'cut': content[: len(content) * 2 // 3], 'flip': content, 'empty': b''}[damage])
    words = (file.name, 'prepare it again: python -m kcd_jax data prepare toy')
    loading = _one_line(lambda: _load(tmp_path), *words)
    checking = _one_line(lambda: data.check('toy', tmp_path / 'data', cache=tmp_path / 'cache'), *words)
    assert loading == checking


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', ['', '{"splits": [', '[]', '{}', '{"supervisedKeys": null, "featuresDict": 3}'])
def test_invalid_metadata_raises_one_line(tmp_path: pathlib.Path, file: str, content: str):
    (tiny_tfds.write(tmp_path / 'data') / file).write_text(content)
    _one_line(lambda: _load(tmp_path), 'prepare it again')


def test_a_record_that_is_not_an_image(tmp_path: pathlib.Path):
    folder = tiny_tfds.write(tmp_path / 'data', shards=(1, 1))
    tiny_tfds.write_records(folder / 'toy-train.tfrecord-00001-of-00002', [b'sound, but no example'])
    _one_line(lambda: _load(tmp_path), 'toy-train.tfrecord-00001-of-00002', 'record 1 of train')


def test_several_sizes_are_refused(tmp_path: pathlib.Path):
    first = tiny_tfds.write(tmp_path / 'data')
    other = tiny_tfds.write(tmp_path / 'other', shape=(8, 9, 3))
    name = 'toy-train.tfrecord-00001-of-00002'
    shutil.copyfile(other / name, first / name)
    _one_line(lambda: _load(tmp_path), '8x9 pixels, others 8x8', 'toy:8')
    assert _load(tmp_path, 'toy:8').image_shape == (8, 8, 3)


def test_too_large_for_the_memory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    tiny_tfds.write(tmp_path / 'data')
    monkeypatch.setattr(os, 'sysconf', lambda name: 4)
    _one_line(lambda: _load(tmp_path, loading=data.Loading(stream=False)), 'GiB in memory', 'data.stream=true')
    assert _load(tmp_path).train.streamed


def test_missing_data_fails_at_once_with_the_remedy(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    start = time.monotonic()
    for call in (lambda: _load(tmp_path, 'cifar100'), lambda: data.check('cifar100', tmp_path / 'data')):
        _one_line(
            call,
            f'cifar100 is not prepared in {tmp_path / "data"}',
            'kcd_jax[prepare]',
            'TFDS_DATA_DIR',
            '--config.data.dir',
            'no such folder',
        )
    assert time.monotonic() - start < 2
    assert not (tmp_path / 'data').exists()
    tiny_tfds.write(tmp_path / 'data')
    _one_line(lambda: _load(tmp_path, 'cifar100'), 'found only toy')


def test_unknown_names_have_a_hint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    _one_line(lambda: _load(tmp_path, 'mnsit'), "did you mean 'mnist'?", 'digits')
    _one_line(lambda: _load(tmp_path, 'tiny_imagenet:3'), "did you mean 'tiny_imagenet'?")
    for name in ('', '/images', '../cifar10', 'mnist:abc', 'mnist:', 'a/b/c', 'C:\\images'):
        _one_line(lambda name=name: _load(tmp_path, name), repr(name), 'folder:SIZE')
    # Sets of TFDS beyond the list are looked for as those in it, before anything is installed for them.
    _one_line(lambda: _load(tmp_path, 'imagenet_resized/32x32'), 'imagenet_resized/32x32 is not prepared in')


def test_which_sets_need_tensorflow(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data')
    for name, needed in (
        ('digits', False),
        ('folder:32', False),
        ('toy', False),
        ('cifar100', True),
        ('tcifar100', True),
        ('imagenet_resized/32x32', True),
    ):
        assert data.needs_tensorflow(name, tmp_path / 'data') == needed
    _one_line(lambda: data.needs_tensorflow('cifr10', tmp_path / 'data'), "did you mean 'cifar10'?")


_OF_IMAGES = {
    'image': tensorflow_datasets.features.Image(),
    'label': tensorflow_datasets.features.ClassLabel(names=['a']),
}


class _Builder:
    """What `prepare` uses of a TFDS builder."""

    info = types.SimpleNamespace(features=_OF_IMAGES, supervised_keys=('image', 'label'))

    def __init__(self, root: pathlib.Path, error: Exception | None, urls: dict[str, None] | None = None):
        self.data_dir, self.error, self.url_infos = root / 'cifar100' / '3.0.2', error, urls

    def download_and_prepare(self, file_format: str) -> None:
        if self.error is not None:
            raise self.error
        self.data_dir.mkdir(parents=True)
        (self.data_dir / 'dataset_info.json').write_text('{}')


@pytest.fixture
def with_tensorflow(monkeypatch: pytest.MonkeyPatch):
    """As if TensorFlow were installed; returns a function that sets the builder."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())

    def use(builder: _Builder) -> None:
        monkeypatch.setattr(tensorflow_datasets, 'builder', lambda name, data_dir, file_format: builder)

    return use


def test_a_failed_download_raises_one_line(tmp_path: pathlib.Path, with_tensorflow):
    with_tensorflow(_Builder(tmp_path, ConnectionError('no route\nto the host')))
    message = _one_line(lambda: data.load('cifar100', tmp_path), 'TFDS: no route', 'data prepare cifar100 --dir')
    assert 'kcd_jax[prepare]' not in message


def test_a_check_downloads_nothing(tmp_path: pathlib.Path, with_tensorflow):
    with_tensorflow(_Builder(tmp_path, AssertionError('must not be tried')))
    for name in ('cifar100', 'tcifar100'):
        _one_line(lambda name=name: data.check(name, tmp_path), 'cifar100 is not prepared', 'a check downloads nothing')


def test_a_set_of_another_task_is_refused_before_it_is_downloaded(tmp_path: pathlib.Path, with_tensorflow):
    builder = _Builder(tmp_path, AssertionError('must not be tried'))
    builder.info = types.SimpleNamespace(
        features={'text': tensorflow_datasets.features.Text(), 'label': _OF_IMAGES['label']},
        supervised_keys=('text', 'label'),
    )
    with_tensorflow(builder)
    _one_line(lambda: preparing.prepare('cifar100', tmp_path), 'not an image classification set (it has label, text)')
    builder.info = types.SimpleNamespace(features=_OF_IMAGES | {'bbox': None}, supervised_keys=None)
    builder.error = None
    preparing.prepare('cifar100', tmp_path)


def test_a_download_that_works(tmp_path: pathlib.Path, with_tensorflow, capsys: pytest.CaptureFixture[str]):
    with_tensorflow(_Builder(tmp_path, None))
    preparing.prepare('cifar100', tmp_path)
    assert (tmp_path / 'cifar100' / '3.0.2' / 'dataset_info.json').is_file()
    assert capsys.readouterr().out == f'cifar100 is not prepared in {tmp_path}: TFDS prepares it now\n'
