"""Holding out, few points, and the constants of the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax.data import base


def _dataset(train: int = 50, test: int = 7) -> base.Dataset:
    random = np.random.default_rng(0)
    splits = [
        base.Split(
            random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8),
            random.integers(0, 5, n).astype(np.int32),
            np.array([f'{n}_{i}' for i in range(n)]),
        )
        for n in (train, test)
    ]
    return base.Dataset(
        'toy',
        *splits,
        class_names=tuple('abcde'),
        num_classes=5,
        image_shape=(4, 4, 3),
        normalization=base.measure(splits[0].images),
        description='a toy',
    )


def test_measure_is_the_plain_mean_and_standard_deviation():
    images = _dataset().train.images
    pixels = images.reshape(-1, 3) / 255.0
    mean, std = base.measure(images)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=5e-5)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=5e-5)


def test_a_constant_channel_is_not_divided_by_zero():
    assert base.measure(np.full((2, 4, 4, 3), 7, np.uint8)).std == (1.0, 1.0, 1.0)


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(-3, 2**40))
def test_held_out_points_are_disjoint_and_cover(fraction: float, seed: int):
    data = _dataset()
    if not 0 < round(fraction * 50) < 50:
        return
    split = base.hold_out(data, fraction, seed)
    assert len(split.validation) == round(fraction * 50)
    assert set(split.train.ids) | set(split.validation.ids) == set(data.train.ids)
    assert not set(split.train.ids) & set(split.validation.ids)
    again = base.hold_out(data, fraction, seed)
    np.testing.assert_array_equal(split.train.ids, again.train.ids)
    # Both parts keep the order of the data, and images and labels stay with their points.
    for part in (split.train, split.validation):
        index = np.array([int(i.split('_')[1]) for i in part.ids])
        assert (np.diff(index) > 0).all()
        np.testing.assert_array_equal(part.images, data.train.images[index])
        np.testing.assert_array_equal(part.labels, data.train.labels[index])
    assert split.test is data.test
    assert split.normalization == data.normalization


def test_another_seed_holds_out_other_points():
    first, second = (base.hold_out(_dataset(), 0.3, seed).validation.ids for seed in (0, 1))
    assert set(first) != set(second)


def test_few_points_are_nested_and_in_order():
    data = _dataset()
    small, large = base.few(data, 10), base.few(data, 30)
    assert len(small.train) == 10
    assert set(small.train.ids) < set(large.train.ids)
    assert (np.diff([int(i.split('_')[1]) for i in large.train.ids]) > 0).all()
    assert base.few(data, 0) is data


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda data: base.hold_out(data, 1.0, 0), 'data.validation=1.0'),
        (lambda data: base.hold_out(data, -0.1, 0), 'data.validation=-0.1'),
        (lambda data: base.hold_out(data, 0.001, 0), '0 validation'),
        (lambda data: base.few(data, 51), '50 training points'),
        (lambda data: base.few(data, -1), 'data.num_points=-1'),
    ],
)
def test_impossible_parts_are_one_line(call, words: str):
    with pytest.raises(ValueError, match=words) as error:
        call(_dataset())
    assert '\n' not in str(error.value)


def test_describe_counts_every_part():
    line = base.describe(base.hold_out(_dataset(), 0.2, 3))
    assert '40 train, 10 validation, 7 test, 5 classes, 4x4' in line
    assert 'held out by seed 3, not on test' in line
