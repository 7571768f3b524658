"""Policies whose plans are made on the host above some size: the same plans as on the device, to the bit."""

from __future__ import annotations

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kcd_jax.contracts import Plan, ValueTable, full_plan
from kcd_jax.knowledge import large
from kcd_jax.policies import kcd, random
from kcd_jax.runtime import sharding

ROWS, POINTS, EPOCHS = 64, 61, 12
CHOICES = [
    {'ranking': ranking, 'dropped': dropped, 'augment': augment, 'epsilon': epsilon}
    for ranking, dropped, augment, epsilon in itertools.product(
        ('value', 'reversed', 'random'), ('complement', 'window'), ('low', 'none'), ('ramp', 'constant')
    )
]
few = st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0000001, -2.0, np.nan, np.inf, -np.inf, 1e-40, 3.3e38])
values = hnp.arrays(np.float32, ROWS, elements=few | st.floats(width=32))
counts = hnp.arrays(np.int32, ROWS, elements=st.sampled_from([0, 1, 2, 3, 40, 20_000]))


def replan(policy, min_rows, value, count, before, epoch):
    """The plan where the host serves from `min_rows` on; `before` points were kept."""
    plan = full_plan(POINTS, ROWS).replace(num_keep=jnp.int32(before))
    table = ValueTable(jnp.asarray(value), jnp.asarray(count), POINTS)
    with mock.patch.object(large, 'MIN_ROWS', min_rows):
        return policy.replan(jax.random.PRNGKey(5), table, plan, {}, epoch, EPOCHS)[0]


def assert_same(device: Plan, host: Plan) -> None:
    for name in ('order', 'num_keep', 'partner', 'epsilon', 'weight'):
        a, b = getattr(device, name), getattr(host, name)
        assert isinstance(a, jax.Array) and isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(np.asarray(a), b, err_msg=name)


@given(
    st.sampled_from(CHOICES), st.sampled_from([0.3, 0.5, 0.9, 1.0]), values, counts, st.integers(1, POINTS), st.data()
)
@settings(max_examples=60, deadline=None)
def test_kcd_plans_the_same_on_the_host(choice, ratio, value, count, before, data):
    policy = kcd.make(ratio=ratio, stages=3, **choice)
    epoch = data.draw(st.sampled_from([e for e in range(EPOCHS) if policy.when(e, EPOCHS)]))
    assert_same(*(replan(policy, rows, value, count, before, epoch) for rows in (ROWS + 1, ROWS)))


def test_nothing_is_known_before_the_first_epoch():
    policy, nothing = kcd.make(first='none'), np.zeros(ROWS, np.float32)
    assert_same(*(replan(policy, rows, nothing, nothing.astype(np.int32), POINTS, 0) for rows in (ROWS + 1, ROWS)))


@pytest.mark.parametrize('drawn', random.DRAWN)
def test_random_draws_the_same_on_the_host(drawn):
    policy, nothing = random.make(drawn=drawn), np.zeros(ROWS, np.float32)
    assert_same(*(replan(policy, rows, nothing, nothing.astype(np.int32), POINTS, 1) for rows in (ROWS + 1, ROWS)))


@pytest.mark.parametrize('keywords', [{'augment': 'high'}, {'augment': 'random'}])
def test_what_the_host_has_not_is_made_on_the_device(keywords):
    value, count = np.arange(ROWS, dtype=np.float32), np.ones(ROWS, np.int32)
    plan = replan(kcd.make(**keywords), ROWS, value, count, POINTS, 1)
    assert isinstance(plan.order, jax.Array) and int(plan.num_keep) < POINTS


def test_a_split_table_gives_the_same_plan():
    """The loop hands over the table as it lies, split over the devices."""
    rng, mesh = np.random.default_rng(0), sharding.make_mesh()
    value, count = rng.random(ROWS, np.float32), rng.integers(0, 3, ROWS, np.int32)
    plan = sharding.put(full_plan(POINTS, ROWS), sharding.replicated(mesh))
    table = sharding.put(ValueTable(value, count, POINTS), sharding.batch(mesh))
    with mock.patch.object(large, 'MIN_ROWS', ROWS):
        found = kcd.make().replan(jax.random.PRNGKey(5), table, plan, {}, 1, EPOCHS)[0]
    assert_same(replan(kcd.make(), ROWS + 1, value, count, POINTS, 1), found)
