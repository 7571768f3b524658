"""The mixing of the authors' code, exact to the bit: images blended in place, as uint8, for good.

On the host in NumPy: the float32 products and the sum are rounded one by one, which a fused multiply-add would change.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.spec import Array


def keep_rates(num_mixed: int, epsilon_max: float) -> np.ndarray:
    """f32[m]: share of the kept image, epsilon_max * (m - i) / m + 1 - epsilon_max for i = 0 ... m - 1.

    It starts at 1 and never reaches 1 - epsilon_max, unlike Eq. 15 of the paper.
    """
    left = np.arange(num_mixed, 0, -1, dtype=np.float32)
    return np.float32(epsilon_max) * (left / np.float32(num_mixed)) + np.float32(1.0 - epsilon_max)


def blend(kept: np.ndarray, dropped: np.ndarray, epsilon_max: float) -> np.ndarray:
    """trunc(keep * kept + (1 - keep) * dropped), in float32 in this order.

    Args:
      kept, dropped: u8[m, H, W, 3], by slot. epsilon_max: in [0, 1].

    Returns:
      u8[m, H, W, 3].
    """
    keep = keep_rates(len(kept), epsilon_max).reshape((-1,) + (1,) * (kept.ndim - 1))
    mixed = keep * kept.astype(np.float32) + (np.float32(1) - keep) * dropped.astype(np.float32)
    return mixed.astype(np.uint8)


def blend_pool(pool: Array, kept: np.ndarray, dropped: np.ndarray, epsilon_max: float) -> Array:
    """The pool with the rows `kept` blended with the rows `dropped`; only these rows are fetched and sent back.

    Args:
      pool: u8[N, H, W, 3]. kept, dropped: i[m] rows, by slot. epsilon_max: in [0, 1].

    Returns:
      The new pool, placed as the old one.
    """
    if not len(kept):
        return pool
    rows = np.asarray(pool[np.concatenate([kept, dropped])])
    mixed = blend(rows[: len(kept)], rows[len(kept) :], epsilon_max)
    blended = pool.at[np.asarray(kept)].set(jnp.asarray(mixed), unique_indices=True)
    return jax.device_put(blended, pool.sharding)


def window(order: np.ndarray, num_keep: int, before: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, dropped) rows by slot: the ranks num_keep ... before - 1 go into the last of the kept ones.

    The authors' code uses this window of newly dropped ranks, not all that is dropped. Where the window is longer than
    what is kept, its head is used; `before` below `num_keep` is an empty window.
    """
    num_mixed = max(0, min(before - num_keep, num_keep))
    return order[num_keep - num_mixed : num_keep], order[num_keep : num_keep + num_mixed]
