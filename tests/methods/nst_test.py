from __future__ import annotations

import numpy as np

from kcd_jax.methods import _parts, nst


def test_the_discrepancy_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('maps')
    for tap in range(3):
        maps = arrays.map(f'maps/f_s{tap}'), arrays.map(f'maps/f_t{tap}')
        loss, (grad, _) = loss_and_grad(lambda s, t: nst.discrepancy(*_parts.same_size(s, t)), *maps)
        # Two means of about 1 minus twice their cross mean: two digits cancel.
        np.testing.assert_allclose(loss, arrays['nst/per_tap'][tap], rtol=1e-5)
        np.testing.assert_allclose(grad, arrays.map(f'nst/grad_f_s{tap}'), rtol=1e-4, atol=1e-8)
