"""The host's condensation is the device's to the bit."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.knowledge_speed import condensation_ms
from kcd_jax import knowledge
from kcd_jax.knowledge import large
from kcd_jax.knowledge.ranking import MAX_VISITS
from kcd_jax.runtime import sharding

ROWS, POINTS = 64, 61

special = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1.2e-38, 1.0, 3.3e38])
values = hnp.arrays(np.float32, ROWS, elements=st.floats(width=32) | special)
counts = hnp.arrays(np.int32, ROWS, elements=st.sampled_from([0, 1, 2, 40, MAX_VISITS, MAX_VISITS + 1]))


ORDER_BY = jax.jit(knowledge.order_by)


def device(value, count, num_points, num_keep):
    table = knowledge.ValueTable(jnp.asarray(value), jnp.asarray(count), num_points)
    return jax.jit(lambda table, n: knowledge.summarize(knowledge.rank(table, 0.03), n, 0.3, num_points))(
        table, num_keep
    )


def host(value, count, num_points, num_keep):
    return large.summarize(large.rank(value, count, num_points, 0.03), num_keep, num_points - num_keep, 0.3)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), y)


@given(values, counts, st.integers(1, POINTS))
@settings(max_examples=25)
def test_the_same_plan_to_the_bit(value, count, num_keep):
    assert_same(device(value, count, POINTS, num_keep), host(value, count, POINTS, num_keep))


@given(hnp.arrays(np.uint32, ROWS, elements=st.integers(0, 3) | st.integers(0, 2**32 - 1)))
@settings(max_examples=25)
def test_the_same_order_to_the_bit(key):
    assert_same(ORDER_BY(key), large.order_by(key))


def test_the_same_random_order():
    for key in (jax.random.key(3), jax.random.PRNGKey(4)):  # typed and plain
        assert_same(knowledge.random_order(key, ROWS, POINTS), large.random_order(key, ROWS, POINTS))


def test_the_same_random_bits_over_several_parts():
    rows, key = 2 * large.DRAWN + 7, jax.random.PRNGKey(6)
    assert_same(jax.random.bits(key, (rows,), jnp.uint32) >> jnp.uint32(1), large.random_bits(key, rows))


def test_a_plan_of_the_host_is_for_long_tables_on_a_cpu(monkeypatch):
    monkeypatch.setattr(large, 'MIN_ROWS', ROWS)
    assert large.suits(knowledge.full_plan(ROWS, ROWS)) and not large.suits(knowledge.full_plan(ROWS - 1, ROWS - 1))

    class OnGpu:
        sharding = types.SimpleNamespace(device_set=[types.SimpleNamespace(platform='gpu')])

        def __len__(self):
            return ROWS

    assert not large.suits(types.SimpleNamespace(order=OnGpu()))


@pytest.mark.parametrize('placed', ['split', 'replicated'])
def test_a_table_comes_to_the_host_whole(placed):
    mesh = sharding.make_mesh()
    where = sharding.batch(mesh) if placed == 'split' else sharding.replicated(mesh)
    value, count = np.arange(ROWS, dtype=np.float32), np.arange(ROWS, dtype=np.int32)[::-1].copy()
    table = sharding.put(knowledge.ValueTable(value, count, POINTS), where)
    found = large.fetch(table, knowledge.full_plan(ROWS, ROWS))
    np.testing.assert_array_equal(found[0], value)
    np.testing.assert_array_equal(found[1], count)


@pytest.mark.parametrize('share', [0.3, 0.7, 1.0])
def test_the_same_plan_over_several_blocks(share, monkeypatch):
    monkeypatch.setattr(large, 'BLOCK', 1000)
    rng, rows, num_points = np.random.default_rng(0), 10_240, 10_007
    value = np.round(rng.random(rows), 3).astype(np.float32)  # many ties
    count = rng.integers(0, 5, rows).astype(np.int32)
    num_keep = round(share * num_points)
    assert_same(device(value, count, num_points, num_keep), host(value, count, num_points, num_keep))


def test_speed_reports():
    found = condensation_ms(2000, repeats=1)
    # Beside table and plan: 8 bytes a point and one block.
    assert set(found) == {'jit', 'host', 'host_bytes'} and min(found['jit'], found['host']) > 0


def test_host_memory_is_bounded():
    """24 bytes a point beside table and plan; a block of 131,072 points is small against a million."""
    assert condensation_ms(1_000_000, repeats=1)['host_bytes'] < 24
