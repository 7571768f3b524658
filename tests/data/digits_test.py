"""The embedded default."""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.data import digits


@pytest.fixture(scope='module')
def loaded() -> data.Dataset:
    return data.load('digits')


def test_shapes_and_counts(loaded: data.Dataset):
    assert loaded.train.images.shape == (1200, 16, 16, 3)
    assert loaded.test.images.shape == (597, 16, 16, 3)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == np.int32
    assert loaded.image_shape == (16, 16, 3)
    assert loaded.num_classes == len(loaded.class_names) == 10
    assert set(loaded.train.labels) == set(loaded.test.labels) == set(range(10))


def test_every_load_is_the_same_and_the_splits_are_disjoint(loaded: data.Dataset):
    again = data.load('digits')
    np.testing.assert_array_equal(loaded.train.images, again.train.images)
    np.testing.assert_array_equal(loaded.test.images, again.test.images)
    assert len(set(loaded.train.ids) | set(loaded.test.ids)) == 1797


def test_noise_and_shift_are_in_both_splits(loaded: data.Dataset):
    from sklearn.datasets import load_digits

    source = load_digits()
    for split in (loaded.train, loaded.test):
        clean = source.images[[int(i.split('_')[1]) for i in split.ids]] * (255 / 16)
        np.testing.assert_array_equal(split.labels, source.target[[int(i.split('_')[1]) for i in split.ids]])
        clean = clean.repeat(2, axis=1).repeat(2, axis=2)
        grey = split.images[..., 0].astype(float)
        np.testing.assert_array_equal(split.images[..., 1], split.images[..., 0])
        shifts = range(-digits.SHIFT, digits.SHIFT + 1)
        padded = np.pad(clean, ((0, 0), (digits.SHIFT,) * 2, (digits.SHIFT,) * 2))
        errors = np.stack(
            [
                np.square(padded[:, y + digits.SHIFT :, x + digits.SHIFT :][:, :16, :16] - grey).mean(axis=(1, 2))
                for y in shifts
                for x in shifts
            ]
        )
        # All 25 shifts occur, and what is left after the right one is the noise (less where it was clipped).
        assert len(set(errors.argmin(axis=0))) == (2 * digits.SHIFT + 1) ** 2
        assert 0.5 * digits.NOISE < np.sqrt(errors.min(axis=0).mean()) < digits.NOISE


def test_few_points_for_the_student(loaded: data.Dataset):
    few = data.load('digits', num_points=300)
    assert len(few.train) == 300
    assert set(few.train.ids) < set(loaded.train.ids)
    np.testing.assert_array_equal(few.test.images, loaded.test.images)
    assert few.normalization == loaded.normalization


def test_the_description_says_that_the_digits_were_made_hard(loaded: data.Dataset):
    assert 'made hard' in loaded.description
    assert data.check('digits').startswith('digits: 1,200 train, 597 test, 10 classes, 16x16')


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match='digits'):
        data.load('digitz')
