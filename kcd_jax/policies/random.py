"""A random selection of the same sizes as KCD's, the baseline of every selection policy.

It is dynamic, drawn anew for every stage or every epoch; `static` keeps one subset for the whole run. Of constant size,
a fraction `ratio` of the points in every epoch, it is `stages=1,first=none,drawn=epoch`.
"""

from __future__ import annotations

import functools

import jax

from kcd_jax import knowledge
from kcd_jax.contracts import Plan, Policy, ValueTable
from kcd_jax.policies.kcd import PRESETS
from kcd_jax.settings import ranges

DRAWN = ('stage', 'epoch')


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, rows: int, num_points: int, num_keep: jax.Array) -> Plan:
    return knowledge.unmixed_plan(knowledge.random_order(key, rows, num_points), num_keep)


@ranges(
    preset={'choices': tuple(PRESETS)},
    ratio={'above': 0, 'high': 1},
    stages={'low': 1, 'high': 1_000_000},
    schedule={'choices': ('', *knowledge.SCHEDULES)},
    first={'choices': ('', *knowledge.FIRSTS)},
    drawn={'choices': DRAWN},
)
def make(
    *,
    preset: str = 'paper',
    ratio: float = 0.7,
    stages: int = 6,
    schedule: str = '',
    first: str = '',
    drawn: str = 'stage',
) -> Policy:
    """Builds the policy.

    Args:
      preset: whose sizes: 'paper', or 'reference' (those of the public code); `schedule` and `first` override parts of
        it unless ''.
      ratio: fraction of the points kept at the end, in (0, 1].
      stages: number of shrinking steps, of equal length; it must divide the epochs.
      schedule: how the sizes shrink, 'exponential' | 'linear'.
      first: when the first choice is made, after one epoch ('epoch'), after one stage ('stage'), or before training
        ('none').
      drawn: 'stage': one choice per stage; 'epoch': a new choice of the same size every epoch.
    """
    schedule, first = schedule or PRESETS[preset]['schedule'], first or PRESETS[preset]['first']

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        return knowledge.epoch_sizes(num_points, ratio, stages, epochs, schedule, first)

    def when(epoch: int, epochs: int) -> bool:
        if drawn == 'stage':
            return knowledge.replan_index(epoch, epochs, stages, first) is not None
        return knowledge.stage_of(epoch, epochs, stages, first) is not None and epoch < epochs

    def replan(key, table: ValueTable, plan: Plan, state, epoch: int, epochs: int):
        stage = knowledge.stage_of(epoch, epochs, stages, first)
        num_keep = knowledge.keep_counts(table.num_points, ratio, stages, schedule)[stage]
        return _draw(key, plan.order.shape[0], table.num_points, num_keep), state

    return Policy(when=when, replan=replan, keep_counts=keep_counts)
