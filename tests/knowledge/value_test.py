"""Eq. 7 and Eq. 12 against NumPy loops, and their properties for any input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcd_jax import knowledge

ROWS = 16


def slow_entropy(logits: np.ndarray) -> list[float]:
    """Eq. 7 from its definition, in float64."""
    result = []
    for row in logits.astype(np.float64):
        p = np.exp(row - row.max())
        p /= p.sum()
        result.append(-sum(x * np.log(x) for x in p if x > 0))
    return result


def test_entropy_matches_its_definition():
    logits = np.random.default_rng(0).normal(size=(32, 10)).astype(np.float32) * 5
    # Float32 sums of ten terms.
    np.testing.assert_allclose(
        knowledge.prediction_entropy(jnp.asarray(logits)), slow_entropy(logits), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('low', [-1e2, -1e4, -3e38])
def test_entropy_and_its_gradient_are_finite_for_any_gap(low):
    logits = jnp.asarray([[0.0, low, low], [3e38, low, 1.0], [1.0, 1.0, low]], jnp.float32)
    entropy, gradient = jax.value_and_grad(lambda x: knowledge.prediction_entropy(x).sum())(logits)
    assert np.isfinite(entropy) and np.isfinite(gradient).all()
    np.testing.assert_allclose(knowledge.prediction_entropy(logits)[2], np.log(2), rtol=1e-6)


def test_entropy_bounds_and_half_precision():
    logits = jnp.zeros((1, 100), jnp.bfloat16)
    entropy = knowledge.prediction_entropy(logits)
    assert entropy.dtype == jnp.float32
    np.testing.assert_allclose(entropy, np.log(100), rtol=1e-6)
    assert float(knowledge.prediction_entropy(jnp.asarray([[300.0, 0.0]]))[0]) == 0.0


visits = st.lists(st.tuples(st.integers(0, ROWS), st.floats(0, 7, width=32)), min_size=1, max_size=40)


@given(visits, st.integers(1, 40), st.randoms())
@settings(max_examples=20)
def test_record_is_the_mean_for_any_order_and_batching(visits, batch, random):
    """The padding index is inert, duplicates are that many visits, and any order of batches gives the same mean."""
    record = jax.jit(knowledge.record)
    values: dict[int, list[float]] = {}
    for index, value in visits:
        values.setdefault(index, []).append(value)
    random.shuffle(visits)
    table = knowledge.ValueTable.create(ROWS, ROWS)
    for start in range(0, len(visits), batch):
        part = visits[start : start + batch] + [(ROWS, 9.0)] * (batch - len(visits[start : start + batch]))
        index, value = zip(*part, strict=True)
        table = record(table, jnp.asarray(index, jnp.int32), jnp.asarray(value, jnp.float32))
    for index in range(ROWS):
        seen = values.get(index, [])
        assert int(table.count[index]) == len(seen)
        # A running mean of up to 40 float32 values.
        np.testing.assert_allclose(table.value[index], np.mean(seen) if seen else 0.0, rtol=1e-5, atol=1e-5)


def test_record_last_keeps_the_newest():
    table = knowledge.ValueTable.create(4, 4)
    table = knowledge.record_last(table, jnp.asarray([0, 1]), jnp.asarray([5.0, 6.0]))
    table = knowledge.record_last(table, jnp.asarray([1, 2, 2, 4]), jnp.asarray([1.0, 2.0, 3.0, 9.0]))
    np.testing.assert_array_equal(table.value, [5.0, 1.0, 3.0, 0.0])
    np.testing.assert_array_equal(table.count, [1, 2, 2, 0])


def test_record_on_a_split_table_is_the_same():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ('data',))
    split = NamedSharding(mesh, PartitionSpec('data'))
    rng = np.random.default_rng(1)
    whole = knowledge.ValueTable.create(ROWS, ROWS)
    table = jax.device_put(knowledge.ValueTable.create(ROWS, ROWS), split)
    record = jax.jit(knowledge.record)
    for _ in range(3):
        index = rng.integers(0, ROWS + 1, 8).astype(np.int32)
        value = rng.random(8, np.float32)
        whole = record(whole, jnp.asarray(index), jnp.asarray(value))
        table = record(table, jax.device_put(index, split), jax.device_put(value, split))
    assert not table.value.sharding.is_fully_replicated
    np.testing.assert_array_equal(table.count, whole.count)
    np.testing.assert_allclose(table.value, whole.value, rtol=1e-6)


@pytest.mark.parametrize('record', [knowledge.record, knowledge.record_last])
def test_values_of_another_shape_than_the_points_are_refused(record):
    with pytest.raises(AssertionError):
        record(knowledge.ValueTable.create(3, 4), jnp.array([0, 1]), jnp.ones(1))
