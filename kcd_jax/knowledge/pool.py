"""The mixing of the authors' code, bit for bit: uint8 images are blended permanently in a pool.

It runs in NumPy on the host, because the float32 products and their sum must each be rounded; a fused multiply-add
would change the result. Only the mixed rows pass through the host.
"""

from __future__ import annotations

import jax
import numpy as np

from kcd_jax.contracts import Array


def ramp_rates(num_mixed: int, epsilon_max: float) -> np.ndarray:
    """f32[m]: share of the kept image, epsilon_max * ((m - i) / m) + 1 - epsilon_max for i = 0 ... m - 1.

    It starts at 1 and never reaches 1 - epsilon_max, unlike Eq. 15 of the paper.
    """
    left = np.arange(num_mixed, 0, -1, dtype=np.float32)
    return np.float32(epsilon_max) * (left / np.float32(num_mixed)) + np.float32(1.0 - epsilon_max)


def constant_rates(num_mixed: int, epsilon_max: float) -> np.ndarray:
    """f32[m]: 1 - epsilon_max throughout ("KA" of KCD Table 4)."""
    return np.full(num_mixed, 1.0 - epsilon_max, np.float32)


def blend(kept: np.ndarray, dropped: np.ndarray, keep_rates: np.ndarray) -> np.ndarray:
    """trunc(rate * kept + (1 - rate) * dropped), in float32 in this order.

    Args:
      kept, dropped: u8[m, H, W, 3], by slot.
      keep_rates: f32[m], by slot.

    Returns:
      u8[m, H, W, 3].
    """
    rate = keep_rates.reshape((-1,) + (1,) * (kept.ndim - 1))
    mixed = rate * kept.astype(np.float32) + (np.float32(1) - rate) * dropped.astype(np.float32)
    return mixed.astype(np.uint8)


@jax.jit
def _gather(pool: Array, rows: Array) -> Array:
    return pool[rows]


@jax.jit
def _scatter(pool: Array, rows: Array, images: Array) -> Array:
    return pool.at[rows].set(images, unique_indices=True)


def blend_pool(pool: Array, kept: np.ndarray, dropped: np.ndarray, keep_rates: np.ndarray) -> Array:
    """The pool with the rows `kept` blended with the rows `dropped`; only these rows are transferred.

    Args:
      pool: u8[N, H, W, 3].
      kept, dropped: i32[m] rows, by slot.
      keep_rates: f32[m], by slot.

    Returns:
      The new pool, with the sharding of the old one.
    """
    if not len(kept):
        return pool
    rows = np.asarray(_gather(pool, np.concatenate([kept, dropped])))
    mixed = blend(rows[: len(kept)], rows[len(kept) :], keep_rates)
    return _scatter(pool, np.asarray(kept), mixed)


def window(order: np.ndarray, num_keep: int, before: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, dropped) rows by slot: the ranks num_keep ... before - 1 are mixed into the last kept ones.

    The authors' code uses this window of newly dropped ranks, not all dropped points. If the window is longer than the
    kept part, only its beginning is used; it is empty if `before` is below `num_keep`.
    """
    num_mixed = max(0, min(before - num_keep, num_keep))
    return order[num_keep - num_mixed : num_keep], order[num_keep : num_keep + num_mixed]
