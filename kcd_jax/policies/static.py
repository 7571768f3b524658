"""One random subset, drawn before the first epoch and kept for the whole run.

The static baseline of published pruning work, where a set is chosen once; `random` is the dynamic one. Every epoch has
the same points, whatever is learned of them.
"""

from __future__ import annotations

import functools

import jax

from kcd_jax import knowledge
from kcd_jax.contracts import Plan, Policy, ValueTable
from kcd_jax.policies._sizes import kept
from kcd_jax.settings import ranges


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, rows: int, num_points: int, num_keep: jax.Array) -> Plan:
    return knowledge.unmixed_plan(knowledge.random_order(key, rows, num_points), num_keep)


@ranges(ratio={'above': 0, 'high': 1})
def make(*, ratio: float = 0.7) -> Policy:
    """Builds the policy.

    Args:
      ratio: fraction of the points that is kept, in (0, 1].
    """

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        return [kept(ratio, num_points)] * epochs

    def replan(key, table: ValueTable, plan: Plan, state, epoch: int, epochs: int):
        del epoch, epochs
        return _draw(key, plan.order.shape[0], table.num_points, kept(ratio, table.num_points)), state

    return Policy(when=lambda epoch, epochs: epoch == 0 < epochs, replan=replan, keep_counts=keep_counts)
