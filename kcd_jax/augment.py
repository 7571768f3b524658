"""Augmentation on the device: u8[B, H, W, 3] -> f32[B, H, W, 3] in [0, 1], then flip, views, crop.

Pure functions under jit. The random draws of a batch are one array for all its rows, so a batch is augmented the same
on any number of devices, and no row leaves its device. The papers' CIFAR recipe (RepDistiller, KCD, UNIX): a crop of
the image's own size out of 4 pixels of black padding, a horizontal flip with probability 1/2, black being 0 before the
normalisation that the networks do.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kcd_jax.spec import Array


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


def augment(
    key: Array, image: Array, *, crop_pad: int, flip: bool, views: Callable[[Array], Array] | None = None
) -> Array:
    """Flip, then the method's views, then the crop.

    Args:
      key: of this step. image: f32[B, H, W, C] in [0, 1], already mixed.
      crop_pad: pixels of padding, 0 for no crop. flip: whether to mirror at random.
      views: [B, H, W, C] -> [V * B, H, W, C] (`spec.Method.views`); each view is cropped on its own.

    Returns:
      f32[V * B, H, W, C] in [0, 1].
    """
    flip_key, crop_key = jax.random.split(key)
    if flip:
        image = _flip(flip_key, image)
    if views is not None:
        image = views(image)
    return crop(crop_key, image, crop_pad) if crop_pad else image


_flip = flip  # `augment` has a keyword of that name
