"""InfoBatch: randomly skip well-learned points and upweight the rest of them (Qin et al., ICLR 2024).

A point's score is its last training loss, 3.0 before the first. At the start of every epoch, points with a score below
the mean are well learned. A random fraction of them is skipped and the others are weighted by 1 / (1 - fraction), which
keeps the expected gradient. The last part of training uses all points with weight 1.

Where it differs from the authors' code:

- The loss is that of the method, which with distillation includes the teacher's term.
- `fraction` may be any value below 1, theirs is at most 0.9.
- If delta * epochs is no integer, it is rounded up to the number of pruned epochs, and theirs (as SeTa's, here too)
  down: 53 and 52 of 60. The published results of this package were made so.
- Then all weights are 1, where theirs stay as they were unless delta * epochs is an integer.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Plan, Policy, PyTree, ValueTable
from kcd_jax.policies.kcd import observe_loss
from kcd_jax.settings import ranges

SIZES_EXPECTED = True  # `keep_counts` gives expectations: the sizes depend on the data

INITIAL_SCORE = 3.0

# Fraction of the points below the mean loss if losses are exponentially distributed.
EXPONENTIAL = 1.0 - 1.0 / math.e


@functools.partial(jax.jit, static_argnames=('fraction',))
def _prune(key: Array, table: ValueTable, *, fraction: float) -> Plan:
    rows = table.value.shape[0]
    real = jnp.arange(rows) < table.num_points
    # Relative to the initial score, so that before the first epoch the mean is exact and no point is below it.
    above = jnp.where(real & (table.count > 0), table.value - INITIAL_SCORE, 0.0)
    well = real & (above < jnp.sum(above) / table.num_points)
    bits = jax.random.bits(key, (rows,), jnp.uint32) >> jnp.uint32(1)
    drawn = knowledge.positions(knowledge.order_by(jnp.where(well, bits, bits | jnp.uint32(1 << 31))))
    num_well = jnp.sum(well.astype(jnp.int32))
    num_kept_well = jnp.floor((1.0 - fraction) * num_well.astype(jnp.float32)).astype(jnp.int32)
    skipped = well & (drawn >= num_kept_well)
    group = jnp.where(real, skipped.astype(jnp.uint32), jnp.uint32(2))
    plan = knowledge.unmixed_plan(knowledge.order_by(group), jnp.sum((real & ~skipped).astype(jnp.int32)))
    return plan.replace(weight=jnp.where(well & ~skipped, jnp.float32(1.0 / (1.0 - fraction)), plan.weight))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _full(num_points: int, rows: int) -> Plan:
    return knowledge.unmixed_plan(jnp.arange(rows, dtype=jnp.int32), num_points)


@ranges(
    fraction={'low': 0, 'below': 1},
    until={'low': 0, 'high': 1},
    well_learned={'above': 0, 'high': 1},
)
def make(*, fraction: float = 0.5, until: float = 0.875, well_learned: float = EXPONENTIAL) -> Policy:
    """Builds the policy.

    Args:
      fraction: r, the fraction of the well-learned points that is skipped, in [0, 1).
      until: delta, the fraction of the epochs after which nothing is skipped, in [0, 1].
      well_learned: expected fraction of points below the mean loss, in (0, 1]. It only affects the cost that is
        estimated before a run; the actual cost is counted.
    """

    def when(epoch: int, epochs: int) -> bool:
        return 1 <= epoch <= math.ceil(until * epochs) and epoch < epochs

    def replan(
        key: Array, table: ValueTable, plan: Plan, state: PyTree, epoch: int, epochs: int
    ) -> tuple[Plan, PyTree]:
        if epoch >= until * epochs:
            return _full(table.num_points, plan.order.shape[0]), state
        return _prune(key, table, fraction=fraction), state

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        pruned = max(1, round(num_points * (1.0 - fraction * well_learned)))  # the largest loss is never skipped
        return [pruned if 1 <= epoch < until * epochs else num_points for epoch in range(epochs)]

    def min_keep(num_points: int, epochs: int) -> int:
        if until * epochs <= 1:  # before the first epoch no point has a loss
            return num_points
        return 1 + math.floor((1.0 - fraction) * (num_points - 1))  # all losses but one are below the mean

    return Policy(
        when=when,
        replan=replan,
        keep_counts=keep_counts,
        min_keep=min_keep,
        records='last',
        observe=observe_loss,
    )
