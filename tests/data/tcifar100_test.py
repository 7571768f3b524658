"""TCIFAR-100 on a small stand-in for CIFAR-100."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from kcd_jax import data
from kcd_jax.data import _tfds, tcifar100
from tests.data import tiny_tfds


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    tiny_tfds.write(tmp_path / 'data', name='cifar100')
    return tmp_path


def _load(root: pathlib.Path, name: str) -> data.Dataset:
    return data.load(name, root / 'data', cache=root / 'cache')


def _slow_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """f64[H, W, C]: a Gaussian of 4 sigma each side, the border mirrored with its last pixel."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(radius,) * 2 if a == axis else (0, 0) for a in range(3)], mode='symmetric')
        size = image.shape[axis]
        image = sum(k * padded.take(range(i, i + size), axis=axis) for i, k in enumerate(kernel))
    return image


@pytest.mark.parametrize(('name', 'sigma'), [('tcifar100', 1.0), ('tcifar100:blur=0.7', 0.7)])
def test_blur_is_the_gaussian(root: pathlib.Path, name: str, sigma: float):
    clean, spoilt = _load(root, 'cifar100'), _load(root, name)
    for before, after in ((clean.train, spoilt.train), (clean.test, spoilt.test)):
        for image, blurred in zip(before.images, after.images):
            np.testing.assert_allclose(blurred, _slow_blur(image.astype(float), sigma), atol=0.51)
        np.testing.assert_array_equal(before.labels, after.labels)
        np.testing.assert_array_equal(before.ids, after.ids)
    assert spoilt.normalization == clean.normalization
    assert spoilt.name == name
    assert f'blur of {sigma:g} px' in spoilt.description


def test_noise_depends_only_on_the_position_of_the_image(root: pathlib.Path):
    clean, spoilt = _load(root, 'cifar100'), _load(root, 'tcifar100:noise=8')
    difference = spoilt.train.images.astype(int) - clean.train.images
    inside = (clean.train.images > 40) & (clean.train.images < 215)
    assert 6.5 < difference[inside].std() < 9.5
    assert len({row.tobytes() for row in difference}) == len(difference)
    again = data.load('tcifar100:noise=8', root / 'data', cache=root / 'another')
    np.testing.assert_array_equal(again.train.images, spoilt.train.images)
    few = data.load('tcifar100:noise=8', root / 'data', cache=root / 'cache', num_points=5)
    at = np.flatnonzero(np.isin(spoilt.train.ids, few.train.ids))
    np.testing.assert_array_equal(few.train.images, spoilt.train.images[at])


def test_the_kinds_do_not_share_a_cache_entry(root: pathlib.Path):
    images = [_load(root, name).train.images for name in ('tcifar100', 'tcifar100:blur=2', 'tcifar100:noise=8')]
    assert len({image.tobytes() for image in images}) == 3


def test_images_are_degraded_once(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    first = _load(root, 'tcifar100')
    monkeypatch.setattr(tcifar100, '_degrade', lambda *arguments: pytest.fail('blurred again'))
    monkeypatch.setattr(_tfds, '_read', lambda *args, **keywords: pytest.fail('decoded again'))
    np.testing.assert_array_equal(_load(root, 'tcifar100').test.images, first.test.images)


@pytest.mark.parametrize('option', ['blur', 'blur=0', 'fog=1', 'noise=x'])
def test_invalid_options_raise_one_line(root: pathlib.Path, option: str):
    for call in (data.load, data.check):
        with pytest.raises(ValueError, match='tcifar100:blur=PIXELS') as error:
            call(f'tcifar100:{option}', root / 'data')
        assert '\n' not in str(error.value)


def test_check_names_the_underlying_set(root: pathlib.Path):
    line = data.check('tcifar100', root / 'data', cache=root / 'cache')
    assert line.startswith('tcifar100: 12 train, 4 test')
    assert 'a Gaussian blur of 1 px over TFDS 1.0.0' in line
