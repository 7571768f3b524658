"""Condensation of very many points on the host: the plan of `rank` and `summarize` to the bit, in bounded memory.

NumPy's vectorised sort of packed (key, index) numbers is several times faster than XLA's on a CPU, so that ordering all
points costs less than a search for thresholds. Beside the table and the plan it takes 8 bytes a point and a block.
"""

from __future__ import annotations

import numpy as np

from kcd_jax.knowledge.ranking import MAX_VISITS, frequency_weights
from kcd_jax.spec import Plan

# Points that are worked on at a time: their temporaries stay in the processor's cache.
BLOCK = 1 << 17

_SIGN = np.uint32(0x80000000)
_LAST = np.uint32(0xFFFFFFFF)
_TINY = np.finfo(np.float32).tiny


def _score_keys(value: np.ndarray, count: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """u32: as `ranking.score_keys`, for rows without padding."""
    with np.errstate(over='ignore'):  # to infinity, as on the device
        score = np.where(np.abs(value) < _TINY, np.float32(0), value) * weights[np.clip(count, 0, MAX_VISITS)]
    bits = score.view(np.uint32)
    key = np.where(bits >= _SIGN, bits, ~(bits | _SIGN))
    key[(count == 0) | np.isnan(score)] = 0
    return key


def rank(value: np.ndarray, count: np.ndarray, num_points: int, alpha: float) -> np.ndarray:
    """i32[N]: `kcd_jax.knowledge.rank` of the table (value f32[N], count i32[N]), bit for bit."""
    rows, weights = len(value), frequency_weights(alpha)
    packed = np.arange(rows, dtype=np.uint64)
    for start in range(0, num_points, BLOCK):
        block = slice(start, min(start + BLOCK, num_points))
        packed[block] |= _score_keys(value[block], count[block], weights).astype(np.uint64) << np.uint64(32)
    packed[num_points:] |= np.uint64(_LAST) << np.uint64(32)
    packed.sort()
    order = np.empty(rows, np.int32)
    for start in range(0, rows, BLOCK):
        block = slice(start, start + BLOCK)
        order[block] = (packed[block] & np.uint64(_LAST)).astype(np.int32)
    return order


def summarize(order: np.ndarray, num_keep: int, num_dropped: int, epsilon_max: float) -> Plan:
    """`kcd_jax.knowledge.summarize` in NumPy, bit for bit; the first `num_dropped` behind the kept ones are partners.

    Args:
      order: i32[N]. num_keep: points kept. num_dropped: dropped points that may be mixed in; for all of them, the
        number of points less `num_keep`. epsilon_max: largest share.

    Returns:
      A plan of NumPy arrays.
    """
    rows, num_slots = len(order), min(num_keep, num_dropped)
    partner, epsilon = np.arange(rows, dtype=np.int32), np.zeros(rows, np.float32)
    for start in range(0, num_slots, BLOCK):
        stop = min(start + BLOCK, num_slots)
        mixed = order[num_keep - num_slots + start : num_keep - num_slots + stop]
        partner[mixed] = order[num_keep + start : num_keep + stop]
        share = np.arange(start + 1, stop + 1).astype(np.float32) / np.float32(num_slots)
        epsilon[mixed] = np.float32(epsilon_max) * np.minimum(share, np.float32(1))
    return Plan(order, np.asarray(num_keep, np.int32), partner, epsilon, np.ones(rows, np.float32))
