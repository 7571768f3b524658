"""KCD: keep the most valuable points and mix dropped ones into the least valuable kept ones (ECCV 2022).

Between two stages the points are ranked by F^alpha * V (Eq. 13), the first ones are kept (Eq. 8), and the low end of
these is mixed with dropped points (Eq. 14, 15). The paper and the public code differ; each is a preset:

|                  | paper                                | reference (the public code)                            |
|------------------|--------------------------------------|--------------------------------------------------------|
| sizes            | exponential                          | linear, with the code's truncations                    |
| first condensed  | after epoch 1, then every T epochs   | after T epochs                                         |
| partners from    | all dropped points                   | the window of newly dropped ranks                      |
| epsilon, slot i  | epsilon_max * (i + 1) / m            | epsilon_max * i / m                                    |
| mixing           | in the step, from the original images | permanently, in a pool of uint8 images                |
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Batch, Outputs, Plan, Policy, PyTree, ValueTable
from kcd_jax.knowledge import pool as pool_lib
from kcd_jax.settings import ranges

PRESETS = {
    'paper': {'schedule': 'exponential', 'first': 'epoch', 'dropped': 'complement'},
    'reference': {'schedule': 'linear', 'first': 'stage', 'dropped': 'window'},
}
_EPSILONS = {'ramp': knowledge.ramp_epsilon, 'constant': knowledge.constant_epsilon}
_RATES = {'ramp': pool_lib.ramp_rates, 'constant': pool_lib.constant_rates}


@functools.partial(jax.jit, static_argnames=('ranking', 'alpha', 'augment', 'dropped'))
def _condense(
    key: Array,
    table: ValueTable,
    before: Array,
    num_keep: Array,
    *,
    ranking: str,
    alpha: float,
    augment: str,
    dropped: str,
) -> tuple[Array, Array, Array]:
    """(order i32[N], slot i32[N] by point, number of slots i32[]); one compilation for all stages."""
    order_key, slot_key = jax.random.split(key)
    if ranking == 'random':
        order = knowledge.random_order(order_key, table.value.shape[0], table.num_points)
    elif ranking == 'reversed':
        order = knowledge.rank(table.replace(value=-table.value), alpha)
    else:
        order = knowledge.rank(table, alpha)
    num_keep = jnp.asarray(num_keep, jnp.int32)
    num_dropped = table.num_points - num_keep if dropped == 'complement' else jnp.maximum(before - num_keep, 0)
    num_slots = knowledge.num_mixed(num_keep, num_dropped)
    if augment == 'high':
        slot = knowledge.high_slots(order, num_keep, num_slots)
    elif augment == 'random':
        slot = knowledge.random_slots(slot_key, order, num_keep)
    else:
        slot = knowledge.low_slots(order, num_keep, num_slots)
    return order, slot, num_slots if augment != 'none' else jnp.zeros_like(num_slots)


@functools.partial(jax.jit, static_argnames=('epsilon', 'epsilon_max'))
def _mixing_plan(
    order: Array, num_keep: Array, slot: Array, num_slots: Array, *, epsilon: str, epsilon_max: float
) -> Plan:
    share = _EPSILONS[epsilon](slot, num_slots, epsilon_max)
    return knowledge.mixing_plan(order, num_keep, slot, num_slots, share)


_unmixed_plan = jax.jit(knowledge.unmixed_plan)


def observe_loss(student: Outputs, teacher: Outputs | None, batch: Batch, per_point: Array) -> Array:
    """The point's own loss, unweighted."""
    del student, teacher, batch
    return per_point


def _observe_teacher_entropy(student: Outputs, teacher: Outputs | None, batch: Batch, per_point: Array) -> Array:
    """The teacher's prediction entropy on the training image."""
    del student, per_point
    if teacher is None:
        raise ValueError("policy kcd with value='teacher_entropy' needs a teacher; use value='entropy' without one")
    views = teacher.logits.shape[0] // batch.index.shape[0]
    return knowledge.prediction_entropy(teacher.logits[::views])


_OBSERVE = {'entropy': None, 'loss': observe_loss, 'teacher_entropy': _observe_teacher_entropy}


@ranges(
    preset={'choices': tuple(PRESETS)},
    ratio={'above': 0, 'high': 1},
    stages={'low': 1, 'high': 1_000_000},
    alpha={'low': 0, 'high': 10},
    epsilon_max={'low': 0, 'high': 1},
    schedule={'choices': ('', *knowledge.SCHEDULES)},
    first={'choices': ('', *knowledge.FIRSTS)},
    dropped={'choices': ('', 'complement', 'window')},
    ranking={'choices': ('value', 'random', 'reversed')},
    records={'choices': ('mean', 'last')},
    augment={'choices': ('low', 'high', 'random', 'none')},
    epsilon={'choices': ('ramp', 'constant')},
    value={'choices': tuple(_OBSERVE)},
)
def make(
    *,
    preset: str = 'paper',
    ratio: float = 0.7,
    stages: int = 6,
    alpha: float = 0.03,
    epsilon_max: float = 0.3,
    schedule: str = '',
    first: str = '',
    dropped: str = '',
    ranking: str = 'value',
    records: str = 'mean',
    augment: str = 'low',
    epsilon: str = 'ramp',
    value: str = 'entropy',
) -> Policy:
    """Builds the policy.

    Args:
      preset: 'paper', or 'reference' (the public code's rules, docs/METHODS.md 5.2); `schedule`, `first` and `dropped`
        override parts of it unless ''.
      ratio: fraction of the points kept at the end, in (0, 1].
      stages: number of condensations; it must divide the epochs.
      alpha: exponent of the visits (Eq. 13); 0 is "w/o CAR" of Table 4.
      epsilon_max: largest share of a dropped point in a mixed image (Eq. 15), in [0, 1].
      schedule: how the sizes shrink, 'exponential' | 'linear'.
      first: when the first condensation happens, after one epoch ('epoch'), after one stage ('stage'), or before
        training ('none').
      dropped: source of the partners, all dropped points ('complement') or the newly dropped ones ('window').
      ranking: 'value' | 'random' ("w/ random" of Table 4) | 'reversed' (the least valuable first).
      records: recorded value, the 'mean' over visits (Eq. 12) or the 'last' one ("w/o OVR").
      augment: 'low' | 'high' | 'random' | 'none', the part of the kept points that is mixed (Table 7).
      epsilon: 'ramp' | 'constant' ("KA" of Table 4).
      value: 'entropy' of the student (Eq. 7) | 'loss' | 'teacher_entropy'.
    """
    chosen = PRESETS[preset] | {
        k: v for k, v in {'schedule': schedule, 'first': first, 'dropped': dropped}.items() if v
    }
    schedule, first, dropped = chosen['schedule'], chosen['first'], chosen['dropped']
    persistent = preset == 'reference' and augment != 'none'

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        return knowledge.epoch_sizes(num_points, ratio, stages, epochs, schedule, first)

    def when(epoch: int, epochs: int) -> bool:
        return knowledge.replan_index(epoch, epochs, stages, first) is not None

    def init(num_points: int, rows: int, images: Any) -> PyTree:
        if not persistent:
            return {}
        if images is None:
            raise ValueError(
                "policy kcd with preset='reference' needs a pool of all images in memory, and this data is streamed; "
                "use preset='paper', or data in memory"
            )
        pool = np.zeros((rows, *images.shape[1:]), np.uint8)
        pool[:num_points] = images
        return {'pool': jnp.array(pool)}

    def replan(
        key: Array, table: ValueTable, plan: Plan, state: PyTree, epoch: int, epochs: int
    ) -> tuple[Plan, PyTree]:
        stage = knowledge.replan_index(epoch, epochs, stages, first)
        num_keep = knowledge.keep_counts(table.num_points, ratio, stages, schedule)[stage]
        choices = {
            # Before the first epoch no point has a value.
            'ranking': 'random' if epoch == 0 else ranking,
            'alpha': alpha,
            'augment': augment,
            'dropped': dropped,
        }
        shares = {'epsilon': epsilon, 'epsilon_max': epsilon_max}
        order, slot, num_slots = _condense(key, table, plan.num_keep, num_keep, **choices)
        if not persistent:
            return _mixing_plan(order, num_keep, slot, num_slots, **shares), state
        kept, lost = _by_slot(np.asarray(order), num_keep, np.asarray(slot), int(num_slots))
        pool = pool_lib.blend_pool(state['pool'], kept, lost, _RATES[epsilon](len(kept), epsilon_max))
        return _unmixed_plan(order, num_keep), {'pool': pool}

    return Policy(
        when=when,
        replan=replan,
        keep_counts=keep_counts,
        init=init,
        records=records,
        mixes=augment != 'none' and not persistent,
        observe=_OBSERVE[value],
        needs=('logits',) if value == 'teacher_entropy' else (),
    )


def _by_slot(order: np.ndarray, num_keep: int, slot: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept points that are mixed, the dropped points mixed into them), by slot."""
    mixed = np.flatnonzero((slot >= 0) & (slot < num_slots))
    kept = np.empty(num_slots, np.int32)
    kept[slot[mixed]] = mixed
    return kept, order[num_keep : num_keep + num_slots]
