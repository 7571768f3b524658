"""Holding out, few points, and the constants of the data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax import data as data_lib
from kcd_jax.data import _dataset, _parts


def _toy(train: int = 50, test: int = 7) -> _dataset.Dataset:
    random = np.random.default_rng(0)
    splits = [
        _dataset.Split(
            random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8),
            random.integers(0, 5, n).astype(np.int32),
            np.array([f'{n}_{i}' for i in range(n)]),
        )
        for n in (train, test)
    ]
    return _dataset.Dataset(
        'toy',
        *splits,
        class_names=tuple('abcde'),
        num_classes=5,
        image_shape=(4, 4, 3),
        normalization=_dataset.measure(splits[0].images),
        description='a toy',
    )


def test_measure_is_the_plain_mean_and_standard_deviation():
    images = _toy().train.images
    pixels = images.reshape(-1, 3) / 255.0
    mean, std = _dataset.measure(images)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=5e-5)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=5e-5)


def test_a_constant_channel_is_not_divided_by_zero():
    assert _dataset.measure(np.full((2, 4, 4, 3), 7, np.uint8)).std == (1.0, 1.0, 1.0)


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(-3, 2**40))
def test_held_out_points_are_disjoint_and_cover(fraction: float, seed: int):
    data = _toy()
    if not 0 < round(fraction * 50) < 50:
        return
    split = _parts.hold_out(data, fraction, seed)
    assert len(split.validation) == round(fraction * 50)
    assert set(split.train.ids) | set(split.validation.ids) == set(data.train.ids)
    assert not set(split.train.ids) & set(split.validation.ids)
    again = _parts.hold_out(data, fraction, seed)
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
    first, second = (_parts.hold_out(_toy(), 0.3, seed).validation.ids for seed in (0, 1))
    assert set(first) != set(second)


def test_few_points_are_nested_and_in_order():
    data = _toy()
    small, large = _parts.few(data, 10), _parts.few(data, 30)
    assert len(small.train) == 10
    assert set(small.train.ids) < set(large.train.ids)
    assert (np.diff([int(i.split('_')[1]) for i in large.train.ids]) > 0).all()
    assert _parts.few(data, 0) is data


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda data: _parts.hold_out(data, 1.0, 0), 'data.validation=1.0'),
        (lambda data: _parts.hold_out(data, -0.1, 0), 'data.validation=-0.1'),
        (lambda data: _parts.hold_out(data, 0.001, 0), '0 validation'),
        (lambda data: _parts.few(data, 51), '50 training points'),
        (lambda data: _parts.few(data, -1), 'data.num_points=-1'),
    ],
)
def test_invalid_parts_raise_one_line(call, words: str):
    with pytest.raises(ValueError, match=words) as error:
        call(_toy())
    assert '\n' not in str(error.value)


def test_it_is_printed_as_one_line():
    size = 'x'.join(map(str, _toy().image_shape[:2]))
    assert repr(_toy()).startswith(f'Dataset({_toy().name}, 50 training, 7 held-out images of {size} pixels, ')


def test_describe_counts_every_part():
    line = data_lib.describe(_parts.hold_out(_toy(), 0.2, 3))
    assert '40 train, 10 validation, 7 test, 5 classes, 4x4' in line
    assert 'held out by seed 3, not on test' in line


def test_the_identity_depends_on_the_content_alone():
    first, again = _toy(), _toy()
    assert len(first.identity) == 64 and first.identity == again.identity
    again = dataclasses.replace(again, name='other', description='other', source={'name': 'other'})
    assert again.identity == first.identity
    assert data_lib.by_index(first).identity == data_lib.by_index(_toy()).identity


def _with(data: _dataset.Dataset, split: str, **changes) -> _dataset.Dataset:
    return dataclasses.replace(data, **{split: dataclasses.replace(getattr(data, split), **changes)})


def test_a_change_of_any_part_changes_the_identity_and_is_named():
    data = _toy()
    other = np.array(data.test.images)
    other[3, 1, 2, 0] ^= 1
    labels = np.array(data.train.labels)
    labels[7] = (labels[7] + 1) % 5
    for changed, parts in (
        (_with(data, 'test', images=other), ['test images']),
        (_with(data, 'train', labels=labels), ['train labels']),
        (dataclasses.replace(data, class_names=tuple('abced')), ['class names']),
        (dataclasses.replace(data, train=data.train.take(np.arange(50)[::-1])), ['train images', 'train labels']),
        (dataclasses.replace(data, normalization=((0.5,) * 3, (0.5,) * 3)), ['mean and standard deviation']),
        (_parts.hold_out(data, 0.2, 0), None),
        (_parts.few(data, 20), ['train images', 'train labels']),
    ):
        assert changed.identity != data.identity
        assert parts is None or changed.changes(data.digests) == parts
    assert data.changes(data.digests) == []


@pytest.mark.parametrize('position', [0, 9])
def test_the_identity_of_points_that_are_read_by_index(position: int):
    class Source:
        def __init__(self, content: str = ''):
            if content:
                self.content = content

        def __getitem__(self, point: int) -> np.ndarray:
            return np.full((2, 2, 3), point, np.uint8)

    def digest(index: np.ndarray, content: str = '') -> str:
        return _dataset.Images(Source(content), index, (2, 2, 3)).digest

    index = np.arange(10)
    other = np.array(index)
    other[position] = 5
    for content in ('', 'x'):
        assert digest(index, content) == digest(np.array(index), content) != digest(other, content)
    assert digest(index, 'x') != digest(index, 'y')


def test_all_bits_of_a_seed_count():
    assert _dataset.seed_words(7) == [7] and _dataset.seed_words(2**32) == [0, 1]
    first, second = (_parts.hold_out(_toy(), 0.3, seed).validation.ids for seed in (0, 2**32))
    assert set(first) != set(second)
