from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import _parts, vid


def test_the_likelihood_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('maps')
    for tap in range(3):
        params = {f'kernel{i}': jnp.asarray(arrays[f'vid/tap{tap}/w{i}_OI'].T) for i in (1, 2, 3)}
        params['rho'] = jnp.asarray(arrays[f'vid/tap{tap}/log_scale'])
        maps = arrays.map(f'maps/f_s{tap}'), arrays.map(f'maps/f_t{tap}')
        loss, (grad, _) = loss_and_grad(
            lambda s, t, params=params: vid.variational_loss(params, *_parts.same_size(s, t)), *maps
        )
        np.testing.assert_allclose(loss, arrays['vid/per_tap'][tap], rtol=1e-6)
        # Three small matrix products one after the other, summed in another order.
        np.testing.assert_allclose(grad, arrays.map(f'vid/grad_f_s{tap}'), rtol=1e-4, atol=1e-9)


def test_rho_starts_at_a_variance_of_five(golden):
    assert pytest.approx(float(golden('maps')['vid/initial_log_scale_value']), rel=1e-6) == vid.INITIAL_RHO


def test_the_deviation_is_trained(golden, loss_and_grad):
    arrays = golden('maps')
    params = {f'kernel{i}': jnp.asarray(arrays[f'vid/tap0/w{i}_OI'].T) for i in (1, 2, 3)}
    params['rho'] = jnp.asarray(arrays['vid/tap0/log_scale'])
    _, (grads, _, _) = loss_and_grad(vid.variational_loss, params, arrays.map('maps/f_s0'), arrays.map('maps/f_t0'))
    assert np.all(np.abs(grads['rho']) > 0.0)
