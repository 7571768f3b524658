"""WCoRD has no public code: the references are NumPy evaluations of the formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import _contrast, _parts, wcord


def test_local_term_matches_the_reference(golden):
    arrays = golden('wcord')
    s, t = (_parts.normalise(jnp.asarray(arrays[f'wcord/h_{net}'], jnp.float32)) for net in 'st')
    cost = 1.0 - t @ s.T
    np.testing.assert_allclose(cost, arrays['wcord/cost'], atol=1e-6)
    # exp(-cost / 0.05) multiplies a rounding of the cost by twenty, in each of the potentials.
    plan = wcord.transport_plan(jnp.asarray(arrays['wcord/cost'], jnp.float32), 0.05, 50)
    np.testing.assert_allclose(plan, arrays['wcord/plan_eps0.05_it50'], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        jnp.mean(wcord.transport_cost(s, t, 0.05, 50, 64)), arrays['wcord/local_loss'], rtol=1e-4
    )


def test_the_plan_has_uniform_marginals():
    cost = jax.random.uniform(jax.random.key(0), (2, 6, 6))
    plan = wcord.transport_plan(cost, 0.1, 200)
    np.testing.assert_allclose(plan.sum(1), np.full((2, 6), 1 / 6), rtol=1e-5)
    np.testing.assert_allclose(plan.sum(2), np.full((2, 6), 1 / 6), rtol=1e-3)


def test_the_gradient_of_the_local_term_passes_through_the_cost_only():
    rng = np.random.default_rng(0)
    s, t = (_parts.normalise(jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)) for _ in range(2))
    grad = jax.grad(lambda s: jnp.mean(wcord.transport_cost(s, t, 0.05, 50, 64)))(s)
    plan = wcord.transport_plan(1.0 - t @ s.T, 0.05, 50)
    np.testing.assert_allclose(grad, -plan.T @ t, rtol=1e-4, atol=1e-6)


def test_the_kernel_is_divided_by_its_largest_singular_value():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(6, 4)).astype(np.float32)
    params = {'kernel': jnp.asarray(kernel), 'bias': jnp.ones(4)}
    vector = _parts.normalise(jnp.ones(4))
    pooled = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    for _ in range(100):
        embedding, vector = wcord.spectral_linear(params, vector, pooled)
    want = pooled @ (kernel / np.linalg.svd(kernel)[1][0]) + 1.0
    np.testing.assert_allclose(embedding, want / np.linalg.norm(want, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def test_the_dual_matches_a_numpy_loop():
    score = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    got, z = wcord.dual(jnp.asarray(score), jnp.float32(2.0), None, 10, temperature=0.07)
    want = [-(row[0] / 0.07) + sum(row[1:] / 0.07) / 4 for row in score]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert z == 2.0


def test_the_parts_add_up(make_setup, make_outputs, make_batch, clock):
    student, teacher, batch = make_outputs(4, seed=1), make_outputs(4, seed=2), make_batch(4)
    options = {'num_negatives': 8, 'size': 8, 'group': 4}
    key = jax.random.key(1)

    def extra(global_weight, local_weight, objective):
        method = wcord.make(global_weight=global_weight, local_weight=local_weight, objective=objective, **options)
        params, state = method.init(jax.random.key(0), make_setup(student, teacher))
        return method.loss(params, state, student, teacher, batch, clock(), key).extra, params, state

    local, params, state = extra(0.0, 1.0, 'nce')
    s, _ = wcord.spectral_linear(params['embed_student'], state['vector_student'], student.embed)
    t, _ = wcord.spectral_linear(params['embed_teacher'], state['vector_teacher'], teacher.embed)
    np.testing.assert_allclose(local, wcord.transport_cost(s, t, 0.05, 50, 4), rtol=1e-5)

    negatives = np.asarray(_contrast.draw_negatives(key, state['bank'], batch.label, 8))
    want = np.zeros(4)
    for anchor, bank in ((s, state['bank']['teacher']), (t, state['bank']['student'])):
        for row in range(4):
            critic = np.asarray(bank) @ np.asarray(anchor[row]) / 0.07
            want[row] += np.mean(critic[negatives[row]]) - critic[int(batch.index[row])]
    np.testing.assert_allclose(extra(1.0, 0.0, 'dual')[0], want, rtol=1e-4, atol=1e-5)
    nce = extra(1.0, 0.0, 'nce')[0]
    np.testing.assert_allclose(extra(0.8, 0.05, 'nce')[0], 0.8 * nce + 0.05 * local, rtol=1e-5)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective is 'primal'; use one of nce, dual"):
        wcord.make(objective='primal')
