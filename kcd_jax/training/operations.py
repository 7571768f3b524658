"""TrivialAugment and random erasing: pure functions of f32 images in [0, 1], on the devices.

TrivialAugment (Mueller and Hutter 2021) applies one of 14 operations to an image, with a strength drawn evenly from its
range, and has nothing to tune. The ranges are its wide ones. Differences from the paper's code: strengths are
continuous, images are interpolated linearly, and a shift is at most half of a side, for images smaller than 64 pixels.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct

from kcd_jax.contracts import Array

OPERATIONS = (
    'identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'brightness', 'color', 'contrast',
    'sharpness', 'posterize', 'solarize', 'autocontrast', 'equalize',
)  # fmt: skip
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_SHEAR, _SHIFT, _ANGLE, _FACTOR, _BITS = 0.99, 32.0, 135.0, 0.99, 6.0  # the largest strengths
_GREY = (0.299, 0.587, 0.114)  # luma of red, green, blue
ERASED, ASPECT = (0.02, 1 / 3), (0.3, 10 / 3)  # area fraction and height over width of the erased rectangle
_TRIVIAL, _ERASE = 2, 3  # folded into the key of a point's view; 1 is that of the mixtures


@struct.dataclass
class Operation:
    """One operation for each row: i32[B] place in `OPERATIONS`, and f32[B] strength in [-1, 1)."""

    number: Array
    strength: Array


def draw_operation(key: Array, index: Array) -> Operation:
    """The operations of points in an epoch; `key` of its views and `index` i32[B] as for `augment.draw_view`."""
    kind, size, sign = _uniform(key, index, _TRIVIAL, 3).T
    strength = jnp.where(sign < 0.5, -size, size)
    return Operation(jnp.floor(kind * len(OPERATIONS)).astype(jnp.int32), strength)


def draw_hole(key: Array, index: Array, probability: float) -> Array:
    """f32[B, 4]: (top, left, bottom, right) of the erased rectangle, as fractions of the sides; zeros for none.

    Random erasing (Zhong et al. 2020): with the probability, a rectangle of 2 % to a third of the image, its aspect
    ratio log-uniform, anywhere inside; a side longer than the image's is clipped to it.
    """
    happens, area, aspect, y, x = _uniform(key, index, _ERASE, 5).T
    area = ERASED[0] + area * (ERASED[1] - ERASED[0])
    aspect = jnp.exp(jnp.log(ASPECT[0]) + aspect * jnp.log(ASPECT[1] / ASPECT[0]))
    height, width = jnp.minimum(jnp.sqrt(area * aspect), 1.0), jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    top, left = y * (1.0 - height), x * (1.0 - width)
    hole = jnp.stack([top, left, top + height, left + width], axis=1)
    return jnp.where((happens < probability)[:, None], hole, jnp.zeros_like(hole))


def _uniform(key: Array, index: Array, purpose: int, count: int) -> Array:
    """f32[B, count] in [0, 1), a function of the key and the point."""

    def of_point(point: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, point), purpose), (count,))

    return jax.vmap(of_point)(index)


def erase(image: Array, hole: Array) -> Array:
    """f32[B, H, W, C] with the rectangles `hole` of `draw_hole` filled with the mean colour of the image."""
    height, width = image.shape[1:3]
    y, x = (jnp.arange(0.5, size, dtype=jnp.float32)[None] / size for size in (height, width))
    top, left, bottom, right = (hole[:, side, None] for side in range(4))
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(inside, jnp.mean(image, axis=(1, 2), keepdims=True), image)


def apply(operation: Operation, image: Array) -> Array:
    """f32[B, H, W, 3] in [0, 1]: each row after its own operation.

    All rows run through one warp, one blend and the pixelwise operations, each of which leaves the rows of the other
    operations as they are: a branch per row would run all of the branches for every row under `vmap`.
    """
    chex.assert_rank([image, operation.number], [4, 1])
    image = blend(operation, warp(operation, image))

    def where(name: str, changed: Array) -> Array:
        return jnp.where(_is(operation, name)[:, None, None, None], changed, image)

    strength = jnp.abs(operation.strength)[:, None, None, None]
    step = jnp.exp2(jnp.round(_BITS * strength))  # of the values that posterize keeps
    image = where('posterize', jnp.floor(jnp.round(image * 255.0) / step) * step / 255.0)
    image = where('solarize', jnp.where(image >= 1.0 - strength, 1.0 - image, image))
    image = where('autocontrast', autocontrast(image))
    return where('equalize', jax.vmap(equalize)(image))


def _is(operation: Operation, name: str) -> Array:
    return operation.number == _NUMBER[name]


def warp(operation: Operation, image: Array) -> Array:
    """The geometric operations about the centre of f32[B, H, W, C], linearly interpolated, black outside."""
    height, width = image.shape[1:3]

    def of(name: str, most: float) -> Array:
        return jnp.where(_is(operation, name), operation.strength * most, jnp.zeros_like(operation.strength))

    angle = of('rotate', jnp.pi * _ANGLE / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = (jnp.arange(size, dtype=jnp.float32) - 0.5 * (size - 1) for size in (height, width))
    y, x = y[None, :, None], x[None, None, :]

    def column(values: Array) -> Array:
        return values[:, None, None]

    # Where the pixel (y, x) of the result lies in the image.
    from_y = column(cos) * y - column(sin - of('shear_y', _SHEAR)) * x
    from_x = column(cos) * x + column(sin + of('shear_x', _SHEAR)) * y
    from_y = from_y + column(of('translate_y', min(_SHIFT, height / 2))) + 0.5 * (height - 1)
    from_x = from_x + column(of('translate_x', min(_SHIFT, width / 2))) + 0.5 * (width - 1)
    return jax.vmap(_sample)(image, from_y, from_x)


def _sample(image: Array, y: Array, x: Array) -> Array:
    """f32[H, W, C]: the image f32[H, W, C] at the places f32[H, W], linearly interpolated, 0 outside."""
    height, width = image.shape[:2]
    top, left = jnp.floor(y), jnp.floor(x)
    down, across = (y - top)[..., None], (x - left)[..., None]
    row, column = top.astype(jnp.int32), left.astype(jnp.int32)

    def at(row: Array, column: Array) -> Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixels = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
        return jnp.where(inside[..., None], pixels, jnp.zeros_like(pixels))

    upper = (1.0 - across) * at(row, column) + across * at(row, column + 1)
    lower = (1.0 - across) * at(row + 1, column) + across * at(row + 1, column + 1)
    return (1.0 - down) * upper + down * lower


def blend(operation: Operation, image: Array) -> Array:
    """Brightness, colour, contrast, sharpness: base + (1 + strength) * (image - base), within [0, 1].

    The base is black, the grey image, its mean, or the smoothed image.
    """
    grey = jnp.sum(image * jnp.asarray(_GREY, jnp.float32).reshape(1, 1, 1, 3), axis=-1, keepdims=True)
    bases = {
        'brightness': jnp.zeros_like(image),
        'color': jnp.broadcast_to(grey, image.shape),
        'contrast': jnp.broadcast_to(jnp.mean(grey, axis=(1, 2), keepdims=True), image.shape),
        'sharpness': smooth(image),
    }
    base = image
    for name, one in bases.items():
        base = jnp.where(_is(operation, name)[:, None, None, None], one, base)
    factor = 1.0 + _FACTOR * operation.strength[:, None, None, None]
    return jnp.clip(base + factor * (image - base), 0.0, 1.0)


def smooth(image: Array) -> Array:
    """f32[B, H, W, C] after the kernel ((1, 1, 1), (1, 5, 1), (1, 1, 1)) / 13; the border stays."""
    height, width = image.shape[1:3]
    window = [image[:, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    return image.at[:, 1:-1, 1:-1].set((sum(window) + 4.0 * window[4]) / 13.0)


def autocontrast(image: Array) -> Array:
    """f32[B, H, W, C]: each channel of an image stretched to [0, 1]; a constant channel stays."""
    low, high = (reduced(image, axis=(1, 2), keepdims=True) for reduced in (jnp.min, jnp.max))
    spread = high - low
    return jnp.where(spread > 0, (image - low) / jnp.where(spread > 0, spread, jnp.ones_like(spread)), image)


def equalize(image: Array) -> Array:
    """f32[H, W, C]: each channel with an even histogram of its 256 levels, as Pillow's `ImageOps.equalize` makes it."""

    def one(channel: Array) -> Array:
        level = jnp.round(channel * 255.0).astype(jnp.int32)
        count = jnp.zeros(256, jnp.int32).at[level].add(1)
        last = jnp.max(jnp.where(count > 0, jnp.arange(256, dtype=jnp.int32), 0))
        step = (level.size - count[last]) // 255
        table = (jnp.cumsum(count) - count + step // 2) // jnp.maximum(step, 1)
        changed = jnp.minimum(table, 255)[level].astype(jnp.float32) / 255.0
        return jnp.where(step > 0, changed, channel)

    return jax.vmap(one, in_axes=-1, out_axes=-1)(image)
