"""The optimisers against float64 loops of PyTorch's definitions, and the schedules at their drops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.training import optim
from kcd_jax.training.recipe import Optim

SHAPES = {'kernel': (3, 4), 'bias': (4,), 'scale': ()}


def draw(seed: int, steps: int) -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return params, [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)]


def run(transform, params, grads, lr):
    to_jax = lambda tree: {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}  # noqa: E731
    params = to_jax(params)
    state = transform.init(params)
    step = jax.jit(lambda g, s, p: optim.apply(transform, jnp.float32(lr), g, s, p))
    for grad in grads:
        params, state = step(to_jax(grad), state, params)
    return params, state


def slow_sgd(params, grads, lr, momentum, weight_decay, nesterov):
    """torch.optim.SGD, from its documentation."""
    params, buffers = dict(params), {}
    for grad in grads:
        for name, w in params.items():
            g = grad[name] + weight_decay * w
            buffers[name] = g if name not in buffers else momentum * buffers[name] + g
            params[name] = w - lr * (g + momentum * buffers[name] if nesterov else buffers[name])
    return params


def slow_adam(params, grads, lr, b1, b2, eps, weight_decay):
    """torch.optim.Adam, from its documentation."""
    params = dict(params)
    m, v = ({name: np.zeros_like(w) for name, w in params.items()} for _ in range(2))
    for t, grad in enumerate(grads, start=1):
        for name, w in params.items():
            g = grad[name] + weight_decay * w
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g * g
            params[name] = w - lr * (m[name] / (1 - b1**t)) / (np.sqrt(v[name] / (1 - b2**t)) + eps)
    return params


def slow_adamw(params, grads, lr, b1, b2, eps, weight_decay):
    """torch.optim.AdamW, from its documentation: a step first shrinks the weights."""
    params = dict(params)
    m, v = ({name: np.zeros_like(w) for name, w in params.items()} for _ in range(2))
    for t, grad in enumerate(grads, start=1):
        for name, w in params.items():
            m[name] = b1 * m[name] + (1 - b1) * grad[name]
            v[name] = b2 * v[name] + (1 - b2) * grad[name] ** 2
            step = (m[name] / (1 - b1**t)) / (np.sqrt(v[name] / (1 - b2**t)) + eps)
            params[name] = w - lr * weight_decay * w - lr * step
    return params


def slow_rmsprop(params, grads, lr, momentum, b2, eps, weight_decay):
    """torch.optim.RMSprop, from its documentation."""
    params = dict(params)
    v, buffers = ({name: np.zeros_like(w) for name, w in params.items()} for _ in range(2))
    for grad in grads:
        for name, w in params.items():
            g = grad[name] + weight_decay * w
            v[name] = b2 * v[name] + (1 - b2) * g * g
            buffers[name] = momentum * buffers[name] + g / (np.sqrt(v[name]) + eps)
            params[name] = w - lr * buffers[name]
    return params


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('weight_decay', [0.0, 5e-4, 0.3])
def test_sgd_matches_pytorch(nesterov, weight_decay):
    params, grads = draw(0, 7)
    found, _ = run(optim.sgd(0.9, weight_decay, nesterov), params, grads, 0.05)
    wanted = slow_sgd(params, grads, 0.05, 0.9, weight_decay, nesterov)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=2e-6)  # seven float32 steps


def test_the_first_momentum_is_the_gradient():
    params, grads = draw(1, 1)
    found, _ = run(optim.sgd(0.9), params, grads, 1.0)
    np.testing.assert_allclose(found['bias'], params['bias'] - grads[0]['bias'], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_adam_matches_pytorch(weight_decay):
    params, grads = draw(2, 7)
    found, state = run(optim.adam(weight_decay=weight_decay), params, grads, 0.01)
    wanted = slow_adam(params, grads, 0.01, 0.9, 0.999, 1e-8, weight_decay)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=5e-6, atol=5e-6)
    assert int(state[1].count) == 7


@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
def test_adamw_matches_pytorch(weight_decay):
    params, grads = draw(3, 7)
    found, _ = run(optim.adamw(weight_decay=weight_decay), params, grads, 0.01)
    wanted = slow_adamw(params, grads, 0.01, 0.9, 0.999, 1e-8, weight_decay)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_rmsprop_matches_pytorch(momentum):
    params, grads = draw(4, 7)
    found, _ = run(optim.rmsprop(momentum, weight_decay=0.1), params, grads, 0.01)
    wanted = slow_rmsprop(params, grads, 0.01, momentum, 0.99, 1e-8, 0.1)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5)  # divides by small roots


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw', 'rmsprop'])
def test_decay_of_kernels_spares_biases_and_scales(name):
    params, _ = draw(5, 0)
    still = [{key: np.zeros_like(value) for key, value in params.items()}]
    found, _ = run(Optim(name=name, weight_decay=0.5, decay='kernels').optimiser(1).transform, params, still, 1e-4)
    every, _ = run(Optim(name=name, weight_decay=0.5).optimiser(1).transform, params, still, 1e-4)
    for key, value in params.items():
        assert np.all(np.abs(every[key]) < np.abs(value))
        if key == 'kernel':
            np.testing.assert_array_equal(found[key], every[key])
        else:
            np.testing.assert_array_equal(found[key], np.float32(value))


def test_the_gradient_is_clipped_by_its_global_norm_before_weight_decay():
    params, grads = draw(6, 1)
    norm = np.sqrt(sum(np.sum(grad**2) for grad in grads[0].values()))
    for bound in (norm / 2, norm * 2):
        found, _ = run(Optim(weight_decay=0.1, clip=float(bound)).optimiser(1).transform, params, grads, 0.05)
        clipped = [{name: grad * min(1.0, bound / norm) for name, grad in grads[0].items()}]
        for name, value in slow_sgd(params, clipped, 0.05, 0.9, 0.1, False).items():
            np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    'transform',
    [
        optim.sgd(0.9, 5e-4),
        optim.sgd(0.9, 5e-4, True),
        optim.adam(),
        optim.adamw(weight_decay=0.1, decayed=optim.kernels),
        optim.rmsprop(0.9),
        Optim(name='adamw', clip=1.0).optimiser(1).transform,
    ],
)
def test_the_state_keeps_its_types_and_compiles_once(transform):
    params = {name: jnp.ones(shape, jnp.float32) for name, shape in SHAPES.items()}
    state = transform.init(params)
    traces = []

    @jax.jit
    def step(grads, state, params, lr):
        traces.append(1)
        return optim.apply(transform, lr, grads, state, params)

    types = [(x.dtype, x.weak_type) for x in jax.tree.leaves(state)]
    for lr in (0.1, 0.01):
        params, state = step(params, state, params, jnp.float32(lr))
        assert [(x.dtype, x.weak_type) for x in jax.tree.leaves(state)] == types
    assert len(traces) == 1


def test_the_moving_average_is_warmed_up():
    values = np.random.default_rng(7).normal(size=(40, 3))
    average, wanted = {'w': jnp.zeros(3), 'seen': jnp.int32(0)}, np.zeros(3)
    for step, value in enumerate(values):
        now = {'w': jnp.asarray(value, jnp.float32), 'seen': jnp.int32(step)}
        average = optim.moving_average(average, now, jnp.int32(step), 0.7)
        decay = min(0.7, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * value
        np.testing.assert_allclose(average['w'], wanted, rtol=1e-5, atol=1e-6)
    assert int(average['seen']) == 39  # counts are not averaged
    still = optim.moving_average(now, now, jnp.int32(5), 0.7)
    np.testing.assert_array_equal(still['w'], now['w'])  # bit for bit: constants stay what they are


def test_the_papers_rate_drops_at_the_151st_epoch():
    rate = Optim(lr=0.05).optimiser(240).lr
    assert [rate(epoch) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)] == pytest.approx(
        [0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5]
    )


def test_drops_scale_with_the_epochs():
    rate = Optim(lr=1.0).optimiser(24).lr
    assert [epoch for epoch in range(1, 24) if rate(epoch) < rate(epoch - 1)] == [15, 18, 21]


def test_other_rates():
    assert {optim.constant(0.1)(epoch) for epoch in (0, 5, 500)} == {0.1}
    cosine = optim.cosine(0.2, 10, final=0.1)
    assert [cosine(epoch) for epoch in (0, 5, 10, 20)] == pytest.approx([0.2, 0.15, 0.1, 0.1])
    warm = optim.warmup(optim.constant(0.3), 2)
    assert [warm(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_adam_without_a_first_moment():
    """PyTorch allows b1 = 0: the update is the gradient over the root of the second moment."""
    transform = optim.adam(b1=0.0)
    params = {'w': jnp.ones(3)}
    grads, state = {'w': jnp.array([0.5, -2.0, 0.0])}, transform.init(params)
    for _ in range(2):
        updates, state = transform.update(grads, state, params)
        np.testing.assert_allclose(updates['w'], [1.0, -1.0, 0.0], rtol=1e-5)
