"""What else lies in a folder of images: passed over and named, followed, or refused; never counted as images."""

from __future__ import annotations

import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data

TRAIN, TEST = 6, 3  # of each of two classes


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    random = np.random.RandomState(0)
    for split, number in (('train', TRAIN), ('test', TEST)):
        for label in ('cat', 'dog'):
            folder = tmp_path / 'images' / split / label
            folder.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(random.randint(0, 255, (12, 12, 3)).astype(np.uint8)).save(folder / f'{i}.png')
    return tmp_path / 'images'


def load(root: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> tuple[data.Dataset, str]:
    """The data set, and what was said in at most one line; the description says it too."""
    loaded = data.load('folder', root, cache=root.parent / 'cache')
    said = capsys.readouterr().out.strip()
    assert '\n' not in said
    assert 'passed over' not in said or said.partition(': ')[2] in data.describe(loaded)
    return loaded, said


def refused(root: pathlib.Path, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        data.load('folder', root, cache=root.parent / 'cache')
    message = str(error.value)
    assert '\n' not in message and not [word for word in words if word not in message], message


def test_nothing_is_said_of_a_clean_folder(root: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    loaded, said = load(root, capsys)
    assert (len(loaded.train), len(loaded.test), said) == (2 * TRAIN, 2 * TEST, '')


def test_a_second_folder_of_test_images_is_named(root: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(root / 'test', root / 'val')
    loaded, said = load(root, capsys)
    assert len(loaded.test) == 2 * TEST and 'further folders of test images: 1 (val)' in said


@pytest.mark.parametrize(
    'name', ['.ipynb_checkpoints', '@eaDir', '__MACOSX', '.thumbnails', '#recycle', '$RECYCLE.BIN']
)
@pytest.mark.parametrize('within', ['', 'dog'])
def test_system_folders_are_passed_over(root: pathlib.Path, capsys, name: str, within: str):
    folder = root / 'train' / within / name
    folder.mkdir()
    shutil.copy(root / 'train' / 'dog' / '0.png', folder / 'copy.png')
    loaded, said = load(root, capsys)
    assert len(loaded.train) == 2 * TRAIN and loaded.class_names == ('cat', 'dog')
    assert f'hidden or system entries: 1 ({folder.relative_to(root)})' in said


def test_system_files_and_other_files_are_counted(root: pathlib.Path, capsys):
    for name in ('Thumbs.db', '.DS_Store', '._0.png', 'notes.txt', 'labels.csv', 'no_suffix'):
        (root / 'train' / 'cat' / name).write_text('text')
    (root / 'train' / 'readme.md').write_text('text')
    loaded, said = load(root, capsys)
    assert len(loaded.train) == 2 * TRAIN
    assert 'hidden or system entries: 3 (train/cat/.DS_Store, ...)' in said
    assert 'files that are no images: 3 (train/cat/labels.csv, ...)' in said
    assert 'files outside of class folders: 1 (train/readme.md)' in said


def test_an_empty_folder_is_not_a_class(root: pathlib.Path, capsys):
    (root / 'train' / 'bird').mkdir()
    (root / 'train' / 'fish' / '.git').mkdir(parents=True)
    loaded, said = load(root, capsys)
    assert loaded.class_names == ('cat', 'dog') and 'empty class folders: 2 (train/bird, ...)' in said


def test_a_class_without_test_images_is_named(root: pathlib.Path, capsys):
    shutil.copytree(root / 'train' / 'cat', root / 'train' / 'bird')
    loaded, said = load(root, capsys)
    assert loaded.num_classes == 3 and 'classes without test images: 1 (test/bird)' in said


def test_dangling_links_are_counted(root: pathlib.Path, capsys):
    for i in range(4):
        (root / 'train' / 'cat' / f'{i}.png').unlink()
        os.symlink('/mnt/not_mounted/x.png', root / 'train' / 'cat' / f'{i}.png')
    loaded, said = load(root, capsys)
    assert len(loaded.train) == 2 * TRAIN - 4 and 'dangling links: 4 (train/cat/0.png, ...)' in said


def test_a_class_with_only_dangling_links_or_other_files_is_refused(root: pathlib.Path):
    (root / 'train' / 'bird').mkdir()
    os.symlink('/mnt/not_mounted/x.png', root / 'train' / 'bird' / 'x.png')
    refused(root, 'train/bird has no image', 'dangling links: 1')
    (root / 'train' / 'bird' / 'x.png').unlink()
    (root / 'train' / 'bird' / 'x.txt').write_text('text')
    refused(root, 'train/bird has no image', 'files that are no images: 1')


def test_links_are_followed(root: pathlib.Path, capsys):
    outside = root.parent / 'more'
    shutil.copytree(root / 'train' / 'cat', outside)
    os.symlink(outside, root / 'train' / 'cat' / 'more')  # a folder below a class
    os.symlink(outside, root / 'train' / 'bird')  # a class
    os.symlink(outside / '0.png', root / 'train' / 'dog' / 'linked.png')  # a file
    shutil.copytree(outside, root / 'test' / 'bird')
    loaded, said = load(root, capsys)
    counts = np.bincount(loaded.train.labels)
    assert loaded.class_names == ('bird', 'cat', 'dog') and said == ''
    assert counts.tolist() == [TRAIN, 2 * TRAIN, TRAIN + 1]


@pytest.mark.parametrize('target', ['.', '..', '../..'])
def test_a_link_that_leads_to_a_folder_above_is_refused(root: pathlib.Path, target: str):
    os.symlink(target, root / 'train' / 'cat' / 'loop')
    words = ('train/cat/loop is a link to', 'remove the link') if target == '.' else ('is a link to', 'remove the link')
    refused(root, *words)


def test_unknown_suffixes_are_judged_by_content(root: pathlib.Path, capsys):
    before, _ = load(root, capsys)
    for number, path in enumerate(sorted((root / 'train').rglob('*.png'))):
        path.rename(path.with_suffix(('.jfif', '.PNG', '', '.image')[number % 4]))
    after, said = load(root, capsys)
    assert said == '' and len(after.train) == 2 * TRAIN
    assert {image.tobytes() for image in after.train.images} == {image.tobytes() for image in before.train.images}


def test_a_class_without_a_readable_image_is_refused(root: pathlib.Path):
    for path in (root / 'train' / 'cat').iterdir():
        path.write_bytes(b'<html>')
    refused(root, f"none of the {TRAIN} train images of the class 'cat'", '0.png: cannot identify image file')


def test_a_class_whose_mode_is_not_supported_is_refused_by_its_mode(root: pathlib.Path):
    for path in (root / 'test' / 'dog').iterdir():
        Image.fromarray(np.full((12, 12), 1e6, np.float32)).save(path, 'TIFF')
    refused(root, f"none of the {TEST} test images of the class 'dog'", 'mode F with values from 1e+06')


def test_a_split_with_one_grey_level_is_reported(root: pathlib.Path, capsys):
    for path in (root / 'test').rglob('*.png'):
        Image.fromarray(np.random.RandomState(0).randint(0, 200, (12, 12)).astype(np.uint16)).save(path)
    _, said = load(root, capsys)
    assert 'all pixels of the split test lie between 0 and 1 of 255' in said


def test_names_that_are_not_utf_8_are_escaped(root: pathlib.Path, capsys):
    for split in ('train', 'test'):
        os.rename(root / split / 'cat', os.fsencode(root / split) + b'/caf\xe9')
    os.rename(root / 'train' / 'dog' / '1.png', os.fsencode(root / 'train' / 'dog') + b'/\xff.png')
    (root / 'train' / 'dog' / '2.png').write_bytes(b'text')
    loaded, said = load(root, capsys)
    assert loaded.class_names == ('caf\\xe9', 'dog') and len(loaded.train) == 2 * TRAIN - 1
    for text in (data.describe(loaded), said, *loaded.class_names):
        text.encode()
    assert loaded.identity == data.load('folder', root, cache=root.parent / 'cache').identity
    streamed = data.load('folder', root, cache=root.parent / 'cache', loading=data.Loading(stream=True))
    np.testing.assert_array_equal(np.asarray(streamed.train.images), loaded.train.images)


def test_names_of_several_lines_are_escaped(root: pathlib.Path, capsys):
    for split in ('train', 'test'):
        (root / split / 'cat').rename(root / split / 'c\nat')
    loaded, _ = load(root, capsys)
    assert loaded.class_names == ('c\\x0aat', 'dog')


def test_a_link_to_itself_is_dangling(root: pathlib.Path, capsys):
    os.symlink('self', root / 'train' / 'cat' / 'self')
    loaded, said = load(root, capsys)
    assert len(loaded.train) == 2 * TRAIN and 'dangling links: 1 (train/cat/self)' in said


@pytest.mark.parametrize('stream', [False, True])
def test_exchanged_folders_change_the_identity(root: pathlib.Path, stream: bool):
    def identity() -> tuple[str, dict[str, str], data.Dataset]:
        loaded = data.load('folder', root, cache=root.parent / 'cache', loading=data.Loading(stream=stream))
        return loaded.identity, loaded.digests, loaded

    before, digests, _ = identity()
    for one, other in (('cat', 'swap'), ('dog', 'cat'), ('swap', 'dog')):
        (root / 'test' / one).rename(root / 'test' / other)
    after, _, loaded = identity()
    assert before != after and loaded.changes(digests) == ['test images']
    for one, other in (('cat', 'swap'), ('dog', 'cat'), ('swap', 'dog')):
        (root / 'test' / one).rename(root / 'test' / other)
    assert identity()[0] == before
    moved = root.with_name('moved')
    root.rename(moved)
    again = data.load('folder', moved, cache=root.parent / 'cache', loading=data.Loading(stream=stream))
    assert again.identity == before
