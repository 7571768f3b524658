"""A folder of images: good ones of every kind, bad ones named."""

from __future__ import annotations

import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data
from kcd_jax.data import _files

COLOURS = {'amber': (200, 120, 0), 'blue': (10, 20, 220)}


def _write(root: pathlib.Path, size: tuple[int, int] = (24, 24)) -> pathlib.Path:
    """Two classes of three images each in train, and of one in val; one colour per class."""
    for split, number in (('train', 3), ('val', 1)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new('RGB', size, colour).save(root / split / name / f'{i}.png')
    return root


def _load(root: pathlib.Path, name: str = 'folder:16', **keywords) -> data.Dataset:
    return data.load(name, root / 'images', cache=root / 'cache', **keywords)


def _one_line(call, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_points_in_the_order_of_their_paths(tmp_path: pathlib.Path):
    _write(tmp_path / 'images')
    loaded = _load(tmp_path)
    assert loaded.class_names == ('amber', 'blue')
    assert loaded.train.ids.tolist() == [f'train/{name}/{i}.png' for name in COLOURS for i in range(3)]
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.test.ids.tolist() == ['val/amber/0.png', 'val/blue/0.png']
    assert loaded.image_shape == (16, 16, 3)
    for label, colour in enumerate(COLOURS.values()):
        assert (loaded.train.images[loaded.train.labels == label] == np.array(colour)).all()


def test_without_a_size_images_keep_theirs(tmp_path: pathlib.Path):
    _write(tmp_path / 'images', (20, 24))
    assert _load(tmp_path, 'folder').image_shape == (24, 20, 3)
    Image.new('RGB', (30, 24)).save(tmp_path / 'images' / 'train' / 'blue' / 'wide.png')
    _one_line(lambda: _load(tmp_path, 'folder'), 'wide.png', '24x30', 'folder:20')


def test_the_shorter_side_is_scaled_and_the_middle_cut(tmp_path: pathlib.Path):
    _write(tmp_path / 'images')
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    Image.fromarray(wide).save(tmp_path / 'images' / 'train' / 'blue' / 'wide.png')
    loaded = _load(tmp_path)
    [image] = loaded.train.images[loaded.train.ids == 'train/blue/wide.png']
    assert (image[:, 1:-1] == 255).all()
    assert image.min() > 200  # the filter reaches over the cut


def test_every_kind_of_image_becomes_rgb(tmp_path: pathlib.Path):
    place = _write(tmp_path / 'images') / 'train' / 'amber'
    image = Image.new('RGB', (40, 30), COLOURS['amber'])
    image.convert('L').save(place / 'grey.png')
    image.convert('CMYK').save(place / 'cmyk.JPG')
    image.convert('RGBA').save(place / 'rgba.webp', lossless=True)
    image.convert('P', palette=Image.Palette.ADAPTIVE).save(place / 'palette.gif')
    rotated = Image.new('RGB', (40, 30), COLOURS['amber'])
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(place / 'rotated.jpeg', exif=exif)
    loaded = _load(tmp_path)
    assert len(loaded.train) == 3 + 5 + 3
    for kind in ('cmyk.JPG', 'rgba.webp', 'palette.gif', 'rotated.jpeg'):
        [found] = loaded.train.images[loaded.train.ids == f'train/amber/{kind}']
        np.testing.assert_allclose(found.astype(int), np.broadcast_to(COLOURS['amber'], (16, 16, 3)), atol=6)
    [grey] = loaded.train.images[loaded.train.ids == 'train/amber/grey.png']
    assert (grey == grey[:1, :1, :1]).all()


def test_bad_files_are_named_and_the_others_used(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / ('a_long_name_' * 10) / 'images'
    place = _write(root) / 'train' / 'amber'
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(place / 'cut.jpg')
    content = (place / 'cut.jpg').read_bytes()
    (place / 'cut.jpg').write_bytes(content[: len(content) // 2])
    (place / 'zero.jpg').touch()
    (place / 'text.jpg').write_text('no image')
    (place / 'notes.txt').write_text('passed over')
    (place / '.hidden.png').write_text('passed over')
    for _ in range(2):  # decoded, and from the cache
        line = data.check('folder:16', root, cache=tmp_path / 'cache')
        assert '6 train, 2 test' in line
        assert '3 bad files left out' in line
        [message] = capsys.readouterr().out.splitlines()
        assert 'hidden or system entries: 1 (train/amber/.hidden.png)' in line
        assert 'files that are no images: 1 (train/amber/notes.txt)' in line
        for name in ('cut.jpg', 'zero.jpg (empty)', 'text.jpg'):
            assert name in message
        assert 'notes' not in message and ' at 0x' not in message and str(root / 'train') not in message
        assert 'hidden' not in message


def test_a_changed_file_is_decoded_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    _write(tmp_path / 'images')
    _load(tmp_path)
    Image.new('RGB', (24, 24), (1, 2, 3)).save(tmp_path / 'images' / 'train' / 'blue' / '1.png')
    assert _load(tmp_path).train.images[4].max() == 3
    monkeypatch.setattr(_files, '_decode', lambda *arguments: pytest.fail('decoded again'))
    _load(tmp_path)


def test_invalid_folders_raise_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / 'images'
    _one_line(lambda: data.load('folder:16'), '--config.data.dir')
    _one_line(lambda: _load(tmp_path), 'there is no folder')
    (root / 'train' / 'amber').mkdir(parents=True)
    _one_line(lambda: _load(tmp_path), 'no image in')
    (root / 'val').mkdir()
    _one_line(lambda: _load(tmp_path), 'no image in')
    Image.new('RGB', (9, 9)).save(root / 'train' / 'amber' / 'one.png')
    (root / 'val' / 'amber').mkdir()
    Image.new('RGB', (9, 9)).save(root / 'val' / 'amber' / 'one.png')
    _one_line(lambda: _load(tmp_path), '1 class folders with images')
    for folder in ('train/blue', 'val/cyan'):
        (root / folder).mkdir()
        Image.new('RGB', (9, 9)).save(root / folder / 'one.png')
    _one_line(lambda: _load(tmp_path), "'cyan'")
    (root / 'val' / 'cyan' / 'one.png').unlink()
    assert len(_load(tmp_path).train) == 2
    (root / 'train' / 'amber' / 'one.png').write_text('')
    _one_line(lambda: _load(tmp_path), "none of the 1 train images of the class 'amber'", 'one.png: empty')
    for name in ('folder:', 'folder:x', 'folder:0', 'folder:99999'):
        _one_line(lambda name=name: _load(tmp_path, name), 'folder:SIZE')
    monkeypatch.setattr(os, 'sysconf', lambda name: 4)
    _one_line(lambda: _load(tmp_path, loading=data.Loading(stream=False)), 'GiB in memory', 'data.stream=true')


def test_many_bad_files_are_counted(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    place = _write(tmp_path / 'images') / 'train' / 'amber'
    for i in range(13):
        (place / f'bad{i}.jpg').touch()
    _load(tmp_path)
    [line] = capsys.readouterr().out.splitlines()
    assert '13 files' in line and 'and 3 more' in line


def test_a_tenth_is_held_out_where_there_is_no_test_folder(tmp_path: pathlib.Path):
    for place in ('images', 'images/train'):  # class folders in the root, or in train
        for name, colour in COLOURS.items():
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(15):
                Image.new('RGB', (9 + i, 30 - i), colour).save(tmp_path / place / name / f'{i:02}.jpg')
        loaded = _load(tmp_path)
        assert loaded.class_names == tuple(COLOURS) and loaded.labelled and loaded.scored
        assert '4 of 30 images are held out' in loaded.description
        assert np.bincount(loaded.train.labels).tolist() == [13, 13] and np.bincount(loaded.test.labels).tolist() == [
            2,
            2,
        ]
        assert not {*loaded.train.ids} & {*loaded.test.ids}
        assert loaded.identity == _load(tmp_path).identity
        for name in COLOURS:
            shutil.rmtree(tmp_path / place / name)


def test_images_outside_of_class_folders_have_no_labels(tmp_path: pathlib.Path):
    root = tmp_path / 'images'
    for place, names in (('', 'abcdefghij'), ('train', 'abcd'), ('test/amber', 'x'), ('test/blue', 'y')):
        (root / place).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new('RGB', (20, 30), COLOURS['blue']).save(root / place / f'{name}.png')
    loaded = _load(tmp_path)  # what lies outside of train is passed over
    assert (loaded.labelled, loaded.test_labelled) == (False, True)
    assert loaded.class_names == ('amber', 'blue') and loaded.test.labels.tolist() == [0, 1]
    assert len(loaded.train) == 4 and not loaded.train.labels.any() and 'without labels' in loaded.description
    assert not data.part(loaded, 0.25, 0, 0).scored  # validation points are training points
    shutil.rmtree(root / 'train')
    _one_line(lambda: _load(tmp_path), 'no folder train')
    shutil.rmtree(root / 'test')
    loaded = _load(tmp_path)
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (9, 1, 0)
    assert not loaded.scored and 'classes of the teacher' in data.describe(loaded)
    streamed = _load(tmp_path, loading=data.Loading(stream=True))
    assert streamed.train.streamed and not streamed.labelled
    (root / 'training').mkdir()
    Image.new('RGB', (20, 30)).save(root / 'training' / 'x.png')
    _one_line(lambda: _load(tmp_path), 'train and test', "'training'")
    (root / 'training').rename(root / 'Train')
    _one_line(lambda: _load(tmp_path), 'train and test', "'Train'")
