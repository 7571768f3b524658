"""Hard for the student, easy for the teacher: the points with the largest difference of the two are kept.

The idea is that of RHO-LOSS (Mindermann et al., ICML 2022) and of JEST (Evans et al., 2024), which pick batches out of
larger ones by the learner's loss less that of a reference model. Here the reference is the frozen teacher, scored once
on the clean training images, and the learner's score is the one recorded at the point's last visit, on the image it was
trained on, so neither costs a pass in the step. The order is made anew before every epoch after the first. A point that
is left out keeps its last value, so it returns once the others have become easier. It carries no paper's name: those
select from fresh losses of every candidate.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Batch, Outputs, Plan, Policy, ValueTable
from kcd_jax.objective import cross_entropy_per_point
from kcd_jax.policies._sizes import kept
from kcd_jax.settings import ranges


def _observe_cross_entropy(student: Outputs, teacher: Outputs | None, batch: Batch, per_point: Array) -> Array:
    """The student's cross entropy with the label."""
    del teacher
    views = student.logits.shape[0] // per_point.shape[0]
    return cross_entropy_per_point(student.logits[::views], batch.label, batch.label_b, batch.lam)


_OBSERVE = {'cross_entropy': _observe_cross_entropy, 'entropy': None}


@functools.partial(jax.jit, static_argnums=(1,))
def _plan(table: ValueTable, score: str, teacher: Mapping[str, Array], num_keep: Array) -> Plan:
    order = knowledge.rank(table.replace(value=table.value - teacher[score]), 0.0)
    return knowledge.unmixed_plan(order, num_keep)


@ranges(ratio={'above': 0, 'high': 1}, score={'choices': tuple(_OBSERVE)})
def make(*, ratio: float = 0.7, score: str = 'cross_entropy') -> Policy:
    """Builds the policy.

    Args:
      ratio: fraction of the points that is kept after the first epoch, in (0, 1].
      score: 'cross_entropy' with the label; 'entropy' of the prediction, which needs no labels.
    """

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        return [num_points if epoch == 0 else kept(ratio, num_points) for epoch in range(epochs)]

    def replan(key, table: ValueTable, plan: Plan, state, epoch: int, epochs: int, *, teacher: Mapping[str, Array]):
        del key, plan, epoch, epochs
        return _plan(table, score, teacher, kept(ratio, table.num_points)), state

    return Policy(
        when=lambda epoch, epochs: 0 < epoch < epochs,
        replan=replan,
        keep_counts=keep_counts,
        records='last',
        observe=_OBSERVE[score],
        teacher_scores=(score,),
        reads_predictions=True,
    )
