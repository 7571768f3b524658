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


# ------------------------------------------------------------------------------------------------------------- regimes


@pytest.fixture(scope='module')
def regimes() -> dict[str, data.Dataset]:
    return {name: data.load(f'digits:{name}') for name in digits.REGIMES if name}


def test_regimes_have_the_counts_that_are_known_without_files(regimes):
    for name, found in regimes.items():
        shapes = data.shapes_of(f'digits:{name}')
        assert (len(found.train), len(found.test)) == (len(shapes.train), len(shapes.test)), name
        again = data.load(f'digits:{name}')
        assert found.identity == again.identity
    assert len({found.identity for found in regimes.values()}) == len(regimes)
    with pytest.raises(ValueError, match="unknown regime 'easy' of the digits; .* clean, hard, long"):
        data.load('digits:easy')


def test_noisy_regimes_show_each_test_point_in_ten_draws(regimes, loaded):
    for name, found in regimes.items():
        draws = 1 if name == 'clean' else digits.DRAWS
        assert found.test.ids.tolist() == loaded.test.ids.tolist() * draws
        np.testing.assert_array_equal(found.test.labels, np.tile(loaded.test.labels, draws))
        images = found.test.images.reshape(draws, 597, -1)
        assert all((images[0] != images[draw]).any(axis=1).all() for draw in range(1, draws))
        assert not set(found.train.ids) & set(found.test.ids)
    np.testing.assert_array_equal(regimes['hard'].train.images, loaded.train.images)


def test_the_clean_digits_are_the_source(regimes):
    from sklearn.datasets import load_digits

    source, found = load_digits().images * (255 / 16), regimes['clean'].train
    order = [int(name.split('_')[1]) for name in found.ids]
    np.testing.assert_array_equal(found.images[:, ::2, ::2, 0], np.rint(source[order]))


def test_the_long_tail(regimes):
    counts = np.bincount(regimes['long'].train.labels)
    assert counts.tolist() == sorted(counts, reverse=True) and (counts[0], counts[-1]) == (110, 3)
    ratios = counts[1:] / counts[:-1]
    assert (abs(ratios - (3 / 110) ** (1 / 9)) < 0.1).all()


def test_redundant_points_have_near_copies(regimes, loaded):
    found = regimes['redundant'].train
    names, counts = np.unique(found.ids, return_counts=True)
    assert sorted(counts.tolist()) == [1] * 200 + [10] * 100
    for name in names[counts == 10][:5]:
        group = found.images[found.ids == name].astype(float)
        assert len(set(found.labels[found.ids == name])) == 1
        assert 0 < np.abs(group - group[:1]).max() < 120 and len(np.unique(group, axis=0)) == 10
    assert set(found.ids) == set(loaded.train.ids[:300])


def test_a_fifth_of_the_labels_is_wrong_and_no_test_label(regimes, loaded):
    found = regimes['noisy']
    np.testing.assert_array_equal(found.train.images, loaded.train.images)
    wrong = found.train.labels != loaded.train.labels
    assert wrong.sum() == 240
    moved = (found.train.labels[wrong] - loaded.train.labels[wrong]) % 10
    assert set(moved) == set(range(1, 10))
