"""Knowledge condensation: how much each training point still teaches, and which points to train on (KCD, ECCV 2022).

Each file implements one group of the paper's equations: `value` (Eq. 7, 12), `ranking` (Eq. 13, 8), `summary` (Eq. 14,
15) as pure, jittable functions, and `schedule` (thresholds, Eq. 16). `condenser` adds them to any training loop.
"""

from __future__ import annotations

from kcd_jax.contracts import Plan, ValueTable, full_plan, table_rows
from kcd_jax.knowledge.computation import computation, rows_for
from kcd_jax.knowledge.condenser import Condenser, CondenserState
from kcd_jax.knowledge.ranking import likelihood, order_by, positions, random_order, rank, value_label
from kcd_jax.knowledge.schedule import (
    FIRSTS,
    SCHEDULES,
    epoch_sizes,
    keep_counts,
    processed,
    relative_cost,
    replan_index,
    replans,
    stage_length,
    stage_of,
)
from kcd_jax.knowledge.summary import (
    constant_epsilon,
    high_slots,
    low_slots,
    mixing_plan,
    num_mixed,
    ramp_epsilon,
    random_slots,
    summarize,
    unmixed_plan,
)
from kcd_jax.knowledge.value import prediction_entropy, record, record_last

__all__ = [
    'FIRSTS',
    'SCHEDULES',
    'Condenser',
    'CondenserState',
    'Plan',
    'ValueTable',
    'computation',
    'constant_epsilon',
    'epoch_sizes',
    'full_plan',
    'high_slots',
    'keep_counts',
    'likelihood',
    'low_slots',
    'mixing_plan',
    'num_mixed',
    'order_by',
    'positions',
    'prediction_entropy',
    'processed',
    'ramp_epsilon',
    'random_order',
    'random_slots',
    'rank',
    'record',
    'record_last',
    'relative_cost',
    'replan_index',
    'replans',
    'rows_for',
    'stage_length',
    'stage_of',
    'summarize',
    'table_rows',
    'unmixed_plan',
    'value_label',
]
