"""Augmentation against NumPy loops, and equal on any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcd_jax.contracts import stream
from kcd_jax.training import augment

pytestmark = pytest.mark.fast_compile

AREA = (0.08, 1.0)


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
    result = np.asarray(augment.mix(image, partner, jnp.full((2, 1, 1, 1), epsilon, jnp.float32)))
    np.testing.assert_allclose(result, (1 - epsilon) * np.asarray(image) + epsilon * np.asarray(partner), atol=1e-6)
    assert (result <= np.maximum(image, partner) + 1e-6).all()
    assert (result >= np.minimum(image, partner) - 1e-6).all()


def test_mix_has_a_share_for_each_row_and_none_is_exact():
    image, partner = (augment.to_float(jnp.asarray(x)) for x in (_images(2), _images(4)[2:]))
    result = np.asarray(augment.mix(image, partner, jnp.array([0.0, 1.0], jnp.float32).reshape(2, 1, 1, 1)))
    np.testing.assert_array_equal(result[0], image[0])
    np.testing.assert_array_equal(result[1], partner[1])


def test_mirror_turns_the_chosen_rows():
    images, mirrored = _images(6), np.array([True, False, True, True, False, False])
    result = np.asarray(jax.jit(augment.mirror)(jnp.asarray(images), jnp.asarray(mirrored)))
    for row, image, turned in zip(result, images, mirrored, strict=True):
        np.testing.assert_array_equal(row, image[:, ::-1] if turned else image)


@pytest.mark.parametrize('pad', [1, 2, 4])
def test_crop_is_the_window_at_its_corner(pad: int):
    corners = np.stack(np.meshgrid(*[np.arange(2 * pad + 1)] * 2, indexing='ij'), axis=-1).reshape(-1, 2)
    images = _images(len(corners))
    result = np.asarray(augment.crop(jnp.asarray(images), jnp.asarray(corners, jnp.int32), pad))
    np.testing.assert_array_equal(_corners(result, images, pad), np.arange(len(corners)))
    np.testing.assert_array_equal(result[len(corners) // 2], images[len(corners) // 2])  # (pad, pad): the image itself


# ------------------------------------------------------------------------------------------------------------- views

KEY = stream(jax.random.PRNGKey(0), 'view', 0)
DRAW = jax.jit(augment.draw_view, static_argnames=('num_views', 'pad', 'flip', 'resized'))


def test_views_are_uniform():
    number, pad = 40_000, 2
    view = DRAW(KEY, jnp.arange(number, dtype=jnp.int32), num_views=2, pad=pad, resized=True)
    rows, part = np.asarray(view.rows), np.asarray(view.part)
    assert rows.shape == (number, 5) and rows.dtype == np.int32 and part.shape == (number, 4)

    def assert_uniform(values: np.ndarray, bins: int) -> None:
        expected = number / bins
        counts = np.bincount(values, minlength=bins)
        assert len(counts) == bins
        chi_square = np.sum((counts - expected) ** 2) / expected
        assert chi_square < bins - 1 + 5 * np.sqrt(2 * bins)  # five standard deviations above its mean

    assert_uniform(rows[:, 0], 2)
    side = 2 * pad + 1
    for column in (1, 3):
        assert_uniform(rows[:, column] * side + rows[:, column + 1], side**2)
    assert_uniform(rows[:, 1] * side + rows[:, 3], side**2)  # the views of a point are independent
    assert_uniform(rows[:, 0] * side + rows[:, 1], 2 * side)
    for column in part.T:
        assert_uniform((column * 16).astype(np.int64), 16)


def test_a_point_has_its_fixed_views_under_every_key():
    index = jnp.arange(200, dtype=jnp.int32)
    draw = jax.jit(lambda key: augment.draw_view(key, index, pad=0, resized=True, fixed=3))
    seen = [{} for _ in range(200)]
    for seed, epoch in ((0, 0), (0, 1), (0, 2), (7, 0), (7, 1), (7, 2), (7, 3)):
        view = draw(stream(jax.random.PRNGKey(seed), 'view', epoch))
        for known, number, flip, part in zip(seen, view.number, view.rows[:, 0], view.part, strict=True):
            shown = (int(flip), *np.asarray(part).tolist())
            assert 0 <= int(number) < 3 and known.setdefault(int(number), shown) == shown
    assert len({shown for known in seen for shown in known.values()}) == sum(map(len, seen)) > 500


def test_another_epoch_or_seed_draws_other_views():
    index = jnp.arange(64, dtype=jnp.int32)
    keys = [stream(jax.random.PRNGKey(seed), 'view', epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    drawn = [np.asarray(DRAW(key, index).rows) for key in keys]
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert (one != other).any(axis=1).sum() > 50


@given(st.permutations(range(24)), st.sampled_from([1, 5, 24]))
@settings(max_examples=8)
def test_a_view_depends_on_the_point_alone(points: list[int], batch: int):
    whole = jax.tree.map(np.asarray, DRAW(KEY, jnp.arange(24, dtype=jnp.int32), num_views=4, resized=True))
    for start in range(0, 24, batch):
        index = np.asarray(points[start : start + batch], np.int32)
        found = DRAW(KEY, jnp.asarray(index), num_views=4, resized=True)
        np.testing.assert_array_equal(found.rows, whole.rows[index])
        np.testing.assert_array_equal(found.part, whole.part[index])


def test_more_views_keep_the_first_one():
    index = jnp.arange(10, dtype=jnp.int32)
    one, four = DRAW(KEY, index, num_views=1), DRAW(KEY, index, num_views=4)
    np.testing.assert_array_equal(one.rows, four.rows[:, :3])


def test_without_flip_and_crop_the_image_is_returned():
    images = jnp.asarray(_images(4))
    view = augment.draw_view(KEY, jnp.arange(4, dtype=jnp.int32), pad=0, flip=False)
    np.testing.assert_array_equal(view.rows, np.zeros((4, 3)))
    np.testing.assert_array_equal(augment.apply_view(view, images, pad=0), augment.to_float(images))


def _rotations(image: jax.Array) -> jax.Array:
    return jnp.stack([image, image[:, ::-1]], axis=1).reshape(-1, *image.shape[1:])


def test_flip_then_the_methods_views_then_a_crop_for_each():
    images, pad = _images(40), 2
    view = DRAW(KEY, jnp.arange(40, dtype=jnp.int32), num_views=2, pad=pad)
    result = np.asarray(augment.apply_view(view, jnp.asarray(images), pad=pad, views=_rotations))
    rows, scaled = np.asarray(view.rows), np.asarray(augment.to_float(jnp.asarray(images)))
    assert 0 < rows[:, 0].sum() < 40
    for point, (flip, *corners) in enumerate(rows):
        image = scaled[point, :, ::-1] if flip else scaled[point]
        for number, seen in enumerate((image, image[::-1])):
            y, x = corners[2 * number : 2 * number + 2]
            window = _windows(seen, pad).reshape(2 * pad + 1, 2 * pad + 1, *seen.shape)[y, x]
            np.testing.assert_array_equal(result[2 * point + number], window)


def test_a_partner_is_seen_through_the_same_view():
    """Mixing commutes with the view: both images are seen through the same one."""
    image, partner = jnp.asarray(_images(16)), jnp.asarray(_images(16)[::-1].copy())
    epsilon = jnp.linspace(0, 1, 16)
    view = DRAW(KEY, jnp.arange(16, dtype=jnp.int32), resized=True)
    mixed, alone, other = (
        augment.apply_view(view, *images, pad=4, area=AREA)
        for images in ((image, partner, epsilon), (image,), (partner,))
    )
    np.testing.assert_allclose(mixed, augment.mix(alone, other, epsilon[:, None, None, None]), atol=1e-6)


def _pipeline(key: jax.Array, index: jax.Array, image: jax.Array, partner: jax.Array, epsilon: jax.Array) -> jax.Array:
    view = augment.draw_view(key, index, num_views=2)
    return augment.apply_view(view, image, partner, epsilon, pad=4, views=_rotations)


def test_the_same_on_one_and_four_devices_with_no_traffic():
    images, epsilon = _images(32), np.linspace(0, 1, 32, dtype=np.float32)
    index = np.random.default_rng(1).permutation(1000)[:32].astype(np.int32)
    results = []
    for devices in (1, 4):
        mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
        rows = NamedSharding(mesh, PartitionSpec('data'))
        everywhere = NamedSharding(mesh, PartitionSpec())
        arguments = (
            jax.device_put(KEY, everywhere),
            *(jax.device_put(x, rows) for x in (index, images, images[::-1].copy(), epsilon)),
        )
        program = jax.jit(_pipeline, out_shardings=rows).lower(*arguments).compile()
        for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
            assert f'{collective}(' not in program.as_text()
        results.append(np.asarray(program(*arguments)))
    np.testing.assert_array_equal(*results)
    assert results[0].shape == (64, 8, 9, 3)
    assert results[0].min() >= 0.0
    assert results[0].max() <= 1.0


def _ramp(rows: int, height: int = 24, width: int = 36) -> np.ndarray:
    """f32: the first channel grows to the right, the second downwards, in pixels; the third is constant."""
    image = np.full((rows, height, width, 3), 7.0, np.float32)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def test_a_resized_crop_is_a_part_of_the_image():
    rows, height, width = 200, 24, 36
    images = jnp.asarray(_ramp(rows, height, width))
    part = jax.random.uniform(jax.random.PRNGKey(0), (rows, 4))
    result = np.asarray(augment.resized_crop(images, part, AREA))
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
    result = augment.resized_crop(images, jnp.full((3, 4), 0.5), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_allclose(result, images, atol=1e-4)
