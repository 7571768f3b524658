from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kcd_jax.methods import pkt


def test_the_neighbour_probabilities_match_the_public_code(golden, loss_and_grad):
    arrays = golden('pooled')
    loss, (grad, _) = loss_and_grad(
        lambda s, t: pkt.neighbour_loss(s, t, 64), arrays['pooled/f_s'], arrays['pooled/f_t']
    )
    # Logarithms of ratios near 1 that nearly cancel in the sum: four digits of float32's seven are lost.
    np.testing.assert_allclose(loss, arrays['pkt/loss'], rtol=1e-4)
    np.testing.assert_allclose(grad, arrays['pkt/grad_f_s'], rtol=1e-3, atol=1e-8)


def test_groups_are_independent():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(8, 5)), jnp.float32) for _ in range(2))
    whole = pkt.neighbour_loss(student, teacher, 4)
    parts = [pkt.neighbour_loss(student[i : i + 4], teacher[i : i + 4], 4) for i in (0, 4)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-4, atol=1e-9)
