from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kcd_jax.contracts import Network, Optimiser, Weights
from kcd_jax.methods import fsp
from kcd_jax.trees import matches


def test_the_flow_matches_the_public_code(golden, loss_and_grad):
    arrays = golden('fsp')
    student = tuple(arrays.map(f'fsp/f_s{i}') for i in range(4))
    teacher = tuple(arrays.map(f'fsp/f_t{i}') for i in range(4))
    loss, (grads, _) = loss_and_grad(fsp.flow_loss, student, teacher)
    # Means over 16 or 64 positions of products of order 1, squared differences of order 0.1.
    np.testing.assert_allclose(loss, arrays['fsp/loss'], rtol=1e-5)
    for i, grad in enumerate(grads):
        np.testing.assert_allclose(grad, arrays.map(f'fsp/grad_f_s{i}'), rtol=1e-4, atol=1e-8)


def test_each_pair_and_its_matrix_match_the_public_code(golden):
    arrays = golden('fsp')
    for i in range(3):
        pair = [tuple(jnp.asarray(arrays.map(f'fsp/f_{net}{j}')) for j in (i, i + 1)) for net in 'st']
        np.testing.assert_allclose(jnp.mean(fsp.flow_loss(*pair)), arrays['fsp/per_pair'][i], rtol=1e-5)
    matrix = fsp.flow(jnp.asarray(arrays.map('fsp/f_s1')), jnp.asarray(arrays.map('fsp/f_s2')))
    np.testing.assert_allclose(matrix, arrays['fsp/matrix_s_pair1'], rtol=1e-5, atol=1e-6)


def test_unequal_channels_are_refused_in_one_line(make_outputs, make_setup):
    setup = make_setup(make_outputs(2), make_outputs(2, widths=(4, 8, 6, 8)))
    with pytest.raises(ValueError, match=r'\[4, 4, 6, 8\] and the teacher \[4, 8, 6, 8\]; use a pair such as'):
        fsp.make().init(None, setup)


def test_the_first_phase_moves_all_but_the_tail_at_a_constant_rate():
    def init(key, shape):
        del key, shape
        layers = {name: {'kernel': jnp.zeros(1)} for name in ('conv1', 'layer1.0.conv1', 'fc')}
        return {'params': {**layers, 'bn1': {'scale': jnp.zeros(1)}, 'last_norm': {'scale': jnp.zeros(1)}}}

    student = Network('tiny', init, lambda *_: None, tail=('fc/*', 'last_norm/*'))
    main = Optimiser(optax.trace(0.9), lambda epoch: 0.05 / (1 + epoch))
    first, second = fsp.make().phases(240, main, student)

    assert (first.epochs, first.record, second.epochs, second.record) == (30, False, 240, True)
    (update,) = first.updates
    assert sorted(update.moves) == ['student/bn1/scale', 'student/conv1/kernel', 'student/layer1.0.conv1/kernel']
    assert matches('student/bn1/mean', first.train_mode) and not matches('student/last_norm/mean', first.train_mode)
    assert update.weights == Weights(0.0, 0.0, 1.0)
    assert [first.optimisers['fsp'].lr(epoch) for epoch in (0, 29)] == [0.05, 0.05]
    assert second.updates[0].weights is None and second.optimisers['main'] is main
    assert fsp.WEIGHTS == Weights(1.0, 0.0, 0.0)


def test_a_short_run_still_has_a_first_phase():
    student = Network('tiny', lambda key, shape: {'params': {'conv': jnp.zeros(1)}}, lambda *_: None)
    first, _ = fsp.make().phases(2, Optimiser(optax.trace(0.9), lambda epoch: 0.05), student)
    assert first.epochs == 1
    with pytest.raises(ValueError, match='init_fraction is 0'):
        fsp.make(init_fraction=0)
