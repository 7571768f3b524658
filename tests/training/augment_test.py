"""Augmentation against slow loops, and the same on any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcd_jax.training import augment


def _images(rows: int = 64, size: int = 8) -> np.ndarray:
    # Pixels from 1: a 0 in a result is padding.
    return np.random.default_rng(0).integers(1, 256, (rows, size, size + 1, 3), dtype=np.uint8)


def _windows(image: np.ndarray, pad: int) -> np.ndarray:
    """All crops of one [H, W, C] image out of its padded self, by loops."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, 3), image.dtype)
    padded[pad : pad + height, pad : pad + width] = image
    corners = range(2 * pad + 1)
    return np.stack([padded[y : y + height, x : x + width] for y in corners for x in corners])


def _corners(result: np.ndarray, images: np.ndarray, pad: int) -> np.ndarray:
    """Which of the windows each row is; fails when it is none."""
    found = []
    for row, image in zip(result, images):
        equal = (_windows(image, pad) == row).all(axis=(1, 2, 3))
        assert equal.sum() == 1
        found.append(equal.argmax())
    return np.array(found)


def test_to_float_covers_the_unit_interval():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    result = np.asarray(augment.to_float(jnp.asarray(values)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, values.astype(np.float32) / np.float32(255), rtol=2**-23)  # one last bit
    assert result.min() == 0.0
    assert result.max() == 1.0


@given(epsilon=st.floats(0.0, 1.0, width=32))
def test_mix_is_convex(epsilon: float):
    image, partner = (augment.to_float(jnp.asarray(x)) for x in (_images(2), _images(4)[2:]))
    result = np.asarray(augment.mix(image, partner, jnp.full(2, epsilon, jnp.float32)))
    np.testing.assert_allclose(result, (1 - epsilon) * np.asarray(image) + epsilon * np.asarray(partner), atol=1e-6)
    assert (result <= np.maximum(image, partner) + 1e-6).all()
    assert (result >= np.minimum(image, partner) - 1e-6).all()


def test_mix_has_a_share_for_each_row_and_none_is_exact():
    image, partner = (augment.to_float(jnp.asarray(x)) for x in (_images(2), _images(4)[2:]))
    result = np.asarray(augment.mix(image, partner, jnp.array([0.0, 1.0], jnp.float32)))
    np.testing.assert_array_equal(result[0], image[0])
    np.testing.assert_array_equal(result[1], partner[1])


def test_flip_mirrors_about_half_of_the_rows():
    images = _images(400)
    result = np.asarray(jax.jit(augment.flip)(jax.random.key(0), jnp.asarray(images)))
    same = (result == images).all(axis=(1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations


@pytest.mark.parametrize('pad', [1, 2, 4])
def test_crop_is_a_window_of_the_image_in_black(pad: int):
    images = _images(400)
    result = np.asarray(jax.jit(augment.crop, static_argnums=2)(jax.random.key(1), jnp.asarray(images), pad))
    corners = np.bincount(_corners(result, images, pad), minlength=(2 * pad + 1) ** 2)
    if pad < 4:  # each corner is expected 400 / 9 or 16 times
        assert corners.min() > 0
    assert corners.max() < 400 / len(corners) + 5 * np.sqrt(400 / len(corners))
    for axis_counts in (corners.reshape(2 * pad + 1, -1).sum(axis=0), corners.reshape(2 * pad + 1, -1).sum(axis=1)):
        assert axis_counts.min() > 0.5 * 400 / (2 * pad + 1)


def test_another_key_draws_otherwise_and_the_same_key_the_same():
    image = jnp.asarray(_images())
    first, again, other = (augment.crop(jax.random.key(k), image) for k in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


def test_nothing_to_do_returns_the_image():
    image = augment.to_float(jnp.asarray(_images(4)))
    np.testing.assert_array_equal(augment.augment(jax.random.key(0), image, crop_pad=0, flip=False), image)


def test_flip_then_views_then_an_own_crop_for_each_view():
    images = _images(40)

    def views(image: jax.Array) -> jax.Array:
        return jnp.stack([image, image[:, ::-1]], axis=1).reshape(-1, *image.shape[1:])

    key = jax.random.key(5)
    result = np.asarray(augment.augment(key, jnp.asarray(images), crop_pad=2, flip=True, views=views))
    flipped = np.asarray(augment.augment(key, jnp.asarray(images), crop_pad=0, flip=True))
    assert (flipped != images).any()
    original = _corners(result[::2], flipped, 2)
    upside_down = _corners(result[1::2], flipped[:, ::-1], 2)
    assert (original != upside_down).any()


def _pipeline(key: jax.Array, image: jax.Array, partner: jax.Array, epsilon: jax.Array) -> jax.Array:
    mixed = augment.mix(augment.to_float(image), augment.to_float(partner), epsilon)
    return augment.augment(
        key, mixed, crop_pad=4, flip=True, views=lambda x: jnp.stack([x, 1 - x], axis=1).reshape(-1, *x.shape[1:])
    )


def test_the_same_on_one_and_four_devices_with_no_traffic():
    images, epsilon = _images(32), np.linspace(0, 1, 32, dtype=np.float32)
    results = []
    for devices in (1, 4):
        mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
        rows = NamedSharding(mesh, PartitionSpec('data'))
        everywhere = NamedSharding(mesh, PartitionSpec())
        arguments = (
            jax.device_put(jax.random.key(7), everywhere),
            *(jax.device_put(x, rows) for x in (images, images[::-1].copy(), epsilon)),
        )
        program = jax.jit(_pipeline, out_shardings=rows).lower(*arguments).compile()
        for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
            assert f'{collective}(' not in program.as_text()
        results.append(np.asarray(program(*arguments)))
    np.testing.assert_array_equal(*results)
    assert results[0].shape == (64, 8, 9, 3)
    assert results[0].min() >= 0.0
    assert results[0].max() <= 1.0


AREA = (0.08, 1.0)


def _ramp(rows: int, height: int = 24, width: int = 36) -> np.ndarray:
    """f32: the first channel grows to the right, the second downwards, in pixels; the third is constant."""
    image = np.full((rows, height, width, 3), 7.0, np.float32)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def test_a_resized_crop_is_a_part_of_the_image():
    rows, height, width = 200, 24, 36
    images = jnp.asarray(_ramp(rows, height, width))
    result = np.asarray(augment.resized_crop(jax.random.PRNGKey(0), images, AREA, augment.ASPECT))
    assert result.shape == images.shape
    np.testing.assert_allclose(result[..., 2], 7.0, atol=1e-4)
    inner = result[:, 4:-4, 4:-4]
    # A part that is scaled to the whole image is still a ramp: its slopes are the part's share of each side.
    across = np.diff(inner[..., 0], axis=2).mean(axis=(1, 2))
    down = np.diff(inner[..., 1], axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(np.diff(inner[..., 0], axis=2) - across[:, None, None], 0.0, atol=0.02)
    assert across.max() <= 1.001 and down.max() <= 1.001
    share, aspect = across * down, across * width / (down * height)
    assert 0.07 < share.min() < 0.2 and share.max() > 0.85
    free = (across < 0.99) & (down < 0.99)  # a part as long as a side was cut to it
    assert 0.74 < aspect[free].min() < 0.85 and 1.2 < aspect[free].max() < 1.34
    # Each row has its own part, inside the image.
    assert len(np.unique(np.round(across, 4))) > 150
    assert result[..., 0].min() > -0.01 and result[..., 0].max() < width - 0.99


def test_a_resized_crop_of_everything_is_the_image():
    images = jnp.asarray(_ramp(3, 24, 24))
    result = augment.resized_crop(jax.random.PRNGKey(0), images, (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_allclose(result, images, atol=1e-4)


def test_augment_cuts_before_it_pads():
    image = augment.to_float(jnp.asarray(_images(8)))
    key = jax.random.PRNGKey(3)
    plain = augment.augment(key, image, crop_pad=0, flip=False)
    cut = augment.augment(key, image, crop_pad=0, flip=False, area=AREA)
    np.testing.assert_array_equal(plain, image)
    assert cut.shape == image.shape and not np.allclose(cut, image)
    np.testing.assert_array_equal(cut, augment.augment(key, image, crop_pad=0, flip=False, area=AREA))
