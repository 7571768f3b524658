from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import one


def test_the_kl_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('one')
    loss, (grad, to_ensemble) = loss_and_grad(
        lambda z, e: one.ensemble_kl(z, e, 3.0), arrays['one/branch_logits'], arrays['one/ensemble_logits']
    )
    np.testing.assert_allclose(loss, arrays['one/kl_T3'], rtol=1e-5)
    np.testing.assert_allclose(grad, arrays['one/grad_branch_logits'], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(to_ensemble, np.zeros_like(to_ensemble))


def test_the_ramp_matches_the_public_code(golden):
    got = [one.ramp_up(jnp.int32(epoch), 80) for epoch in (0, 20, 40, 60, 80, 100)]
    np.testing.assert_allclose(got, golden('one')['one/rampup80_epochs_0_20_40_60_80_100'], rtol=1e-6)


def test_the_whole_loss_matches_a_numpy_loop(make_outputs, make_batch, clock):
    student, batch = make_outputs(4, seed=1), make_batch(4)
    extra = one.make().loss({}, {}, student, None, batch, clock(40), None).extra
    branches, gate = np.float64(student.aux['branches']), np.float64(student.aux['gate'])

    def softmax(z):
        return np.exp(z) / np.exp(z).sum()

    want = []
    for i, y in enumerate(np.asarray(batch.label)):
        ensemble = sum(gate[i, j] * branches[i, j] for j in range(3))
        q = softmax(ensemble / 3) + 1e-7
        hard = -np.log(softmax(ensemble)[y]) - sum(np.log(softmax(branches[i, j])[y]) for j in (1, 2))
        soft = sum(9 * np.sum(q * np.log(q / softmax(branches[i, j] / 3))) for j in range(3))
        want.append(hard + np.exp(-5 * 0.25) * soft)
    np.testing.assert_allclose(extra, want, rtol=1e-5)


def test_a_student_without_branches_is_refused_in_one_line(make_outputs, make_setup):
    setup = make_setup(make_outputs(2).replace(aux={}), make_outputs(2))
    with pytest.raises(ValueError, match='empty has none; use resnet32_one or resnet18_one'):
        one.make().init(jax.random.key(0), setup)
    with pytest.raises(ValueError, match='ramp is 0'):
        one.make(ramp=0)
