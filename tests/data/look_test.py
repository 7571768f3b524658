"""One look at every image: duplicates, mean and deviation, the contact sheet."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data
from kcd_jax.data import base, look


def _repeated(loaded: data.Dataset) -> data.Dataset:
    """With points 3, 3 and 7 again, the last under another label, and four training images among the test images."""
    train, test = loaded.train, loaded.test
    more = train.take(np.concatenate([np.arange(len(train)), [3, 3, 7]]))
    more.labels[-1] += 1
    twice = data.Split(np.concatenate([test.images, train.images[:4]]), np.concatenate([test.labels, train.labels[:4]]))
    return dataclasses.replace(loaded, train=more, test=twice)


@pytest.mark.parametrize('streamed', [False, True])
def test_exact_duplicates_are_counted(streamed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(look, '_PART', 500)
    for loaded, counts in ((data.load('digits'), (0, 0, 0)), (_repeated(data.load('digits')), (2, 1, 4))):
        seen = look.look(base.by_index(loaded) if streamed else loaded)
        assert (seen.same, seen.other, seen.leaked) == counts
        assert seen.images == len(loaded.train)
        assert seen.normalization == base.measure(loaded.train.images)


def test_a_sample_is_spread_over_the_points():
    loaded = _repeated(data.load('digits'))
    seen = look.look(base.by_index(loaded), 100)
    assert seen.images == 100
    index = np.linspace(0, len(loaded.train) - 1, 100).astype(int)
    assert seen.normalization == base.measure(loaded.train.images[index])


def test_the_sheet_has_a_class_each_row_beside_its_name(tmp_path: pathlib.Path):
    loaded = data.load('digits')
    look.contact_sheet(loaded, tmp_path / 'sheet.png')
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    third = np.flatnonzero(loaded.train.labels == 4)[2]
    left = look._NAME + 2 * 64
    np.testing.assert_array_equal(sheet[4 * 64 : 5 * 64 : 4, left : left + 64 : 4], loaded.train.images[third])
    names = sheet[:, : look._NAME].reshape(10, -1)
    assert (names != 255).any(axis=1).all() and len(np.unique(names, axis=0)) == 10


def test_classes_without_images_have_no_row(tmp_path: pathlib.Path):
    loaded = data.load('digits')
    some = dataclasses.replace(loaded, train=loaded.train.take(np.isin(loaded.train.labels, [2, 5, 9])))
    some = dataclasses.replace(some, class_names=('a name that is much longer than there is place for it',) * 10)
    look.contact_sheet(some, tmp_path / 'sheet.png')
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    assert len(sheet) == 3 * 64
    assert (sheet[:, look._NAME - 4 : look._NAME] == 255).all()
