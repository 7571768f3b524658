"""Moderate coreset: the points at a middling distance from the centre of their class (Xia et al., ICLR 2023).

"Moderate Coreset: A Universal Method of Data Selection for Real-world Data-efficient Deep Learning". The distance is
Euclidean, between the embedding of a point's clean image and the median of its class, coordinate by coordinate. The
points are sorted by it, over all classes at once, and those around the median are kept for the whole run. As in the
authors' code, the embeddings are those of a network trained on all points: here the teacher, which is there anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Plan, Policy, ValueTable
from kcd_jax.policies._sizes import kept
from kcd_jax.settings import ranges


@functools.partial(jax.jit, static_argnums=(1,))
def _plan(distance: Array, num_points: int, num_keep: Array) -> Plan:
    rows = distance.shape[0]
    real = jnp.arange(rows) < num_points
    nearest = knowledge.order_by(
        jnp.where(real, jax.lax.bitcast_convert_type(distance, jnp.uint32), jnp.uint32(0xFFFFFFFF))
    )
    skipped = (num_points - num_keep) // 2
    place = jnp.arange(rows, dtype=jnp.int32)
    group = jnp.where((place >= skipped) & (place < skipped + num_keep), 0, 1)
    group = jnp.where(place < num_points, group, 2).astype(jnp.uint32)
    return knowledge.unmixed_plan(nearest[knowledge.order_by(group)], num_keep)


@ranges(ratio={'above': 0, 'high': 1})
def make(*, ratio: float = 0.7) -> Policy:
    """Builds the policy.

    Args:
      ratio: fraction of the points that is kept, in (0, 1].
    """

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        return [kept(ratio, num_points)] * epochs

    def replan(key, table: ValueTable, plan: Plan, state, epoch: int, epochs: int, *, teacher: Mapping[str, Array]):
        del key, plan, epoch, epochs
        return _plan(teacher['distance'], table.num_points, kept(ratio, table.num_points)), state

    return Policy(
        when=lambda epoch, epochs: epoch == 0 < epochs,
        replan=replan,
        keep_counts=keep_counts,
        teacher_scores=('distance',),
    )
