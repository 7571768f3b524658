"""Cost-aware ranking of the points (KCD Eq. 13), their likelihood and value label (Eq. 8)."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Array, ValueTable

# Visits above this number get its weight.
MAX_VISITS = 16384

_FIRST = np.uint32(0)
_LAST = np.uint32(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)


@functools.lru_cache(maxsize=32)
def frequency_weights(alpha: float) -> np.ndarray:
    """f32[MAX_VISITS + 1]: F^alpha for F = 0, 1, ... (entry 0 is never used).

    Computed in NumPy float64: powers by NumPy and XLA differ in the last bit, and a plan must not depend on that.
    """
    visits = np.arange(MAX_VISITS + 1, dtype=np.float64)
    visits[0] = 1.0
    return np.power(visits, float(alpha)).astype(np.float32)


def score_keys(table: ValueTable, alpha: float) -> Array:
    """u32[N]: sort keys, smallest for the most valuable point; 0 if never visited or NaN, the largest for padding.

    Other keys are the bits of the score F^alpha * V, mapped so that they decrease with the score. `alpha` is static.
    """
    weights = jnp.asarray(frequency_weights(alpha))
    # Flush subnormal numbers, as only some devices do; this also makes -0 and 0 equal.
    value = jnp.where(jnp.abs(table.value) < jnp.finfo(jnp.float32).tiny, jnp.float32(0), table.value)
    score = value * weights[jnp.clip(table.count, 0, MAX_VISITS)]
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    ascending = jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)
    key = jnp.where((table.count == 0) | jnp.isnan(score), _FIRST, ~ascending)
    return jnp.where(jnp.arange(key.shape[0]) < table.num_points, key, _LAST)


def rank(table: ValueTable, alpha: float) -> Array:
    """Cost-aware ranking: the order of the points by F^alpha * V, descending (KCD Eq. 13).

    F is the number of visits and V the recorded value. The authors' code divides F by the epochs of a stage, a constant
    factor that changes nothing. Points that were never visited come first (nothing is known of them), and so do those
    whose value is not a number; padding comes last; ties are resolved by index.

    Args:
      table: N rows. Replicate a sharded table first: the order is the same on any number of devices, but sorting
        gathers it anyway.
      alpha: exponent of the visits, static; 0 ranks by value alone.

    Returns:
      i32[N], a permutation: the point at each rank, most valuable first.

    >>> table = ValueTable(jnp.array([0.1, 0.7, 0.0, 0.4]), jnp.array([2, 2, 0, 2]), num_points=4)
    >>> rank(table, alpha=0.03).tolist()  # point 2 was never visited
    [2, 1, 3, 0]
    """
    key = score_keys(table, alpha)
    return order_by(key)


def order_by(key: Array) -> Array:
    """The indices that sort the keys in ascending order; equal keys stay in index order.

    CPUs sort packed 64-bit numbers, other platforms pairs of 32-bit numbers. The choice follows the platform that the
    program is lowered for; both give the same order.

    Args:
      key: u32[N].

    Returns:
      i32[N], a permutation.
    """
    chex.assert_rank(key, 1)
    chex.assert_type(key, jnp.uint32)
    return jax.lax.platform_dependent(key, cpu=_sort_packed, default=_sort_pairs)


def _sort_pairs(key: Array) -> Array:
    """Sorts without 64-bit types, which XLA may not sort on a TPU."""
    index = jnp.arange(key.shape[0], dtype=jnp.int32)
    return jax.lax.sort((key, index), num_keys=2, is_stable=False)[1]


def _sort_packed(key: Array) -> Array:
    """Sorts key and index as one 64-bit number: XLA's CPU backend sorts one array 2 to 4 times faster than two."""
    with jax.enable_x64(True):
        index = jnp.arange(key.shape[0], dtype=jnp.uint64)
        packed = (key.astype(jnp.uint64) << jnp.uint64(32)) | index
        ordered = jax.lax.sort(packed, is_stable=False)
        return (ordered & jnp.uint64(0xFFFFFFFF)).astype(jnp.int32)


def random_order(key: Array, rows: int, num_points: int) -> Array:
    """i32[rows]: a random permutation of the points, padding last; the same on any number of devices.

    Unlike with `jax.random.permutation`, the order of the points does not depend on the padding.
    """
    bits = jax.random.bits(key, (rows,), jnp.uint32) >> jnp.uint32(1)
    return order_by(jnp.where(jnp.arange(rows) < num_points, bits, _LAST))


def positions(order: Array) -> Array:
    """i32[N] by point: its rank R, 0 for the most valuable; the inverse permutation of `order`."""
    ranks = jnp.arange(order.shape[0], dtype=jnp.int32)
    return jnp.zeros_like(ranks).at[order].set(ranks, unique_indices=True)


def likelihood(order: Array, num_points: int | None = None) -> Array:
    """p = 1 - R / N by point: how likely a point is to be valuable (KCD Eq. 8); 0 for padding.

    Args:
      order: i32[N] of `rank`.
      num_points: points without the padding, default N.

    Returns:
      f32[N] by point, in [0, 1].
    """
    num_points = order.shape[0] if num_points is None else num_points
    return jnp.maximum(1.0 - positions(order).astype(jnp.float32) / jnp.float32(num_points), 0.0)


def value_label(order: Array, num_keep: int | Array) -> Array:
    """y = 1 iff R < num_keep, by point (KCD Eq. 8).

    The paper's "y = 1 iff p >= tau" would keep (1 - tau) N points; its text and its cost (Eq. 16) imply tau N, as here.

    Returns:
      i32[N] by point, 0 or 1.
    """
    return (positions(order) < jnp.asarray(num_keep, jnp.int32)).astype(jnp.int32)
