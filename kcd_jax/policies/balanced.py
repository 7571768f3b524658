"""Random points of every class: a dynamic random choice whose classes are controlled, drawn anew for every epoch.

The baseline of a policy that changes the proportions of the classes, knowingly or not: on long-tailed data, ranking by
entropy keeps more of the rare classes, and what that alone is worth is measured here, without any value.
"""

from __future__ import annotations

import functools

import jax

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Plan, Policy, ValueTable
from kcd_jax.policies._classes import SPREADS, spread
from kcd_jax.policies._sizes import kept
from kcd_jax.settings import ranges


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draw(key: Array, labels: Array, num_points: int, classes: str, num_keep: Array) -> Plan:
    order = knowledge.random_order(key, labels.shape[0], num_points)
    return knowledge.unmixed_plan(spread(order, labels, num_points, classes), num_keep)


@ranges(ratio={'above': 0, 'high': 1}, classes={'choices': SPREADS})
def make(*, ratio: float = 0.7, classes: str = 'proportional') -> Policy:
    """Builds the policy.

    Args:
      ratio: fraction of the points that is kept in every epoch, in (0, 1].
      classes: 'proportional': each class keeps its share of the points; 'even': equally many points of each class, as
        far as it has them.
    """

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        return [kept(ratio, num_points)] * epochs

    def replan(key, table: ValueTable, plan: Plan, state, epoch: int, epochs: int, *, labels: Array):
        del plan, epoch, epochs
        return _draw(key, labels, table.num_points, classes, kept(ratio, table.num_points)), state

    return Policy(when=lambda epoch, epochs: epoch < epochs, replan=replan, keep_counts=keep_counts, reads_labels=True)
