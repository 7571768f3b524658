"""Augmentation on the device: mix, resize, flip, TrivialAugment, erase, the method's views, crop.

The augmentation of a point in an epoch, its *view*, is a pure function of (seed, epoch, point): the same for resident
and streamed data, any batch size and any number of devices. A point and its partner are mixed first and share one view.
`apply_view` is the only function that turns images into the networks' training input.

The papers' CIFAR recipe (RepDistiller, KCD, UNIX) is a horizontal flip with probability 1/2 and a random crop after
padding by 4 pixels of 0, before the networks normalise. ImageNet's is a random resized crop and the flip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from kcd_jax.contracts import Array, run_key
from kcd_jax.training import mixtures, operations
from kcd_jax.training.mixtures import Mixing, Mixture

ASPECT = (3 / 4, 4 / 3)  # width over height of a random resized crop, as in every ImageNet recipe since Inception


@struct.dataclass
class View:
    """The augmentation of each row of a batch.

    Attributes:
      rows: i32[B, 1 + 2V], [flip, dy_1, dx_1, ..., dy_V, dx_V] for the V views of a point. flip is 0 or 1; dy and dx in
        [0, 2 * pad] are the corner of the crop in the padded image; (pad, pad) is the image itself.
      part: f32[B, 4] in [0, 1), the random numbers of a resized crop: size, aspect and position (x, y). None without
        one.
      number: i32[B] in [0, fixed), which of its fixed views each row shows; None without such views.
      mixture: what the recipe's mixup or CutMix mixes in; None without either.
      operation: of TrivialAugment; None without it.
      hole: f32[B, 4], the erased rectangles; None without random erasing.
    """

    rows: Array
    part: Array | None = None
    number: Array | None = None
    mixture: Mixture | None = None
    operation: operations.Operation | None = None
    hole: Array | None = None


def draw_view(
    key: Array,
    index: Array,
    *,
    num_views: int = 1,
    pad: int = 4,
    flip: bool = True,
    resized: bool = False,
    fixed: int = 0,
    mixing: Mixing | None = None,
    trivial: bool = False,
    erase: float = 0.0,
) -> View:
    """The views of points in an epoch, each a function of the key and the point alone.

    Args:
      key: `stream(run key, 'view', epoch)`.
      index: i32[B], the points.
      num_views: V, views per point, each with its own crop.
      pad: pixels of padding; 0 for no crop.
      flip: whether points are mirrored, with probability 1/2.
      resized: whether a random resized crop is drawn.
      fixed: views that each point has in all epochs, the same for every key, which draws one of them; 0: a new view for
        every key.
      mixing: how mixup and CutMix are drawn; None for neither.
      trivial: whether TrivialAugment's operations are drawn.
      erase: the probability of random erasing.
    """
    chex.assert_rank(index, 1)
    number = draw_number(key, index, fixed) if fixed else None

    def draw(point: Array, number: Array | None = None) -> Array:
        own = jax.random.fold_in(key, point)
        if number is not None:
            own = jax.random.fold_in(jax.random.fold_in(run_key(0), point), number)
        return jax.random.uniform(own, (5 + 2 * num_views,))

    uniform = jax.vmap(draw)(index, number) if fixed else jax.vmap(draw)(index)
    flips = jnp.float32(0.5 if flip else 0.0) > uniform[:, :1]
    corners = jnp.floor(uniform[:, 5:] * jnp.float32(2 * pad + 1))
    view = View(
        rows=jnp.concatenate([flips.astype(jnp.int32), corners.astype(jnp.int32)], axis=1),
        part=uniform[:, 1:5] if resized else None,
        number=number,
        mixture=None if mixing is None else mixtures.draw(key, index, mixing),
        operation=operations.draw_operation(key, index) if trivial else None,
        hole=operations.draw_hole(key, index, erase) if erase else None,
    )
    return jax.lax.optimization_barrier(view)  # or XLA may fuse the draw into the images and repeat it per pixel


@functools.partial(jax.jit, static_argnums=2)
def draw_number(key: Array, index: Array, fixed: int) -> Array:
    """i32[B] in [0, fixed): which of its fixed views each point i32[B] shows; `key` as in `draw_view`."""
    return jax.vmap(lambda point: jax.random.randint(jax.random.fold_in(key, point), (), 0, fixed, jnp.int32))(index)


def apply_view(
    view: View,
    image: Array,
    partner: Array | None = None,
    epsilon: Array | None = None,
    *,
    pad: int,
    views: Callable[[Array], Array] | None = None,
    area: tuple[float, ...] = (),
) -> Array:
    """The networks' input: images mixed, resized, flipped, changed by the view's operation and hole, expanded, cropped.

    Args:
      view: of the B points.
      image: u8[B, H, W, C].
      partner: u8[B, H, W, C], the points of `mixtures.partners`; None for no mixing.
      epsilon: f32[B] in [0, 1], the partner's share of the pixels by the policy's plan. Where it is 0, `view.mixture`
        decides, if there is one.
      pad: pixels of padding of the crop, 0 for none; as in `draw_view`.
      views: f32[B, H, W, C] -> f32[V * B, H, W, C] (`Method.views`), the views of a point adjacent.
      area: bounds of the area fraction of the random resized crop; () for none, or if images are cropped when read.

    Returns:
      f32[V * B, H, W, C] in [0, 1].
    """
    rows, num_views = image.shape[0], (view.rows.shape[1] - 1) // 2
    chex.assert_rank([image, view.rows], [4, 2])
    chex.assert_shape(view.rows, (rows, None))
    image = to_float(image)
    if partner is not None:
        chex.assert_equal_shape([image, partner])
        share = epsilon[:, None, None, None]
        if view.mixture is not None:
            share = mixtures.pixel_share(view.mixture, epsilon, image.shape[1:3])
        image = mix(image, to_float(partner), share)
    if area:
        image = resized_crop(image, view.part, area)
    image = mirror(image, view.rows[:, 0] == 1)
    if view.operation is not None:
        image = operations.apply(view.operation, image)
    if view.hole is not None:
        image = operations.erase(image, view.hole)
    if views is not None:
        image = views(image)
    chex.assert_shape(image, (num_views * rows, ...))
    return crop(image, view.rows[:, 1:].reshape(-1, 2), pad) if pad else image


def to_float(image: Array) -> Array:
    """u8 in 0..255 -> f32 in [0, 1]; XLA multiplies by 1/255, which may differ from division in the last bit."""
    return image.astype(jnp.float32) / 255.0


def mix(image: Array, partner: Array, share: Array) -> Array:
    """Mixes points with their partners: (1 - share) * image + share * partner (KCD Eq. 14).

    Args:
      image: f32[B, H, W, C], the points.
      partner: f32[B, H, W, C], what is mixed in.
      share: f32[B, 1, 1, 1] or f32[B, H, W, 1] in [0, 1], of the partner; 0 returns the image bit for bit.

    Returns:
      f32[B, H, W, C], between the two.
    """
    return (1.0 - share) * image + share * partner


def mirror(image: Array, mirrored: Array) -> Array:
    """Flips the rows of [B, H, W, C] for which `mirrored` bool[B] is True left to right; any dtype."""
    return jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)


def crop(image: Array, corner: Array, pad: int) -> Array:
    """The H x W window at a corner of the image padded by `pad` pixels of 0; any dtype.

    Args:
      image: [B, H, W, C].
      corner: i32[B, 2], (y, x) in [0, 2 * pad]; (pad, pad) returns the image.
      pad: pixels of padding.

    Returns:
      [B, H, W, C].
    """
    height, width, channels = image.shape[1:]
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    # A batched dynamic slice is at least four times faster on a CPU than one-hot products or selects.
    def window(one: Array, where: Array) -> Array:
        return jax.lax.dynamic_slice(one, (where[0], where[1], jnp.zeros_like(where[0])), (height, width, channels))

    return jax.vmap(window)(padded, corner)


def resized_crop(image: Array, part: Array, area: tuple[float, float], aspect: tuple[float, float] = ASPECT) -> Array:
    """A part of each row of f32[B, H, W, C], scaled back to H x W: the crop of the ImageNet recipes.

    A part longer than a side of the image is clipped to it; Inception's recipe draws again instead.

    Args:
      image: f32[B, H, W, C].
      part: f32[B, 4] in [0, 1): size, aspect, x and y of the part (`View.part`).
      area: bounds of the part's fraction of the image area, which is uniform.
      aspect: bounds of its width over its height, which is log-uniform.

    Returns:
      f32[B, H, W, C], linearly interpolated, with antialiasing where it shrinks.
    """
    height, width, channels = image.shape[1:]
    share, ratio, x, y = part.T
    size = height * width * (area[0] + share * (area[1] - area[0]))
    ratio = jnp.exp(jnp.log(aspect[0]) + ratio * jnp.log(aspect[1] / aspect[0]))
    w, h = jnp.minimum(jnp.sqrt(size * ratio), width), jnp.minimum(jnp.sqrt(size / ratio), height)
    scale = jnp.stack([height / h, width / w], axis=1)
    shift = -jnp.stack([y * (height - h), x * (width - w)], axis=1) * scale

    def one(image: Array, scale: Array, shift: Array) -> Array:
        return jax.image.scale_and_translate(image, (height, width, channels), (0, 1), scale, shift, 'linear')

    return jax.vmap(one)(image, scale, shift)
