"""Random points in rounds: of each class the least visited ones first; with `doubt`, those the teacher doubts last.

A baseline of our own: a random choice with inexpensive refinements. It redraws before every epoch, but visits all
points of a class equally often instead of leaving that to chance; it controls the classes; its sizes can shrink as
KCD's do, which moves compute to the epochs of the large learning rate; and it can put aside what cannot be taught, the
points whose label the teacher thinks improbable. The value of a point does not enter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Plan, Policy, ValueTable
from kcd_jax.policies._classes import SPREADS, spread
from kcd_jax.policies._sizes import kept
from kcd_jax.settings import ranges


@functools.partial(jax.jit, static_argnums=(4,))
def _draw(key: Array, table: ValueTable, labels: Array, doubtful: Array, classes: str, num_keep: Array) -> Plan:
    """`doubtful`: bool[N] by point. Every sort is stable, so each keeps the order of the one before among equals."""
    order = knowledge.random_order(key, labels.shape[0], table.num_points)
    padding = (order >= table.num_points).astype(jnp.uint32) << jnp.uint32(31)
    aside = doubtful[order].astype(jnp.uint32) << jnp.uint32(30)
    visits = jnp.minimum(table.count[order], 2**30 - 1).astype(jnp.uint32)
    order = order[knowledge.order_by(padding | aside | visits)]
    order = spread(order, labels, table.num_points, classes)
    last = jnp.where(order < table.num_points, doubtful[order].astype(jnp.uint32), jnp.uint32(2))
    return knowledge.unmixed_plan(order[knowledge.order_by(last)], num_keep)


SIZES = ('shrinking', 'constant')


@ranges(
    ratio={'above': 0, 'high': 1},
    sizes={'choices': SIZES},
    stages={'low': 1, 'high': 1_000_000},
    classes={'choices': SPREADS},
    doubt={'low': 0, 'below': 1},
)
def make(
    *, ratio: float = 0.7, sizes: str = 'shrinking', stages: int = 6, classes: str = 'even', doubt: float = 0.0
) -> Policy:
    """Builds the policy.

    Args:
      ratio: fraction of the points that is kept, in (0, 1]; if the sizes shrink, at the end.
      sizes: 'shrinking': those of the policy `kcd`; 'constant': the same in every epoch.
      stages: number of shrinking steps, of equal length; it must divide the epochs. Without effect on constant sizes.
      classes: 'even': equally many points of each class, as far as it has them; 'proportional': each class keeps its
        share of the points.
      doubt: points to whose label the teacher gives a smaller probability are taken last, after all others, in [0, 1);
        0: no teacher is asked.
    """

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        if sizes == 'constant':
            return [kept(ratio, num_points)] * epochs
        return knowledge.epoch_sizes(num_points, ratio, stages, epochs)

    def replan(
        key: Array, table: ValueTable, plan: Plan, state: Any, epoch: int, epochs: int, *,
        labels: Array, teacher: Mapping[str, Array] | None = None,
    ):  # fmt: skip
        del plan
        doubtful = jnp.zeros(labels.shape, bool)
        if teacher is not None:
            doubtful = teacher['cross_entropy'] > -math.log(doubt)
        num_keep = keep_counts(table.num_points, epochs)[epoch]
        return _draw(key, table, labels, doubtful, classes, num_keep), state

    return Policy(
        when=lambda epoch, epochs: epoch < epochs,
        replan=replan,
        keep_counts=keep_counts,
        reads_labels=True,
        teacher_scores=('cross_entropy',) if doubt > 0 else (),
    )
