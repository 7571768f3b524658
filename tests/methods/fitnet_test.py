from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.methods import fitnet


def regressor(golden, kind):
    weight = golden[f'fitnet/reg_{kind}/conv_w_torchlayout']
    if kind == 'up':  # (in, out, h, w), and a transposed convolution turns its kernel by 180 degrees
        kernel = np.transpose(weight, (2, 3, 0, 1))[::-1, ::-1]
    else:
        kernel = np.transpose(weight, (2, 3, 1, 0))
    channels = kernel.shape[-1]
    conv = {'kernel': jnp.asarray(kernel), 'bias': jnp.asarray(golden[f'fitnet/reg_{kind}/conv_b'])}
    return {'conv': conv, 'norm': {'scale': jnp.ones(channels), 'bias': jnp.zeros(channels)}}


def test_the_hint_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('fitnet')
    loss, (grad, _) = loss_and_grad(fitnet.hint, arrays.map('fitnet/hint/f_s'), arrays.map('fitnet/hint/f_t'))
    np.testing.assert_allclose(loss, arrays['fitnet/hint/loss'], rtol=1e-6)
    np.testing.assert_allclose(grad, arrays.map('fitnet/hint/grad_f_s'), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('kind', ['same', 'down', 'up'])
def test_the_regressors_match_the_public_code(golden, loss_and_grad, kind):
    arrays = golden('fitnet')
    params = regressor(arrays, kind)
    student, teacher = arrays.map(f'fitnet/reg_{kind}/f_s'), arrays.map(f'fitnet/reg_{kind}/f_t')
    regressed = fitnet.regress(params, jnp.asarray(student), teacher.shape)
    # Batch normalisation divides by a deviation of about 0.5: float32 of values of order 1.
    np.testing.assert_allclose(regressed, arrays.map(f'fitnet/reg_{kind}/regressed'), rtol=1e-4, atol=1e-5)
    loss, (grad, _) = loss_and_grad(lambda s, t: fitnet.hint(fitnet.regress(params, s, t.shape), t), student, teacher)
    np.testing.assert_allclose(loss, arrays[f'fitnet/reg_{kind}/loss'], rtol=1e-5)
    # The gradient through batch statistics is a difference of sums ten times as large as itself.
    np.testing.assert_allclose(grad, arrays.map(f'fitnet/reg_{kind}/grad_f_s'), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ('student', 'teacher', 'kind', 'kernel'),
    [
        (8, 8, 'valid', (1, 1)),
        (8, 4, 'down', (3, 3)),
        (4, 8, 'up', (4, 4)),
        (8, 2, 'valid', (7, 7)),
        (8, 7, 'valid', (2, 2)),
    ],
)
def test_the_regressor_follows_from_the_sizes(student, teacher, kind, kernel):
    shapes = (2, student, student, 3), (2, teacher, teacher, 5)
    assert fitnet.regressor_kind(*shapes) == kind
    params = fitnet.regressor_init(jax.random.key(0), *shapes)
    assert params['conv']['kernel'].shape == (*kernel, 3, 5)
    assert fitnet.regress(params, jnp.ones(shapes[0]), shapes[1]).shape == shapes[1]


def test_sizes_without_a_regressor_are_refused(make_outputs, make_setup):
    student, teacher = make_outputs(2, sizes=(2, 2, 1, 1)), make_outputs(2, sizes=(8, 8, 4, 2))
    with pytest.raises(ValueError, match=r'no regressor from 1x1 to 4x4.*tap='):
        fitnet.make().init(None, make_setup(student, teacher))
    with pytest.raises(ValueError, match='both networks have maps 0 to 3'):
        fitnet.make(tap=4).init(None, make_setup(student, teacher))
