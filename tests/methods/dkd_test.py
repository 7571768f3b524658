from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import dkd


@pytest.mark.parametrize('others', [8, 2])
def test_the_loss_matches_the_public_code(golden, loss_and_grad, others):
    arrays = golden('dkd')
    label = jnp.asarray(arrays['dkd/labels'], jnp.int32)

    def extra(student, teacher):
        tckd, nckd = dkd.decoupled(student, teacher, label, 4.0)
        return tckd + others * nckd

    loss, (grad, _) = loss_and_grad(extra, arrays['dkd/logits_s'], arrays['dkd/logits_t'])
    np.testing.assert_allclose(loss, arrays[f'dkd/a1_b{others}_T4/loss'], rtol=1e-5)
    # The public code takes logarithms of float32 probabilities; ours are log-sums.
    np.testing.assert_allclose(grad, arrays[f'dkd/a1_b{others}_T4/grad'], rtol=1e-4, atol=1e-6)


def test_the_two_parts_match_a_numpy_loop():
    rng = np.random.default_rng(0)
    z_s, z_t, label = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.integers(0, 4, 6)
    want = []
    for s, t, y in zip(z_s / 2.0, z_t / 2.0, label, strict=True):
        p, q = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        tckd = q[y] * np.log(q[y] / p[y]) + (1 - q[y]) * np.log((1 - q[y]) / (1 - p[y]))
        p, q = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        want.append((4.0 * tckd, 4.0 * np.sum(q * np.log(q / p))))
    got = dkd.decoupled(
        jnp.asarray(z_s, jnp.float32), jnp.asarray(z_t, jnp.float32), jnp.asarray(label, jnp.int32), 2.0
    )
    np.testing.assert_allclose(np.stack(got, axis=1), want, rtol=1e-4, atol=1e-6)


def test_warmup_takes_twenty_epochs_counted_from_one(make_batch, make_outputs, clock):
    student, teacher, batch = make_outputs(4, seed=1), make_outputs(4, seed=2), make_batch(4)

    def extra(epoch, **options):
        return dkd.make(**options).loss({}, {}, student, teacher, batch, clock(epoch), None).extra

    full = extra(0, warmup=0)
    for epoch, share in ((0, 0.05), (9, 0.5), (19, 1.0), (200, 1.0)):
        np.testing.assert_allclose(extra(epoch), share * full, rtol=1e-6)


@pytest.mark.parametrize('scale', [1e3, 1e6, 1e15])
def test_confident_logits_stay_finite(scale, loss_and_grad):
    logits = scale * jax.random.normal(jax.random.key(0), (8, 5))
    label = jnp.arange(8, dtype=jnp.int32) % 5

    def extra(student, teacher):
        return sum(dkd.decoupled(student, teacher, label, 4.0))

    loss, grads = loss_and_grad(extra, logits, logits[::-1])
    assert np.isfinite(loss) and all(np.all(np.isfinite(g)) for g in grads)
