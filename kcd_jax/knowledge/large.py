"""Condensation of very many points on the host: the plans and orders of the device to the bit, in bounded memory.

NumPy's vectorised sort of packed (key, index) numbers is several times faster than XLA's on a CPU, and one host sorts
once where every host device would sort for itself. So where the devices' memory is the host's own, long orders are
made here (`suits`); `ranking` and `summary` stay their definition. Beside table and plan a condensation takes 12 bytes
a point, and 8 for a copy of a split table before that; the order of an epoch takes 12 beside itself.

Only the boundary needs an order, yet all points are sorted: 100 million packed numbers take 1.7 s; `np.partition` at
the two ranks and a sort of the window between them take 2.7 s at ratio 0.7 and 1.9 s at 0.9 and 0.95, before the rest
is in index order. Nor did a partition into halves that two threads sort gain anything (two cores with AVX-512).
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from kcd_jax.contracts import Array, Plan, ValueTable
from kcd_jax.knowledge.ranking import frequency_weights, place_like

# From so many rows on the host is used; below, either way takes a few milliseconds.
MIN_ROWS = 1 << 16

# Points that are worked on at a time: temporaries of 64 kB stay in the processor's cache and are not mapped afresh.
BLOCK = 1 << 14
DRAWN = 1 << 16  # rows whose random bits are drawn at a time

_SIGN = np.uint32(0x80000000)
_LAST = np.uint32(0xFFFFFFFF)
_TINY = np.finfo(np.float32).tiny


def suits(plan: Plan) -> bool:
    """Whether orders as long as this plan's are made on the host: the one place where that is decided."""
    on_cpu = all(device.platform == 'cpu' for device in plan.order.sharding.device_set)
    return on_cpu and len(plan.order) >= MIN_ROWS


def _blocks(start: int, stop: int) -> Iterator[slice]:
    return (slice(first, min(first + BLOCK, stop)) for first in range(start, stop, BLOCK))


def _score_keys(value: np.ndarray, count: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """u32: as `ranking.score_keys`, for rows without padding."""
    with np.errstate(over='ignore'):  # to infinity, as on the device
        score = np.where(np.abs(value) < _TINY, np.float32(0), value) * np.take(weights, count, mode='clip')
    bits = score.view(np.uint32)
    key = np.where(bits >= _SIGN, bits, ~(bits | _SIGN))
    key[(count == 0) | np.isnan(score)] = 0
    return key


def order_by(key: np.ndarray) -> np.ndarray:
    """i32[N]: `ranking.order_by` of the u32[N] keys, bit for bit."""
    packed, order = np.arange(len(key), dtype=np.uint64), np.empty(len(key), np.int32)
    for block in _blocks(0, len(key)):
        packed[block] |= key[block].astype(np.uint64) << np.uint64(32)
    packed.sort()
    for block in _blocks(0, len(key)):
        order[block] = (packed[block] & np.uint64(_LAST)).astype(np.int32)
    return order


def score_keys(
    value: np.ndarray, count: np.ndarray, num_points: int, alpha: float, reverse: bool = False
) -> np.ndarray:
    """u32[N]: `ranking.score_keys` of the table (value f32[N], count i32[N]), bit for bit; `reverse`: of -value."""
    key, weights = np.full(len(value), _LAST), frequency_weights(alpha)
    for block in _blocks(0, num_points):
        key[block] = _score_keys(-value[block] if reverse else value[block], count[block], weights)
    return key


def rank(value: np.ndarray, count: np.ndarray, num_points: int, alpha: float) -> np.ndarray:
    """i32[N]: `ranking.rank` of the table (value f32[N], count i32[N]), bit for bit."""
    return order_by(score_keys(value, count, num_points, alpha))


def fetch(table: ValueTable, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(value, count) of a table on the host: its own memory where the table is whole, else copies of its parts."""
    if not table.value.is_fully_addressable:  # of several processes
        table = place_like(table, plan)
    return _whole(table.value), _whole(table.count)


def _whole(array: Array) -> np.ndarray:
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    host = np.empty(array.shape, array.dtype)  # np.asarray(array) would keep its copy as long as the array lives
    for part in array.addressable_shards:
        host[part.index] = part.data
    return host


def summarize(order: np.ndarray, num_keep: int, num_dropped: int, epsilon_max: float, ramp: bool = True) -> Plan:
    """`summary.summarize` in NumPy, bit for bit; the first `num_dropped` behind the kept ones are partners.

    Args:
      order: i32[N]. num_keep: points kept. num_dropped: dropped points that may be mixed in; for all of them, the
        number of points less `num_keep`; 0: nothing is augmented. epsilon_max: largest share. ramp: whether the share
        grows to it (`summary.ramp_epsilon`) or is the same for all (`summary.constant_epsilon`).

    Returns:
      A plan of NumPy arrays.
    """
    rows, num_slots = len(order), min(num_keep, num_dropped)
    partner, epsilon = np.arange(rows, dtype=np.int32), np.zeros(rows, np.float32)
    for slots in _blocks(0, num_slots):
        mixed = order[num_keep - num_slots + slots.start : num_keep - num_slots + slots.stop]
        partner[mixed] = order[num_keep + slots.start : num_keep + slots.stop]
        share = np.float32(1)
        if ramp:
            share = np.arange(slots.start + 1, slots.stop + 1).astype(np.float32) / np.float32(num_slots)
        epsilon[mixed] = np.float32(epsilon_max) * np.minimum(share, np.float32(1))
    return Plan(order, np.asarray(num_keep, np.int32), partner, epsilon, np.ones(rows, np.float32))


def random_order(key: Array, rows: int, num_points: int) -> np.ndarray:
    """i32[rows]: `ranking.random_order`, bit for bit."""
    bits = random_bits(key, rows)
    bits[num_points:] = _LAST
    return order_by(bits)


def kept_first(bits: np.ndarray, plan: Plan) -> np.ndarray:
    """i32[N]: the points by their 31 bits u32[N], the kept ones of a plan before the dropped; overwrites `bits`."""
    order, num_keep = np.asarray(plan.order), int(plan.num_keep)
    for block in _blocks(num_keep, len(order)):
        bits[order[block]] |= _SIGN
    return order_by(bits)


def random_bits(key: Array, rows: int) -> np.ndarray:
    """u32[rows]: 31 random bits a row, as the device draws them: `jax.random.bits(key, (rows,)) >> 1`, part by part.

    Drawn at once they would take 16 bytes a row beside themselves, on every device.
    """
    key, bits = np.asarray(jax.random.key_data(key)), np.empty(rows, np.uint32)
    for start in range(0, rows, DRAWN):
        part = bits[start : start + DRAWN]
        part[:] = _draw(key, np.uint32(start))[: len(part)]
    return bits


@jax.jit
def _draw(key: Array, start: Array) -> Array:
    """The bits of the rows `start`, ..., `start + DRAWN - 1`: each is a function of the key and the row (Threefry)."""
    row = start + jnp.arange(DRAWN, dtype=jnp.uint32)
    first, second = threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(row), row)
    return (first ^ second) >> jnp.uint32(1)
