"""KDGAN has no public code for images: the references are NumPy loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kcd_jax.contracts import Optimiser, Weights
from kcd_jax.methods import kdgan


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def test_the_discriminators_loss_matches_a_numpy_loop():
    rng = np.random.default_rng(0)
    scores, z_s, z_t = rng.normal(size=(3, 4, 5))
    label = rng.integers(0, 5, 4)
    want = []
    for i in range(4):

        def d(k, i=i):
            return 1 / (1 + np.exp(-scores[i, k]))

        fake_s = -sum(softmax(z_s[i])[k] * np.log(1 - d(k)) for k in range(5))
        fake_t = -sum(softmax(z_t[i])[k] * np.log(1 - d(k)) for k in range(5))
        want.append(-np.log(d(label[i])) + 0.75 * fake_s + 0.25 * fake_t)
    arrays = (jnp.asarray(x, jnp.float32) for x in (z_s, z_t))
    got = kdgan.discriminator_loss(jnp.asarray(scores, jnp.float32), jnp.asarray(label, jnp.int32), *arrays, 0.25)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_students_loss_matches_a_numpy_loop():
    rng = np.random.default_rng(0)
    scores, z_s, z_t = rng.normal(size=(3, 4, 5))
    sample = np.eye(5)[[0, 1, 2, 3]]
    want = [
        0.5 * -np.log(1 / (1 + np.exp(-scores[i, i]))) + 0.3 * 0.5 * np.sum((z_t[i] - z_s[i]) ** 2) for i in range(4)
    ]
    arrays = (jnp.asarray(x, jnp.float32) for x in (scores, sample, z_s, z_t))
    np.testing.assert_allclose(kdgan.student_loss(*arrays, 0.5, 0.3), want, rtol=1e-5)


def test_samples_are_one_hot_follow_the_softmax_and_carry_a_gradient():
    logits = jnp.asarray([[1.0, 0.0, -1.0]])
    many = jnp.broadcast_to(logits, (4096, 3))
    sample = kdgan.straight_through_sample(jax.random.key(0), many)
    np.testing.assert_allclose(np.sort(sample, axis=1), np.tile([0.0, 0.0, 1.0], (4096, 1)), atol=1e-6)
    # 4096 draws: a standard deviation below 0.008; four of them.
    np.testing.assert_allclose(sample.mean(0), softmax(np.asarray(logits[0])), atol=0.032)
    grad = jax.grad(lambda z: kdgan.straight_through_sample(jax.random.key(0), z)[0, 0])(logits)
    assert np.all(np.abs(grad) > 0.0)


def test_two_updates_share_a_step(make_outputs, make_setup, make_batch, clock):
    method = kdgan.make()
    (phase,) = method.phases(5, Optimiser(optax.trace(0.9), lambda epoch: 0.1), None)
    first, second = phase.updates
    assert (first.moves, first.label, first.keep) == (('method/discriminator/*',), 'discriminator', False)
    assert (second.moves, second.label, second.keep) == (('student/*',), 'main', True)
    assert first.weights == Weights(0.0, 0.0, 1.0) and second.weights is None
    assert phase.record and set(phase.optimisers) == {'discriminator', 'main'}

    student, teacher, batch = make_outputs(4, seed=1), make_outputs(4, seed=2), make_batch(4)
    params, _ = method.init(jax.random.key(0), make_setup(student, teacher))

    def moved(loss):
        def mean(params, logits):
            outputs = student.replace(logits=logits)
            return jnp.mean(loss(params, {}, outputs, teacher, batch, clock(), jax.random.key(1)).extra)

        grads = jax.jit(jax.grad(mean, argnums=(0, 1)))(params, student.logits)
        return [any(np.any(np.asarray(g) != 0.0) for g in jax.tree.leaves(part)) for part in grads]

    assert moved(first.loss) == [True, False]
    assert moved(second.loss) == [False, True]


def test_a_share_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match='teacher_share is 2'):
        kdgan.make(teacher_share=2)
