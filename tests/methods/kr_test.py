"""KR has no public code: layer matching is compared with written-out pairs, the terms with NumPy loops in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcd_jax import methods, networks
from kcd_jax.contracts import Network, Optimiser, Weights
from kcd_jax.methods import _recoding as recoding
from kcd_jax.methods import kdgan, kr
from kcd_jax.training import optim


def heights(stages, convs):
    """Of the taps of a network with a stem and `convs` convolutions in each stage."""
    return [stages[0]] + [size for size in stages for _ in range(convs)]


# ------------------------------------------------------------------------------------------------------- layer matching


def test_pairs_of_resnet26_and_resnet8_are_the_papers_figure():
    """24 convolutions make 8 groups of 3; in each later size two of three groups have two layers."""
    found = kr.pair_layers(heights((32, 16, 8), 2), heights((32, 16, 8), 8), 3)
    assert [(p.entrance, p.exit, p.student) for p in found] == [
        (0, 3, 1), (3, 6, 2), (9, 12, 3), (12, 15, 4), (18, 21, 5), (21, 24, 6),
    ]  # fmt: skip


def test_resnet14_learns_from_each_of_resnet32s_ten_groups():
    found = kr.pair_layers(heights((32, 16, 8), 4), heights((32, 16, 8), 10), 3)
    assert [p.exit for p in found] == list(range(3, 31, 3))
    assert [p.student for p in found] == [2, 3, 4, 6, 7, 8, 9, 10, 11, 12]


def test_groups_of_four_on_resnet101():
    """99 convolutions: 24 groups of four and one of three."""
    teacher = [112] + [56] * 9 + [28] * 12 + [14] * 69 + [7] * 9
    found = kr.pair_layers([112] + [56] * 4 + [28] * 4 + [14] * 4 + [7] * 4, teacher, 4)
    assert (found[-1].entrance, found[-1].exit, found[-1].student) == (96, 99, 16)
    assert all(teacher[p.exit] == ([112] + [56] * 4 + [28] * 4 + [14] * 4 + [7] * 4)[p.student] for p in found)


def test_networks_without_a_common_size_are_matched_by_depth():
    assert [(p.exit, p.student) for p in kr.pair_layers([7, 7, 3], [8, 8, 4, 4, 2], 1)] == [(2, 1), (4, 2)]


@given(st.integers(1, 12), st.integers(1, 12))
def test_layers_are_matched_by_depth(few, many):
    pairs = kr.match(list(range(few)), list(range(many)))
    assert len(pairs) == min(few, many) and pairs[-1] == (few - 1, many - 1)
    for side, size in zip(zip(*pairs, strict=True), (few, many), strict=True):
        assert list(side) == sorted(set(side)) and 0 <= side[0] and side[-1] < size


def test_the_measure_is_the_deviation_of_the_groups_kernels():
    network = networks.get('resnet14')(5)
    variables = network.init(jax.random.key(0), (8, 8, 3))
    kernels = [variables['params'][f'layer1.{b}'][f'conv{c}']['kernel'] for b, c in ((0, 2), (1, 1), (1, 2))]
    wanted = np.std(np.concatenate([np.asarray(k).ravel() for k in kernels]).astype(float))
    np.testing.assert_allclose(kr.deviation(network, variables, kr.Pair(1, 4, 1)), wanted, rtol=1e-5)
    nameless = Network('plain', network.init, network.apply)
    everything = [leaf for leaf in jax.tree.leaves(variables['params']) if leaf.ndim == 4]
    wanted = np.std(np.concatenate([np.asarray(k).ravel() for k in everything]).astype(float))
    np.testing.assert_allclose(kr.deviation(nameless, variables, kr.Pair(1, 4, 1)), wanted, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- terms


def slow_norm(x, scale, bias):
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def slow_conv(x, kernel, stride):
    """Padded by kernel // 2, a loop over output pixels."""
    pad = kernel.shape[0] // 2
    rows, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = np.zeros((rows, -(-height // stride), -(-width // stride), kernel.shape[-1]))
    for y in range(out.shape[1]):
        for z in range(out.shape[2]):
            window = padded[:, y * stride : y * stride + kernel.shape[0], z * stride : z * stride + kernel.shape[1]]
            out[:, y, z] = np.einsum('bhwi,hwio->bo', window, kernel)
    return out


def slow_unit(unit, entrance, size):
    x = slow_conv(entrance, unit['conv']['kernel'], entrance.shape[1] // size)
    return np.maximum(slow_norm(x, unit['norm']['scale'], unit['norm']['bias']), 0.0)


def slow_transport(unit, entrance, target, measure):
    """gamma = 1: the mean over rows of mu * ||F - F~|| / sqrt(numel)."""
    approximation = slow_unit(unit, entrance, target.shape[1])
    return np.mean(
        [measure * np.sqrt(np.sum((f - a) ** 2) / f.size) for f, a in zip(target, approximation, strict=True)]
    )


def slow_prior(bridge, student, target):
    """The mean over rows of mean((R(F_s) - F~)^2), the student's map twice as large as the teacher's."""
    rows, height, width, channels = student.shape
    pooled = student.reshape(rows, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    mapped = slow_norm(slow_conv(pooled, bridge['conv']['kernel'], 1), bridge['norm']['scale'], bridge['norm']['bias'])
    return np.mean([np.mean((r - f) ** 2) for r, f in zip(mapped, target, strict=True)])


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, float), tree)


def check_value_and_gradient(fast, slow, variables, rtol=2e-3):
    """`fast` (jax, f32) and its gradient against `slow` (NumPy, f64) and its differences along random directions."""
    value, grads = jax.jit(jax.value_and_grad(fast))(variables)
    wide = in_float64(variables)
    np.testing.assert_allclose(value, slow(wide), rtol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), wide)
        ahead, behind = (
            slow(jax.tree.map(lambda x, d, step=step: x + step * d, wide, direction)) for step in (1e-5, -1e-5)
        )
        slope = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=rtol)


def test_the_transport_term_and_its_gradient_match_a_numpy_loop():
    rng = np.random.default_rng(1)
    entrance, target = rng.normal(size=(3, 6, 6, 2)), np.maximum(rng.normal(size=(3, 3, 3, 4)), 0.0)
    unit = kr.unit_init(jax.random.key(0), (3, 6, 6, 2), (3, 3, 3, 4))
    unit['norm']['bias'] = jnp.asarray(rng.normal(size=4), jnp.float32)

    def fast(unit):
        approximation = kr.aggregated(unit, jnp.asarray(entrance, jnp.float32), 3)
        return jnp.mean(0.3 * kr.distance(jnp.asarray(target, jnp.float32), approximation))

    check_value_and_gradient(fast, lambda unit: slow_transport(unit, entrance, target, 0.3), unit)


def test_the_prior_term_and_its_gradient_match_a_numpy_loop():
    rng = np.random.default_rng(2)
    # Off zero, where the student's ReLU has its corner; a difference must not cross it.
    student = np.abs(rng.normal(size=(3, 4, 4, 2))) + 0.1
    target = np.maximum(rng.normal(size=(3, 2, 2, 3)), 0.0)
    variables = {
        'bridge': kr.bridge_init(jax.random.key(0), (3, 4, 4, 2), (3, 2, 2, 3)),
        'student': jnp.asarray(student, jnp.float32),
    }

    def fast(v):
        return jnp.mean(kr.imitation(v['bridge'], v['student'], jnp.asarray(target, jnp.float32)))

    check_value_and_gradient(fast, lambda v: slow_prior(v['bridge'], v['student'], target), variables)


def test_a_perfect_unit_and_a_perfect_student_cost_nothing():
    target = jnp.asarray(np.random.default_rng(0).random((2, 3, 3, 4)), jnp.float32)
    assert kr.distance(target, target).max() <= 1.1e-6  # the 1e-12 under the root
    np.testing.assert_array_equal(kr.imitation({}, target, target), 0.0)
    grad = jax.grad(lambda x: jnp.sum(kr.distance(target, x)))(target)
    assert np.all(np.isfinite(grad))


# ---------------------------------------------------------------------------------------------------- updates of a step


@pytest.fixture
def case(make_outputs, make_setup, make_batch, clock):
    """(method, params, state, loss(update, params, student) -> f32[]) of a pair that needs ID layers."""

    def build(**keywords):
        method = kr.make(**keywords)
        views = method.num_views
        student = make_outputs(4 * views, widths=(3, 3, 5, 8), seed=1)
        teacher, batch = make_outputs(4 * views, seed=2), make_batch(4, views=views)
        setup = make_setup(make_outputs(4, widths=(3, 3, 5, 8), seed=1), make_outputs(4, seed=2))
        params, state = method.init(jax.random.key(0), setup)

        def loss(update, params, student):
            out = update.loss(params, state, student, teacher, batch, clock(), jax.random.key(1))
            return jnp.mean(out.extra)

        return method, params, state, loss, student

    return build


def moved(loss, update, params, student):
    """Which parts of the method's parameters, and whether the student, have a gradient."""
    grads, outputs = jax.jit(jax.grad(lambda p, s: loss(update, p, s), argnums=(0, 1)))(params, student)
    parts = {name for name, tree in grads.items() if any(np.any(np.asarray(g)) for g in jax.tree.leaves(tree))}
    return parts, any(np.any(np.asarray(g)) for g in jax.tree.leaves(outputs))


MAIN = Optimiser(optim.sgd(0.9, 1e-5), lambda epoch: 0.1 / (1 + epoch))


def test_each_update_moves_only_its_parameters(case):
    """The update of Eq. 9 therefore splits into one of the student and one of the units."""
    method, params, _, loss, student = case(posterior='nst')
    (phase,) = method.phases(5, MAIN, None)
    posterior, units, prior = phase.updates
    assert [update.label for update in phase.updates] == ['main', 'units', 'prior']
    assert [update.keep for update in phase.updates] == [True, False, False]
    assert posterior.weights is None and units.weights == prior.weights == Weights(0.0, 0.0, 1.0)
    assert set(params['bridges']) == {'00', '01'}  # the third pair of maps has equal shapes
    assert moved(loss, posterior, params, student) == (set(), True)
    assert moved(loss, units, params, student) == ({'units'}, False)
    assert moved(loss, prior, params, student) == ({'bridges'}, True)
    assert (units.moves, prior.moves) == (('method/units/*',), ('student/*', 'method/bridges/*'))


def test_the_rates_of_both_optimisers_drop_together(case):
    (phase,) = kr.make(prior_lr=0.05).phases(5, MAIN, None)
    for epoch in range(3):
        assert phase.optimisers['units'].lr(epoch) == phase.optimisers['main'].lr(epoch) == MAIN.lr(epoch)
        np.testing.assert_allclose(phase.optimisers['prior'].lr(epoch), 0.05 * MAIN.lr(epoch))


@pytest.mark.parametrize('sparse', kr.SPARSE)
def test_sparse_selects_the_transformation_of_the_prior(sparse):
    (phase,) = kr.make(sparse=sparse).phases(5, MAIN, None)
    params = {'w': jnp.asarray([1.0, -2.0, 3.0])}
    grads = {'w': jnp.asarray([0.5, 0.001, -0.2])}
    transform = phase.optimisers['prior'].transform

    def update(transform):
        transform = optax.with_extra_args_support(transform)
        return transform.update(grads, transform.init(params), params, hvp=lambda tree: tree)[0]['w']

    wanted = {
        'recode': recoding.recode, 'drop': lambda: recoding.recode(drop=True), 'penalty': recoding.penalise,
        'l1': lambda: recoding.l1(1e-4), 'l2': lambda: recoding.l2(1e-4), 'none': optax.identity,
    }[sparse]()  # fmt: skip
    np.testing.assert_array_equal(update(transform), update(optax.chain(wanted, MAIN.transform)))
    assert np.any(update(transform) != update(MAIN.transform)) == (sparse != 'none')


@pytest.mark.parametrize(('mu', 'factor'), [('one', lambda f, a: 1.0), ('residual', lambda f, a: np.std(f - a))])
def test_residual_and_constant_measures(case, make_outputs, mu, factor):
    method, params, _, loss, student = case(mu=mu, transport=2.0)
    units = method.phases(5, MAIN, None)[0].updates[1]
    teacher, wanted = make_outputs(4, seed=2), 0.0
    for name, unit in params['units'].items():
        entrance, target = (np.asarray(teacher.feats[int(name) + n], float) for n in (0, 1))
        measure = factor(target, slow_unit(in_float64(unit), entrance, target.shape[1]))
        wanted += 2.0 * slow_transport(in_float64(unit), entrance, target, measure)
    np.testing.assert_allclose(loss(units, params, student), wanted, rtol=1e-5)


def test_updates_and_phases_of_the_posterior_are_kept(case):
    phase, *others = kr.make(posterior='kdgan').phases(5, MAIN, None)
    assert not others and [update.label for update in phase.updates] == ['discriminator', 'main', 'units', 'prior']
    assert phase.updates[0].moves == ('method/posterior/discriminator/*',)
    student = networks.get('resnet8')(5)
    before, main = kr.make(posterior='fsp').phases(5, MAIN, student)
    assert [update.label for update in before.updates] == ['fsp'] and not before.record
    assert [update.label for update in main.updates] == ['main', 'units', 'prior']


def test_posterior_equals_that_method_bit_for_bit(case, make_outputs, make_batch, clock):
    _, params, state, _, student = case(posterior='kdgan')
    method = kr.make(posterior='kdgan')
    ours = method.phases(5, MAIN, None)[0].updates[1]
    given = (student, make_outputs(4, seed=2), make_batch(4), clock(), jax.random.key(1))
    theirs = kdgan.make().loss(params['posterior'], state['posterior'], *given)
    np.testing.assert_array_equal(ours.loss(params, state, *given).extra, theirs.extra)


def test_only_the_first_view_of_a_point_is_used(case):
    method, params, _, loss, student = case(posterior='sskd')
    assert method.num_views == methods.get('sskd').make().num_views > 1
    prior = next(u for phase in method.phases(5, MAIN, None) for u in phase.updates if u.label == 'prior')
    grads = jax.jit(jax.grad(lambda s: loss(prior, params, s)))(student).feats[1]
    assert np.any(grads[:: method.num_views]) and not np.any(grads[1 :: method.num_views])


def test_weights_come_from_the_posterior():
    assert methods.weights({'name': 'kr', 'posterior': 'nst'}, {})['beta'] == 50.0
    of_pair = {'reviewkd': {'beta': 0.6}}
    assert methods.weights({'name': 'kr', 'posterior': 'reviewkd'}, of_pair)['beta'] == 0.6
    assert methods.weights({'name': 'at'}, of_pair)['beta'] == 1000.0


@pytest.mark.parametrize(
    ('keywords', 'says'),
    [
        ({'aggregate': 0}, 'aggregate is 0; use an integer from 1 to 1,000'),
        ({'mu': 'variance'}, "mu is 'variance'; use one of kernels, residual, one"),
        ({'sparse': 'record'}, "sparse is 'record'; use one of recode, drop"),
        ({'prior_lr': 0.0}, 'prior_lr is 0.0; use a number above 0'),
        ({'posterior': 'kr'}, 'posterior is kr itself'),
        ({'posterior': 'nts'}, r"unknown method 'nts' \(did you mean 'nst'\?\)"),
        ({'decay': -1.0, 'sparse': 'l2'}, 'decay is -1.0'),
        ({'floor': 2.0}, 'floor is 2.0'),
    ],
)
def test_bad_keywords_are_refused_in_one_line(keywords, says):
    with pytest.raises(ValueError, match=says):
        kr.make(**keywords)


def test_sizes_without_a_common_stride_are_refused():
    assert [kr.stride_between(*pair) for pair in ((32, 16), (7, 4), (112, 56), (8, 8), (56, 14))] == [2, 2, 2, 1, 4]
    with pytest.raises(ValueError, match='kr cannot aggregate maps of 4 pixels into 3'):
        kr.stride_between(4, 3)
