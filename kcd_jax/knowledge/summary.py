"""Summary: which points are kept, and which of them are mixed with which dropped point (KCD Eq. 14, 15).

The kept points K1 are the first `num_keep` of the order; the dropped points K0 follow. An augmented kept point has a
*slot* i = 0 ... m - 1: it is mixed with the i-th most valuable dropped point, with share epsilon(i). The paper assigns
the slots to the low end of K1, in order; the alternatives are its ablations (Table 7).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Plan
from kcd_jax.knowledge.ranking import order_by, positions


def num_mixed(num_keep: int | Array, num_dropped: int | Array) -> Array:
    """i32[]: number of augmented points, min(num_keep, num_dropped).

    The paper augments as many points as it drops (Eq. 14); below a ratio of one half that is more than it keeps.
    """
    return jnp.minimum(jnp.asarray(num_keep, jnp.int32), jnp.asarray(num_dropped, jnp.int32))


def low_slots(order: Array, num_keep: Array, num_slots: Array) -> Array:
    """i32[N] by point: slots for the last `num_slots` kept points, in order of rank (the paper's K1L).

    Points with values outside [0, num_slots) have no slot.
    """
    return positions(order) - (num_keep - num_slots)


def high_slots(order: Array, num_keep: Array, num_slots: Array) -> Array:
    """i32[N] by point: slots for the first kept points (K1H of KCD Table 7); as `low_slots`."""
    del num_keep, num_slots
    return positions(order)


def random_slots(key: Array, order: Array, num_keep: Array) -> Array:
    """i32[N] by point: the kept points in random order ("K1 at random" of KCD Table 7); as `low_slots`.

    Drawn without replacement; the authors' commented-out code draws with replacement.
    """
    bits = jax.random.bits(key, order.shape, jnp.uint32) >> jnp.uint32(1)
    kept = positions(order) < num_keep
    return positions(order_by(jnp.where(kept, bits, bits | jnp.uint32(1 << 31))))


def ramp_epsilon(slot: Array, num_slots: Array, epsilon_max: float) -> Array:
    """Share of the dropped point, epsilon_max * (i + 1) / m; it reaches epsilon_max at the last slot (KCD Eq. 15)."""
    # The barrier keeps XLA from multiplying by a rounded reciprocal instead, which would change the last bit.
    divisor = jax.lax.optimization_barrier(jnp.broadcast_to(jnp.maximum(num_slots, 1).astype(jnp.float32), slot.shape))
    return jnp.float32(epsilon_max) * jnp.minimum((slot + 1).astype(jnp.float32) / divisor, 1.0)


def constant_epsilon(slot: Array, num_slots: Array, epsilon_max: float) -> Array:
    """epsilon_max for every slot ("KA" of KCD Table 4)."""
    del num_slots
    return jnp.full(slot.shape, epsilon_max, jnp.float32)


def unmixed_plan(order: Array, num_keep: int | Array) -> Plan:
    """The first `num_keep` of `order`, none augmented."""
    rows = order.shape[0]
    return Plan(
        order=order,
        num_keep=jnp.asarray(num_keep, jnp.int32),
        partner=jnp.arange(rows, dtype=jnp.int32),
        epsilon=jnp.zeros(rows, jnp.float32),
        weight=jnp.ones(rows, jnp.float32),
    )


def mixing_plan(order: Array, num_keep: int | Array, slot: Array, num_slots: Array, epsilon: Array) -> Plan:
    """The first `num_keep` of `order`; the point of slot i is mixed with the i-th dropped one, with share `epsilon`.

    Args:
      order: i32[N].
      num_keep: i32[].
      slot: i32[N] by point; outside [0, num_slots) a point is not augmented.
      num_slots: i32[], m.
      epsilon: f32[N] by point, used for points with a slot.

    Returns:
      The plan. A point that is not augmented is its own partner, with epsilon 0.
    """
    plan = unmixed_plan(order, num_keep)
    mixed = (slot >= 0) & (slot < num_slots)
    dropped = order[jnp.where(mixed, plan.num_keep + slot, 0)]
    return plan.replace(
        partner=jnp.where(mixed, dropped, plan.partner),
        epsilon=jnp.where(mixed, epsilon, plan.epsilon),
    )


def summarize(order: Array, num_keep: int | Array, epsilon_max: float, num_points: int | None = None) -> Plan:
    """Partition and adaptive augmentation (KCD Eq. 14, 15).

    The first `num_keep` points are kept. The last m = min(dropped, kept) of them are mixed, in order of rank, with the
    m most valuable dropped points, with share epsilon_max * (i + 1) / m for i = 0 ... m - 1. The mixing is convex,
    (1 - epsilon) * kept + epsilon * dropped; the sum of Eq. 14 as printed would brighten images by epsilon. At ratio 1
    nothing is dropped and epsilon is 0 everywhere.

    Args:
      order: i32[N], the point at each rank.
      num_keep: points kept, 1 <= num_keep <= num_points; may be traced, so that all stages share one compilation.
      epsilon_max: largest share of the dropped point, static.
      num_points: points without the padding rows, which `rank` puts last; None: N.

    Returns:
      The plan of the next stage.

    >>> plan = summarize(jnp.array([2, 1, 3, 0]), num_keep=3, epsilon_max=0.25)
    >>> plan.order[: plan.num_keep].tolist(), plan.partner.tolist()  # point 3, the last kept one, is mixed with point 0
    ([2, 1, 3], [0, 1, 2, 0])
    >>> plan.epsilon.tolist()
    [0.0, 0.0, 0.0, 0.25]
    """
    num_points = order.shape[0] if num_points is None else num_points
    num_keep = jnp.asarray(num_keep, jnp.int32)
    num_slots = num_mixed(num_keep, num_points - num_keep)
    slot = low_slots(order, num_keep, num_slots)
    return mixing_plan(order, num_keep, slot, num_slots, ramp_epsilon(slot, num_slots, epsilon_max))
