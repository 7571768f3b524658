"""Mixup and CutMix of training points, drawn per point.

The partner of a point in an epoch and its share are pure functions of (augmentation seed, epoch, point), so the pass of
a teacher before the steps builds the same image as the step. A point that the policy mixes (KCD Eq. 14) keeps the
policy's partner and share: an image is never made of three points.
"""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import struct

from kcd_jax.contracts import Array, Plan

_STREAM = 1  # folded into the key of a point's view, whose own numbers stay what they are without mixing
_NODES = 4096  # of the table of quantiles of the shares


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How partners and shares are drawn.

    Attributes:
      mixup: a of mixup's share ~ Beta(a, a); 0 for no mixup.
      cutmix: a of CutMix's share ~ Beta(a, a); 0 for no CutMix. With both, a fair coin decides for each point.
      num_points: training points, any of which may be the partner.
      size: (H, W) of the images.
    """

    mixup: float
    cutmix: float
    num_points: int
    size: tuple[int, int]


@struct.dataclass
class Mixture:
    """What is mixed into each row of a batch.

    Attributes:
      partner: i32[B], the point that is mixed in, never the point itself.
      share: f32[B] in [0, 1/2], the partner's share of the pixels and of the label. Beta(a, a) is symmetric, so folding
        it at 1/2 only decides which of two points a mixed image belongs to: the one that most of it shows.
      box: i32[B, 4], (top, left, bottom, right) of CutMix's rectangle of the partner; zeros under mixup.
      cut: bool[B], whether the row is mixed by CutMix.
    """

    partner: Array
    share: Array
    box: Array
    cut: Array


def draw(key: Array, index: Array, mixing: Mixing) -> Mixture:
    """The mixtures of points in an epoch (Zhang et al. 2018, mixup; Yun et al. 2019, CutMix).

    CutMix's rectangle has the proportions of the image and its centre anywhere in it; it is clipped at the border, and
    the share is the part of the image that remains, as in the paper.

    Args:
      key: of the epoch's views, as for `augment.draw_view`.
      index: i32[B], the points.
      mixing: how.
    """
    chex.assert_rank(index, 1)
    height, width = mixing.size
    bits = _bits(key, index)
    share_at, coin, y, x = _uniform(bits[:, 1:]).T
    cut = jnp.full(index.shape, mixing.cutmix > 0)
    if mixing.mixup and mixing.cutmix:
        cut = coin < 0.5
        share = jnp.where(cut, _share(share_at, mixing.cutmix), _share(share_at, mixing.mixup))
    else:
        share = _share(share_at, mixing.mixup or mixing.cutmix)
    side = jnp.sqrt(share)  # of the rectangle, as a fraction of the image's

    def edges(centre: Array, length: int) -> tuple[Array, Array]:
        half, middle = jnp.floor(0.5 * side * length), jnp.floor(centre * length)
        return jnp.maximum(middle - half, 0.0), jnp.minimum(middle + half, length)

    (top, bottom), (left, right) = edges(y, height), edges(x, width)
    box = jnp.stack([top, left, bottom, right], axis=1)
    return Mixture(
        partner=_partner(bits[:, 0], index, mixing.num_points),
        share=jnp.where(cut, (bottom - top) * (right - left) / (height * width), share),
        box=jnp.where(cut[:, None], box, jnp.zeros_like(box)).astype(jnp.int32),
        cut=cut,
    )


def partners(key: Array, index: Array, plan: Plan, mixing: Mixing) -> Array:
    """i32[B]: the partner of each point, the policy's where it mixes the point, otherwise the drawn one.

    Args:
      key: of the epoch's views.
      index: i32[B], the points.
      plan: of the policy.
      mixing: of the recipe.
    """
    drawn = _partner(_bits(key, index)[:, 0], index, mixing.num_points)
    return jnp.where(plan.epsilon[index] > 0, plan.partner[index], drawn)


def pixel_share(mixture: Mixture, epsilon: Array, size: tuple[int, int]) -> Array:
    """f32[B, H, W, 1]: the partner's share of each pixel; the policy's share `epsilon` f32[B] holds where it is > 0."""
    y, x = (jnp.arange(length, dtype=jnp.int32) for length in size)
    top, left, bottom, right = (mixture.box[:, side, None] for side in range(4))
    rows, columns = (y[None] >= top) & (y[None] < bottom), (x[None] >= left) & (x[None] < right)
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    cut = (mixture.cut & (epsilon == 0))[:, None, None, None]
    share = jnp.where(epsilon > 0, epsilon, mixture.share)[:, None, None, None]
    return jnp.where(cut, inside.astype(jnp.float32), share)


def label_share(mixture: Mixture, epsilon: Array) -> Array:
    """f32[B]: the partner's share of the label, 0 for a point that the policy mixes: its label is its own."""
    return jnp.where(epsilon > 0, jnp.zeros_like(epsilon), mixture.share)


def _bits(key: Array, index: Array) -> Array:
    """u32[B, 5]: the random numbers of each point: partner, share, kind, place (y, x)."""

    def of_point(point: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, point), _STREAM), (5,), jnp.uint32)

    return jax.vmap(of_point)(index)


def _uniform(bits: Array) -> Array:
    """f32 in [0, 1) from the upper 24 bits."""
    return (bits >> jnp.uint32(8)).astype(jnp.float32) * jnp.float32(2**-24)


def _partner(bits: Array, index: Array, num_points: int) -> Array:
    """i32[B]: any point but the point itself."""
    step = 1 + (bits % jnp.uint32(max(num_points - 1, 1))).astype(jnp.int32)
    return (index + step) % jnp.int32(num_points)


def _share(uniform: Array, alpha: float) -> Array:
    """f32[B] in [0, 1/2]: Beta(alpha, alpha) folded at 1/2, by its quantile function.

    A table of quantiles compiles in a fraction of the time of `jax.random.beta`, whose rejection loop is also run in
    every step.
    """
    quantiles = jnp.asarray(_quantiles(alpha))
    place = uniform * _NODES
    node = jnp.floor(place).astype(jnp.int32)
    part = place - node.astype(jnp.float32)
    return (1.0 - part) * quantiles[node] + part * quantiles[node + 1]


@functools.lru_cache(maxsize=8)
def _quantiles(alpha: float) -> np.ndarray:
    """f32[4097]: the quantiles of Beta(alpha, alpha) at 0, 1/8192, ..., 1/2."""
    return scipy.special.betaincinv(alpha, alpha, np.linspace(0.0, 0.5, _NODES + 1)).astype(np.float32)
