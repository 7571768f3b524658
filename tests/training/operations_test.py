"""TrivialAugment's operations against Pillow and slow loops; random erasing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from kcd_jax.training import augment, operations
from kcd_jax.training.operations import OPERATIONS, Operation

pytestmark = pytest.mark.fast_compile

KEY = jax.random.PRNGKey(1)
MANY = jnp.arange(4000, dtype=jnp.int32)
APPLY = jax.jit(operations.apply)


def images(rows: int, size: int = 24) -> np.ndarray:
    """u8: smooth colours, so that Pillow's rounding is the only difference."""
    rng = np.random.default_rng(2)
    small = rng.integers(20, 235, (rows, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.BILINEAR)) for x in small])


def applied(name: str, strength: float, image: np.ndarray) -> np.ndarray:
    rows = len(image)
    operation = Operation(jnp.full(rows, OPERATIONS.index(name), jnp.int32), jnp.full(rows, strength, jnp.float32))
    return np.asarray(APPLY(operation, augment.to_float(jnp.asarray(image))))


PILLOW = {
    'brightness': lambda x, s: ImageEnhance.Brightness(x).enhance(1 + 0.99 * s),
    'color': lambda x, s: ImageEnhance.Color(x).enhance(1 + 0.99 * s),
    'contrast': lambda x, s: ImageEnhance.Contrast(x).enhance(1 + 0.99 * s),
    'sharpness': lambda x, s: ImageEnhance.Sharpness(x).enhance(1 + 0.99 * s),
    'posterize': lambda x, s: ImageOps.posterize(x, 8 - round(6 * abs(s))),
    'autocontrast': lambda x, s: ImageOps.autocontrast(x),
    'equalize': lambda x, s: ImageOps.equalize(x),
}


@pytest.mark.parametrize('name', PILLOW)
@pytest.mark.parametrize('strength', [-0.6, 0.4])
def test_operations_on_colours_are_pillows(name, strength):
    given = images(3)
    wanted = np.stack([np.asarray(PILLOW[name](Image.fromarray(x), strength)) for x in given]) / 255
    # Pillow rounds every pixel, and the grey value before it blends.
    np.testing.assert_allclose(applied(name, strength, given), wanted, atol=2.5 / 255)


def test_the_simplest_operations():
    given = images(2)
    plain = np.asarray(augment.to_float(jnp.asarray(given)))
    np.testing.assert_array_equal(applied('identity', 0.7, given), plain)
    for name in ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'):
        np.testing.assert_allclose(applied(name, 0.0, given), plain, atol=1e-6)
    np.testing.assert_allclose(applied('solarize', 0.5, given), np.where(plain >= 0.5, 1 - plain, plain), atol=1e-6)
    np.testing.assert_allclose(applied('rotate', 90 / 135, given), np.rot90(plain, -1, (1, 2)), atol=1e-4)
    shifted = applied('translate_x', 0.25, given)  # of half of 24 pixels
    np.testing.assert_allclose(shifted[:, :, :-3], plain[:, :, 3:], atol=1e-5)
    assert not np.any(shifted[:, :, -3:])
    sheared = applied('shear_y', 0.5, given)[0, :, 16, 0]  # the column 4.5 right of the centre
    rows = np.arange(24) + 0.99 * 0.5 * 4.5
    np.testing.assert_allclose(sheared[:20], np.interp(rows, np.arange(24), plain[0, :, 16, 0])[:20], atol=1e-4)


def test_operations_are_functions_of_key_and_point_and_all_of_them_come():
    whole = jax.jit(operations.draw_operation)(KEY, MANY)
    some = np.array([3999, 5, 5], np.int32)
    np.testing.assert_array_equal(
        operations.draw_operation(KEY, jnp.asarray(some)).strength, np.asarray(whole.strength)[some]
    )
    count = np.bincount(np.asarray(whole.number), minlength=14)
    assert len(count) == 14 and count.min() > 4000 / 14 * 0.75 and count.max() < 4000 / 14 * 1.25
    strength = np.asarray(whole.strength)
    assert -1 < strength.min() < -0.95 and 0.95 < strength.max() < 1 and abs(strength.mean()) < 0.05


def test_each_row_has_its_own_operation_and_stays_in_range():
    operation = operations.draw_operation(KEY, MANY[:64])
    given = images(64, 16)
    found = np.asarray(APPLY(operation, augment.to_float(jnp.asarray(given))))
    assert found.min() >= 0 and found.max() <= 1 and np.all(np.isfinite(found))
    for row in range(0, 64, 8):
        alone = applied(OPERATIONS[int(operation.number[row])], float(operation.strength[row]), given[row : row + 1])
        np.testing.assert_allclose(found[row], alone[0], atol=1e-6)


def test_erased_rectangles_are_inside_and_have_the_mean_colour():
    hole = np.asarray(jax.jit(operations.draw_hole, static_argnums=2)(KEY, MANY, 0.25))
    erased = hole[:, 2] > 0
    assert np.mean(erased) == pytest.approx(0.25, abs=0.03)
    area = (hole[:, 2] - hole[:, 0]) * (hole[:, 3] - hole[:, 1])
    assert hole.min() >= 0 and hole.max() <= 1 + 1e-6
    assert area[erased].min() > 0.015 and 0.25 < area[erased].max() < 1 / 3 + 1e-3
    given = augment.to_float(jnp.asarray(images(1, 10)))
    found = np.asarray(operations.erase(given, jnp.array([[0.2, 0.5, 0.6, 1.0]])))
    wanted = np.array(given)
    wanted[0, 2:6, 5:] = np.asarray(given).mean(axis=(1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_view_without_them_is_what_it_was():
    plain, more = jax.jit(
        lambda: (augment.draw_view(KEY, MANY[:8]), augment.draw_view(KEY, MANY[:8], trivial=True, erase=0.5))
    )()
    np.testing.assert_array_equal(plain.rows, more.rows)
    assert plain.operation is None and plain.hole is None
    given = jnp.asarray(images(8, 16))

    @jax.jit
    def both(view):
        mirrored = augment.mirror(augment.to_float(given), view.rows[:, 0] == 1)
        by_hand = operations.erase(operations.apply(view.operation, mirrored), view.hole)
        return augment.apply_view(view, given, pad=0), by_hand

    np.testing.assert_allclose(*both(more), atol=1e-6)
