"""Eq. 14 and Eq. 15 against a NumPy loop written from the equations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcd_jax import knowledge

ROWS = 32


def slow_plan(order, num_keep, epsilon_max, num_points):
    """K1 = the first num_keep, K0 = the rest; the worst min(|K0|, |K1|) of K1, best first, take the best of K0."""
    kept, dropped = list(order[:num_keep]), list(order[num_keep:num_points])
    m = min(len(kept), len(dropped))
    partner, epsilon = list(range(len(order))), [0.0] * len(order)
    for i, point in enumerate(kept[len(kept) - m :]):
        partner[point] = dropped[i]
        epsilon[point] = epsilon_max * (i + 1) / m
    return partner, epsilon


@given(st.permutations(range(ROWS - 3)), st.integers(1, ROWS - 3), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30)
def test_summary_matches_a_numpy_loop(points, num_keep, epsilon_max):
    num_points = len(points)
    order = np.asarray([*points, *range(num_points, ROWS)], np.int32)
    summarize = jax.jit(knowledge.summarize, static_argnums=(2, 3))
    plan = summarize(jnp.asarray(order), num_keep, epsilon_max, num_points)
    partner, epsilon = slow_plan(order.tolist(), num_keep, epsilon_max, num_points)
    assert plan.partner.tolist() == partner
    # Two float32 roundings.
    np.testing.assert_allclose(plan.epsilon, epsilon, rtol=3e-7)
    assert int(plan.num_keep) == num_keep and plan.order.tolist() == order.tolist()
    kept, dropped = set(order[:num_keep].tolist()), set(order[num_keep:num_points].tolist())
    mixed = [i for i in range(ROWS) if partner[i] != i]
    assert set(mixed) <= kept and {partner[i] for i in mixed} <= dropped
    assert len(mixed) == len({partner[i] for i in mixed}) == min(len(kept), len(dropped))
    assert (np.asarray(plan.weight) == 1).all() and float(plan.epsilon.max()) <= np.float32(epsilon_max)


def test_ramp_matches_the_golden_vector(golden):
    plan = knowledge.summarize(jnp.arange(600, dtype=jnp.int32), 420, 0.3)
    np.testing.assert_allclose(plan.epsilon[240:420], golden('ref')['kcd/eps_of_rank_K1_420_K0_180'], rtol=3e-7)
    assert float(plan.epsilon[419]) == np.float32(0.3) and not plan.epsilon[:240].any()


def test_ratio_one_mixes_nothing():
    plan = knowledge.summarize(jnp.arange(8, dtype=jnp.int32), 8, 0.3)
    assert not plan.epsilon.any() and plan.partner.tolist() == list(range(8)) and int(plan.num_keep) == 8


def test_all_stages_share_one_compilation():
    traces = []

    @jax.jit
    def summarize(order, num_keep):
        traces.append(1)
        return knowledge.summarize(order, num_keep, 0.3)

    order = jnp.arange(64, dtype=jnp.int32)
    for num_keep in knowledge.keep_counts(64, 0.7, 6):
        summarize(order, num_keep)
    assert len(traces) == 1


def test_other_slots():
    order, num_keep, m = jnp.asarray([5, 3, 1, 0, 2, 4], jnp.int32), jnp.int32(4), jnp.int32(2)
    high = knowledge.high_slots(order, num_keep, m)
    plan = knowledge.mixing_plan(order, num_keep, high, m, knowledge.constant_epsilon(high, m, 0.3))
    assert plan.partner.tolist() == [0, 1, 2, 4, 4, 2]
    np.testing.assert_allclose(plan.epsilon, [0, 0, 0, 0.3, 0, 0.3])
    random = knowledge.random_slots(jax.random.key(0), order, num_keep)
    assert sorted(random.tolist()) == list(range(6)) and max(random[p] for p in (5, 3, 1, 0)) < 4
    assert random.tolist() != knowledge.random_slots(jax.random.key(1), order, num_keep).tolist()


@pytest.mark.parametrize(('kept', 'dropped', 'expected'), [(3, 5, 3), (5, 3, 3), (5, 0, 0)])
def test_num_mixed(kept, dropped, expected):
    assert int(knowledge.num_mixed(kept, dropped)) == expected
