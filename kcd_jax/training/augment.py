"""Augmentation on the device: u8[B, H, W, 3] -> f32[B, H, W, 3] in [0, 1], then flip, views, crop.

Pure functions under jit. The random draws of a batch are one array for all its rows, so a batch is augmented the same
on any number of devices, and no row leaves its device. The papers' CIFAR recipe (RepDistiller, KCD, UNIX): a crop of
the image's own size out of 4 pixels of black padding, a horizontal flip with probability 1/2, black being 0 before the
normalisation that the networks do. ImageNet's: a random resized crop and the flip.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array

ASPECT = (3 / 4, 4 / 3)  # width over height of a random resized crop: Inception's, as every ImageNet recipe has it


def to_float(image: Array) -> Array:
    """u8 in 0..255 -> f32 in [0, 1]; XLA multiplies by 1/255, which may differ from the division in the last bit."""
    return image.astype(jnp.float32) / 255.0


def mix(image: Array, partner: Array, epsilon: Array) -> Array:
    """The kept point with a share of its partner: (1 - epsilon) * image + epsilon * partner (KCD Eq. 14).

    Args:
      image: f32[B, H, W, C], the kept points. partner: f32[B, H, W, C], what is mixed in.
      epsilon: f32[B] in [0, 1], the partner's share; 0 returns the image to the bit.

    Returns:
      f32[B, H, W, C], between the two.
    """
    share = epsilon[:, None, None, None]
    return (1.0 - share) * image + share * partner


def flip(key: Array, image: Array) -> Array:
    """Mirrors each row of [B, H, W, C] left to right with probability 1/2, independently; any dtype."""
    mirrored = jax.random.bernoulli(key, 0.5, image.shape[:1])
    return jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)


def crop(key: Array, image: Array, pad: int = 4) -> Array:
    """Shifts each row of [B, H, W, C] by up to `pad` pixels in both directions; black (0) comes in; any dtype.

    The same as a random crop of H x W out of the image with `pad` black pixels around it: the corner is uniform in
    {0, ..., 2 * pad}^2, independent for each row. A batched dynamic slice: of the ways tried on a CPU (one-hot
    products, selects) it is the fastest by four times and more.
    """
    rows, height, width, channels = image.shape
    corner = jax.random.randint(key, (rows, 2), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def window(one: Array, where: Array) -> Array:
        return jax.lax.dynamic_slice(one, (where[0], where[1], jnp.zeros_like(where[0])), (height, width, channels))

    return jax.vmap(window)(padded, corner)


def resized_crop(key: Array, image: Array, area: tuple[float, float], aspect: tuple[float, float]) -> Array:
    """A random part of each row of f32[B, H, W, C], scaled back to H x W: the ImageNet recipe's crop.

    Args:
      area: bounds of the part's share of the image, uniform. aspect: of its width over its height, log-uniform. A part
        that would be longer than a side of the image is cut to that side; where Inception's recipe draws again instead,
        this keeps one draw for each row.

    Returns:
      f32[B, H, W, C], linearly interpolated, with antialiasing where it shrinks.
    """
    rows, height, width, channels = image.shape
    share, ratio, x, y = jax.random.uniform(key, (4, rows))
    size = height * width * (area[0] + share * (area[1] - area[0]))
    ratio = jnp.exp(jnp.log(aspect[0]) + ratio * jnp.log(aspect[1] / aspect[0]))
    w, h = jnp.minimum(jnp.sqrt(size * ratio), width), jnp.minimum(jnp.sqrt(size / ratio), height)
    scale = jnp.stack([height / h, width / w], axis=1)
    shift = -jnp.stack([y * (height - h), x * (width - w)], axis=1) * scale

    def one(image: Array, scale: Array, shift: Array) -> Array:
        return jax.image.scale_and_translate(image, (height, width, channels), (0, 1), scale, shift, 'linear')

    return jax.vmap(one)(image, scale, shift)


def augment(
    key: Array,
    image: Array,
    *,
    crop_pad: int,
    flip: bool,
    views: Callable[[Array], Array] | None = None,
    area: tuple[float, ...] = (),
) -> Array:
    """The random resized crop, the flip, the method's views, then the padded crop.

    Args:
      key: of this step. image: f32[B, H, W, C] in [0, 1], already mixed.
      crop_pad: pixels of padding, 0 for no crop. flip: whether to mirror at random.
      views: [B, H, W, C] -> [V * B, H, W, C] (`spec.Method.views`); each view is cropped on its own.
      area: of the random resized crop; () for none, or where whoever read the image cut it already.

    Returns:
      f32[V * B, H, W, C] in [0, 1].
    """
    flip_key, crop_key = jax.random.split(key)
    if area:
        image = resized_crop(jax.random.fold_in(key, 2), image, area, ASPECT)
    if flip:
        image = _flip(flip_key, image)
    if views is not None:
        image = views(image)
    return crop(crop_key, image, crop_pad) if crop_pad else image


_flip = flip  # `augment` has a keyword of that name
