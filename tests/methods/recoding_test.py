"""Sparse recoding against reference values and NumPy loops, and in optax chains."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax.methods import _recoding as recoding
from kcd_jax.training import optim, step

KINDS = ('recode', 'drop', 'penalise')
SHAPE = (3, 4)


def test_penalty_matches_the_reference(golden):
    ref = golden('ref')
    found = recoding.penalty(jnp.asarray(ref['kr/g'], jnp.float32), float(ref['kr/eps']))
    np.testing.assert_allclose(found, ref['kr/penalty_terms'], rtol=1e-6)


def test_the_gradient_of_the_penalty_is_what_penalise_uses():
    """d Phi_0 / d g = m (1 + 2 |g|) sign(g) / epsilon, by differences that do not cross the threshold."""
    g = np.array([-0.5, -0.1, -0.02, 0.01, 0.06, 0.2, 1.0])
    slope = jax.grad(lambda g: jnp.sum(recoding.penalty(g, 0.05)))(jnp.asarray(g, jnp.float32))

    def phi(g):
        return np.where(np.abs(g) >= 0.05, (np.abs(g) + g**2) / 0.05, 0.0)

    np.testing.assert_allclose(slope, (phi(g + 1e-6) - phi(g - 1e-6)) / 2e-6, rtol=1e-4)


# ----------------------------------------------------------------------------------- a NumPy loop of the transformation


def slow_quantile(sizes, share):
    """The octave below the largest entry that enough entries reach, then the highest such sixteenth of it."""
    active = [size for size in sizes if size > 0.0]
    if not active:
        return 0.0
    needed = max(math.ceil(share * len(active)), 1)
    octave = next(max(active) / 2**o for o in range(32) if sum(s >= max(active) / 2**o for s in active) >= needed)
    return max(octave * (1 + n / 16) for n in range(16) if sum(s >= octave * (1 + n / 16) for s in active) >= needed)


def slow(kind, weights, gradients, strength, floor, rate, hessian):
    """The updates of one tensor for a list of gradients, entry by entry, in float64, and the thresholds in use."""
    rho, scale, updates, used = None, None, [], []
    low, high = 1e-8, 1.0
    for number, gradient in enumerate(gradients):

        def reached_by(share, gradient=gradient):
            return slow_quantile([abs(float(g)) for g in gradient.flat], share)

        if number == 0:
            epsilon = min(np.mean(np.abs(weights)), reached_by(0.5))
            epsilon = min(max(epsilon, low), high)
            rho, scale = math.log(math.expm1(epsilon)), strength * epsilon
        epsilon = max(min(math.log1p(math.exp(rho)), high, reached_by(floor)), low)
        update = np.array(gradient, float)
        slopes = np.zeros(gradient.shape)
        total = 0.0
        for place, g in np.ndenumerate(gradient):
            if abs(g) >= epsilon:
                total += (abs(g) + g * g) / epsilon
                update[place] = g * (1 + min(scale * (1 + abs(g)) / epsilon, 9.0))
                slopes[place] = scale * (1 + 2 * abs(g)) * math.copysign(1.0, g) / epsilon / gradient.size
            elif kind == 'drop':
                update[place] = 0.0
        if kind == 'penalise':
            update = gradient + (hessian @ slopes.ravel()).reshape(gradient.shape)
        updates.append(update)
        used.append(epsilon)
        rho += rate * scale * total / gradient.size / epsilon / (1 + math.exp(-rho))
        rho = min(max(rho, math.log(math.expm1(low))), math.log(math.expm1(high)))
    return updates, used


def make(kind, **settings):
    if kind == 'penalise':
        return recoding.penalise(**settings)
    return recoding.recode(drop=kind == 'drop', **settings)


@pytest.mark.parametrize('kind', KINDS)
def test_a_transformation_matches_a_numpy_loop(kind):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=SHAPE).astype(np.float32)
    # Magnitudes over several decades, some entries 0, and one tensor that has no gradient at first.
    gradients = [
        (10.0 ** rng.uniform(-4, 0.5, SHAPE) * rng.choice([-1, 0, 1], SHAPE, p=[0.4, 0.2, 0.4])).astype(np.float32)
        for _ in range(6)
    ]
    late = [np.zeros(SHAPE, np.float32), *gradients[1:]]
    hessian = rng.normal(size=(12, 12)).astype(np.float32)
    settings = {'strength': 0.7, 'floor': 0.25, 'threshold_lr': 30.0}
    transform = make(kind, **settings)

    def hvp(tree):
        return jax.tree.map(lambda v: (jnp.asarray(hessian) @ v.reshape(-1)).reshape(SHAPE), tree)

    params = {'a': jnp.asarray(weights), 'b': {'c': jnp.asarray(weights)}}
    state = transform.init(params)
    update = jax.jit(lambda grads, state: optax.with_extra_args_support(transform).update(grads, state, hvp=hvp))
    found = []
    for one, other in zip(gradients, late, strict=True):
        updates, state = update({'a': one, 'b': {'c': other}}, state)
        found.append(updates)
    for pick, given_gradients in ((lambda t: t['a'], gradients), (lambda t: t['b']['c'], late)):
        expected, used = slow(kind, weights, given_gradients, 0.7, 0.25, 30.0, hessian)
        assert len(set(used)) > 3  # the threshold did move
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(pick(got), wanted, rtol=2e-4, atol=1e-7)  # float32 against float64


def test_the_threshold_starts_at_the_mean_weight_or_the_median_gradient_whichever_is_smaller():
    g = jnp.asarray([0.0, 0.0, 0.4, -0.1, 0.2])  # the median of the entries that are not 0 is 0.2
    transform = recoding.recode(strength=0.3)
    for weights, wanted in (([3.0, -3.0], 0.2), ([0.1, -0.02], 0.06), ([0.0, 0.0], 0.2)):
        _, state = transform.update([g], transform.init([jnp.asarray(weights)]))
        np.testing.assert_allclose(state.scale, [0.3 * wanted], rtol=1e-6)
        assert wanted <= jax.nn.softplus(state.rho)[0] < 1.01 * wanted  # it has learned once


magnitudes = st.floats(0.0, 2.0**100, width=32, allow_subnormal=False)
tensors = st.lists(st.tuples(magnitudes, st.booleans()), min_size=12, max_size=12)


@given(st.lists(tensors, min_size=1, max_size=6), st.sampled_from([0.0, 0.3, 100.0]), st.sampled_from([0.0, 1e6]))
def test_the_threshold_stays_in_its_bounds_for_any_gradients(sequence, strength, rate):
    rho, scale = recoding.inverse_softplus(jnp.full(1, 0.3)), jnp.zeros(1)
    for number, entries in enumerate(sequence):
        g = jnp.asarray([[size if positive else -size for size, positive in entries]], jnp.float32)
        epsilon, new_rho, scale, factor = ADVANCE(rho, scale, g, number == 0, strength, rate)
        epsilon, size = np.asarray(epsilon)[0], np.abs(np.asarray(g))[0]
        active = size[size > 0]
        assert np.float32(recoding.EPSILON_MIN) <= epsilon <= np.float32(recoding.EPSILON_MAX)
        if len(active) and active.min() > 2 * recoding.EPSILON_MIN:
            assert np.sum(active >= epsilon) >= FLOOR * len(active)
        assert np.isfinite(new_rho).all()
        if number > 0:
            assert new_rho >= rho - 1e-5  # the penalty only raises it
        assert np.all((factor >= 1.0) & (factor <= 1.0 + recoding.BOOST_MAX))
        rho = new_rho


FLOOR = 0.1


@jax.jit
def ADVANCE(rho, scale, gradient, first, strength, rate):
    quantile = recoding.upper_quantile(jnp.abs(gradient), jnp.where(first, 0.5, FLOOR))
    started = recoding.start(rho, quantile, strength)
    rho, scale = jnp.where(first, started[0], rho), jnp.where(first, started[1], scale)
    epsilon = recoding.in_use(rho, quantile)
    mean = jnp.mean(recoding.penalty(gradient, epsilon[:, None]), axis=1)
    following = recoding.learn(rho, scale, epsilon, mean, rate)
    return epsilon, following, scale, recoding.boost(gradient, epsilon[:, None], scale[:, None])


spread = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**9, width=32))


@given(st.lists(st.lists(spread, min_size=9, max_size=9), min_size=2, max_size=2), st.sampled_from([0.1, 0.5, 1.0]))
def test_the_quantile_is_within_a_sixteenth_of_that_of_a_sort_and_never_above(rows, share):
    for row, found in zip(rows, np.asarray(QUANTILE(jnp.asarray(rows, jnp.float32), share)), strict=True):
        active = np.sort(np.float32([entry for entry in row if entry > 0.0]))[::-1]
        exact = active[math.ceil(np.float32(share) * np.float32(len(active))) - 1] if len(active) else 0.0
        assert exact / (1 + 1 / 16) <= found * 1.000001 and found <= exact


QUANTILE = jax.jit(recoding.upper_quantile)


@given(st.floats(1e-8, 1.0))
def test_inverse_softplus_inverts_softplus(epsilon):
    # rho is up to 18.4 in size, so that its last bit is worth 1e-6 of a small threshold.
    np.testing.assert_allclose(jax.nn.softplus(recoding.inverse_softplus(jnp.float32(epsilon))), epsilon, rtol=3e-6)


# ----------------------------------------------------------------------------------------------------------- in a chain


def test_zero_strength_does_not_recode():
    params = {'w': jnp.arange(6.0)}
    grads = {'w': jnp.asarray([0.0, 1e-4, -2.0, 0.5, -1e-9, 3.0])}
    transform = recoding.recode(strength=0.0)
    updates, _ = transform.update(grads, transform.init(params))
    np.testing.assert_array_equal(updates['w'], grads['w'])


def test_it_works_in_a_chain_of_optax():
    """Descent on a quadratic in one compiled step, traced once; dominant entries converge first."""
    target = jnp.asarray([1.0, 1.0, 1.0, 0.01, 0.01, 0.01])

    def descend(optimiser):
        traces = []

        @jax.jit
        def update(params, state):
            traces.append(1)
            grads = jax.grad(lambda w: 0.5 * jnp.sum((w - target) ** 2))(params)
            updates, state = optimiser.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = jnp.zeros(6)
        state = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), optimiser.init(params))
        for _ in range(5):
            params, state = update(params, state)
        assert len(traces) == 1
        return params

    plain = descend(optax.sgd(0.1))
    recoded = descend(optax.chain(recoding.recode(), optax.sgd(0.1)))
    dropped = descend(optax.chain(recoding.recode(drop=True), optax.sgd(0.1)))
    assert np.all(recoded[:3] > plain[:3]) and np.all(recoded[3:] >= plain[3:])
    np.testing.assert_array_equal(dropped[3:], 0.0)  # below the median of the first gradient, and never above it


def test_penalise_adds_the_gradient_of_the_penalty():
    """Eq. 10 as written, against the gradient of the whole objective on a quartic."""
    w = jnp.asarray([0.9, -0.8, 0.1])

    def loss(w):
        return jnp.sum(w**4) / 4

    def hvp(v):
        return step.hessian_vector_product(loss, w, v)

    np.testing.assert_allclose(hvp(jnp.asarray([1.0, 2.0, 3.0])), 3 * w**2 * jnp.asarray([1.0, 2.0, 3.0]), rtol=1e-6)
    grads, transform = jax.grad(loss)(w), recoding.penalise(strength=1.0)
    updates, state = transform.update(grads, transform.init(w), w, hvp=hvp)
    epsilon = scale = state.scale[0]
    assert 0.8**3 / (1 + 1 / 16) <= scale <= 0.8**3  # the median |g|, to a sixteenth; below the mean |w|

    def whole(w):
        return loss(w) + scale * jnp.mean(recoding.penalty(jax.grad(loss)(w), epsilon))

    np.testing.assert_allclose(updates, jax.grad(whole)(w), rtol=1e-5)
    assert np.all(jnp.sign(updates) == jnp.sign(grads)) and np.all(jnp.abs(updates) >= jnp.abs(grads))


def test_l1_and_l2_add_their_gradients():
    w, g = jnp.asarray([2.0, -1.0, 0.0]), jnp.asarray([0.1, 0.2, 0.3])
    for transform, wanted in (
        (recoding.l1(0.5), [0.6, -0.3, 0.3]),
        (recoding.l2(0.5), [2.1, -0.8, 0.3]),
    ):
        np.testing.assert_allclose(transform.update(g, transform.init(w), w)[0], wanted, rtol=1e-6)


def test_bfloat16_gradients_keep_their_dtype_and_the_state_its_own():
    params = {'w': jnp.ones(4, jnp.bfloat16)}
    transform = recoding.recode()
    updates, state = transform.update({'w': jnp.ones(4, jnp.bfloat16)}, transform.init(params))
    assert updates['w'].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('int32'), jnp.dtype('float32')}


def test_it_chains_with_optimisers_that_ignore_hvp():
    params, grads = {'w': jnp.ones(3)}, {'w': jnp.asarray([1.0, 0.1, 0.0])}
    for transform in (optim.sgd(), optax.chain(recoding.recode(), optim.sgd())):
        moved, _ = optim.apply(transform, jnp.float32(0.1), grads, transform.init(params), params, hvp=None)
        assert np.all(moved['w'][:2] < 1.0)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'floor': 0.0}, 'floor is 0.0; use a fraction'),
        ({'floor': 1.5}, 'floor is 1.5; use a fraction'),
        ({'strength': -1.0}, 'strength is -1.0; use a finite number of 0 or more'),
        ({'threshold_lr': math.inf}, 'threshold_lr is inf; use'),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        recoding.recode(**settings)


def test_penalise_without_hvp_is_refused():
    transform = recoding.penalise()
    with pytest.raises(ValueError, match=r'penalise needs second derivatives: call update\(\.\.\., hvp=function\)'):
        transform.update(jnp.ones(2), transform.init(jnp.ones(2)))
