"""Eq. 13 and Eq. 8."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kcd_jax import knowledge
from kcd_jax.knowledge import ranking
from kcd_jax.knowledge.ranking import MAX_VISITS

ROWS = 24
POINTS = 21


def make_table(value, count, num_points=None):
    value = np.asarray(value, np.float32)
    num_points = len(value) if num_points is None else num_points
    return knowledge.ValueTable(jnp.asarray(value), jnp.asarray(count, jnp.int32), num_points)


def slow_rank(value, count, num_points, alpha):
    """Eq. 13 point by point: never visited or not a number first, padding last, ties by index."""

    def key(i):
        if i >= num_points:
            return (2, 0.0, i)
        if count[i] == 0 or np.isnan(value[i]):
            return (0, 0.0, i)
        weight = np.float32(float(min(count[i], MAX_VISITS)) ** alpha)
        return (1, -float(weight * np.float32(value[i])), i)

    return sorted(range(len(value)), key=key)


values = hnp.arrays(
    np.float32,
    ROWS,
    elements=st.floats(width=32, min_value=-8, max_value=8, allow_subnormal=False)
    | st.sampled_from([np.nan, np.inf, 0.0, -0.0, 1.0]),
)
counts = hnp.arrays(np.int32, ROWS, elements=st.sampled_from([0, 1, 2, 40, MAX_VISITS, 2**31 - 1]))


@given(values, counts, st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=40)
def test_rank_matches_a_numpy_loop(value, count, alpha):
    order = jax.jit(knowledge.rank, static_argnums=1)(make_table(value, count, POINTS), alpha)
    assert order.dtype == jnp.int32
    assert sorted(order.tolist()) == list(range(ROWS))
    assert order.tolist() == slow_rank(value, count, POINTS, alpha)


@given(hnp.arrays(np.uint32, ROWS, elements=st.integers(0, 3) | st.sampled_from([2**31 - 1, 2**31, 2**32 - 1])))
@settings(max_examples=40)
def test_sorts_of_all_platforms_match_numpys_stable_argsort(key):
    expected = np.argsort(key, kind='stable')
    for sort in (knowledge.order_by, ranking._sort_packed, ranking._sort_pairs):
        np.testing.assert_array_equal(jax.jit(sort)(key), expected)


@pytest.mark.parametrize(('platform', 'packed'), [('cpu', True), ('tpu', False), ('cuda', False), ('rocm', False)])
def test_only_the_cpu_sorts_64_bit_numbers(platform, packed):
    exported = jax.export.export(jax.jit(knowledge.order_by), platforms=[platform])
    text = exported(jax.ShapeDtypeStruct((ROWS,), jnp.uint32)).mlir_module()
    assert ('xui64' in text) == packed and 'stablehlo.sort' in text


@pytest.mark.parametrize('key', [jnp.zeros(3, jnp.int32), jnp.zeros((3, 2), jnp.uint32)])
def test_keys_of_another_type_or_shape_are_refused(key):
    with pytest.raises(AssertionError):
        knowledge.order_by(key)


@given(hnp.arrays(np.int32, ROWS, elements=st.integers(0, 1000)))
@settings(max_examples=10)
def test_monotone_transforms_keep_the_order(value):
    count = np.ones(ROWS)
    plain = knowledge.rank(make_table(value, count), 0.03)
    np.testing.assert_array_equal(plain, knowledge.rank(make_table(np.sqrt(value + np.float32(2)), count), 0.03))


def test_frequency_breaks_equal_values():
    order = knowledge.rank(make_table([1.0, 1.0, 1.0], [2, 3, 1]), 0.03)
    assert order.tolist() == [1, 0, 2]
    assert knowledge.rank(make_table([1.0, 1.0, 1.0], [2, 3, 1]), 0.0).tolist() == [0, 1, 2]


def test_likelihood_and_label():
    order = jnp.asarray([2, 0, 3, 1], jnp.int32)
    np.testing.assert_array_equal(knowledge.positions(order), [1, 3, 0, 2])
    np.testing.assert_allclose(knowledge.likelihood(order), [0.75, 0.25, 1.0, 0.5])
    np.testing.assert_array_equal(knowledge.value_label(order, 2), [1, 0, 1, 0])
    assert float(knowledge.likelihood(order, 2)[1]) == 0.0
    # y = 1 iff p > 1 - tau, Eq. 8 as corrected.
    np.testing.assert_array_equal(knowledge.value_label(order, 2), (knowledge.likelihood(order) > 0.5).astype(np.int32))


@pytest.mark.parametrize('num_points', [0, 5])
def test_a_table_must_hold_its_points(num_points):
    with pytest.raises(ValueError, match='cannot hold'):
        knowledge.ValueTable.create(num_points, 4)
