"""Convolutions, normalisation, initial values and the behaviour that every network shares."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kcd_jax import networks
from kcd_jax.checks import network as checks
from kcd_jax.networks import layers, primitives
from kcd_jax.runtime import sharding
from kcd_jax.training import step
from kcd_jax.trees import leaf_paths

pytestmark = pytest.mark.fast_compile


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# (groups, kernel, stride, channels in, channels out)
CONVOLUTIONS = [
    (1, 3, 1, 4, 6),
    (1, 3, 2, 4, 6),
    (1, 1, 1, 4, 6),
    (1, 1, 2, 4, 6),
    (1, 7, 2, 3, 4),
    (4, 3, 1, 4, 4),
    (4, 3, 2, 4, 4),
    (2, 1, 1, 4, 6),
]


@pytest.mark.parametrize('size', [8, 7, 2, 1])  # the last two are smaller than some kernels
@pytest.mark.parametrize(('groups', 'kernel', 'stride', 'inputs', 'outputs'), CONVOLUTIONS)
def test_convolution_equals_xla(groups, kernel, stride, inputs, outputs, size):
    x = normal(0, 2, size, size + 1, inputs)
    weight = normal(1, kernel, kernel, inputs // groups, outputs)
    ours, pull_ours = jax.vjp(lambda x, w: primitives.convolve(x, w, stride, groups), x, weight)
    plain, pull_plain = jax.vjp(lambda x, w: primitives.plain(x, w, stride, groups), x, weight)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
    direction = normal(2, *ours.shape)
    for ours_grad, plain_grad in zip(pull_ours(direction), pull_plain(direction), strict=True):
        np.testing.assert_allclose(ours_grad, plain_grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('backend', ['gpu', 'tpu'])
def test_accelerators_use_xla_gradients(monkeypatch, backend):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    jaxpr = str(jax.make_jaxpr(primitives.convolve)(normal(0, 1, 8, 8, 4), normal(1, 3, 3, 4, 4)))
    assert 'custom_vjp' not in jaxpr and 'conv_general_dilated' in jaxpr


def test_batch_norm_equals_flax():
    x = normal(0, 4, 3, 3, 5) * 3 + 1
    ours, theirs = layers.BatchNorm(), nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    ones = {'params': {'scale': jnp.ones(5), 'bias': jnp.zeros(5)}}
    start = {**ones, 'batch_stats': {'mean': jnp.zeros(5), 'var': jnp.ones(5)}}
    y, changed = ours.apply(start, x, mutable=['batch_stats'])
    expected, expected_changed = theirs.apply(start, x, mutable=['batch_stats'])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), changed, expected_changed)
    # In evaluation the running values normalise and nothing changes.
    np.testing.assert_allclose(ours.apply(start, x), x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_batch_norm_keeps_the_variance_under_a_large_mean():
    """At a mean of 1000 deviations E[x^2] - E[x]^2 in float32 is off by 0.2 and more."""
    x = 1000 + normal(0, 64, 8, 8, 16)
    exact = x.astype(np.float64).var((0, 1, 2))
    train = jax.jit(lambda variables, x: layers.BatchNorm().apply(variables, x, mutable=['batch_stats']))
    ones = {'params': {'scale': jnp.ones(16), 'bias': jnp.zeros(16)}}
    stats = {'mean': jnp.full(16, 990.0), 'var': jnp.zeros(16)}
    y, changed = train({**ones, 'batch_stats': stats}, x)
    np.testing.assert_allclose(changed['batch_stats']['var'] / 0.1, exact, atol=1e-3)
    np.testing.assert_allclose(y, (x - x.mean((0, 1, 2), dtype=np.float64)) / np.sqrt(exact + 1e-5), atol=1e-3)
    # From the initial statistics the running mean arrives there in time: 1000 * 0.9^60 is less than 2 deviations.
    stats = {'mean': jnp.zeros(16), 'var': jnp.ones(16)}
    for _ in range(200):
        _, changed = train({**ones, 'batch_stats': stats}, x)
        stats = changed['batch_stats']
    np.testing.assert_allclose(stats['mean'], x.mean((0, 1, 2), dtype=np.float64), atol=1e-3)
    np.testing.assert_allclose(stats['var'], exact, atol=1e-3)


def test_batch_norm_exchanges_its_sums_at_once():
    mesh = sharding.make_mesh()
    x = jax.device_put(normal(0, 8, 4, 4, 16), sharding.batch(mesh))
    stats = {'mean': jnp.zeros(16), 'var': jnp.ones(16)}
    variables = {'params': {'scale': jnp.ones(16), 'bias': jnp.zeros(16)}, 'batch_stats': stats}
    train = jax.jit(lambda variables, x: layers.BatchNorm().apply(variables, x, mutable=['batch_stats']))
    text = train.lower(jax.device_put(variables, sharding.replicated(mesh)), x).compile().as_text()
    assert len(re.findall(r' all-reduce(?:-start)?\(', text)) == 1


def test_pooling():
    x = normal(0, 2, 5, 4, 3)
    by_hand = np.stack([[x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((1, 2)) for c in range(2)] for r in range(2)])
    np.testing.assert_array_equal(layers.halve_by_max(x), by_hand.transpose(2, 0, 1, 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [[padded[:, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3] for c in range(2)] for r in range(3)]
    means = np.stack([[window.mean((1, 2)) for window in row] for row in windows])
    np.testing.assert_allclose(layers.mean_3x3(x, 2), means.transpose(2, 0, 1, 3), atol=1e-6)


def test_channel_shuffle():
    x = jnp.arange(6, dtype=jnp.float32).reshape(1, 1, 1, 6)
    assert layers.shuffle_channels(x, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]
    assert layers.shuffle_channels(x, 3).ravel().tolist() == [0, 2, 4, 1, 3, 5]


def test_initial_values_follow_their_law():
    params = leaf_paths(networks.get('resnet20')(100).init(jax.random.key(0), (32, 32, 3))['params'])
    for path, leaf in params.items():
        if leaf.ndim == 4:
            expected = np.sqrt(2 / (leaf.shape[0] ** 2 * leaf.shape[3]))
            assert np.std(leaf) == pytest.approx(expected, rel=8 / np.sqrt(leaf.size)), path
    assert 0.95 / 8 < np.abs(params['fc/kernel']).max() <= 1 / 8  # 64 inputs
    assert 0.7 / 8 < np.abs(params['fc/bias']).max() <= 1 / 8
    assert (params['bn1/scale'] == 1).all() and (params['bn1/bias'] == 0).all()
    shuffle = leaf_paths(networks.get('shufflev1')(10).init(jax.random.key(0), (32, 32, 3))['params'])
    assert 0.95 / 3 < np.abs(shuffle['layer3.1/conv2/kernel']).max() <= 1 / 3  # depthwise: nine inputs
    vgg = leaf_paths(networks.get('vgg8')(10).init(jax.random.key(0), (32, 32, 3))['params'])
    assert np.std(vgg['classifier/kernel']) == pytest.approx(0.01, rel=0.05) and (vgg['block0.0/bias'] == 0).all()


def test_initial_values_depend_on_the_key_alone():
    init = networks.get('wrn_16_1')(10).init
    eager = init(jax.random.key(3), (32, 32, 3))
    traced = jax.jit(lambda key: init(key, (32, 32, 3)))(jax.random.key(3))
    smaller = init(jax.random.key(3), (16, 16, 3))
    other = init(jax.random.key(4), (32, 32, 3))
    assert jax.tree.structure(eager) == jax.tree.structure(traced)
    for a, b, c in zip(*map(jax.tree.leaves, (eager, traced, smaller)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert not np.array_equal(eager['params']['conv1']['kernel'], other['params']['conv1']['kernel'])


def test_no_two_leaves_share_a_buffer():
    variables = networks.get('resnet8')(10).init(jax.random.key(0), (32, 32, 3))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(variables)]
    assert len(set(pointers)) == len(pointers)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(variables))


DEEP = re.compile('resnet(44|56|101|110)|wrn_40|vgg1[169]')  # more blocks of the same


@pytest.mark.parametrize('name', [name for name in networks.names() if not DEEP.match(name)])
def test_the_contract_of_every_network(name):
    case = checks.Case(networks.get(name)(checks.CLASSES))
    for check in set(checks.CHECKS) - {checks.gradients}:
        check(case)
    outputs, _ = case.outputs(False)
    assert set(case.variables) == {'params', 'batch_stats', 'constants'}
    assert outputs.preacts and outputs.embed is not None


def test_the_gradients_of_a_network_are_checked_as_those_of_a_users():
    checks.gradients(checks.Case(networks.get('resnet8x0_25')(checks.CLASSES)))


def test_the_taps_after_convolutions_follow_the_depth():
    """Each tap depends on the kernels up to its own, and on none after it; the ends of stages are the stages' taps."""
    network = networks.get('resnet14')(5)
    variables = network.init(jax.random.key(0), (8, 8, 3))
    params, rest = variables['params'], {k: variables[k] for k in ('batch_stats', 'constants')}

    def apply(params):
        return network.apply({'params': params, **rest}, jnp.full((1, 8, 8, 3), 0.3), False)[0]

    outputs = jax.jit(apply)(params)
    for feat, conv in zip(outputs.feats, outputs.convs[::4], strict=True):
        np.testing.assert_array_equal(feat, conv)
    for place, conv in enumerate(outputs.convs):
        jaxpr = jax.make_jaxpr(lambda params, place=place: apply(params).convs[place])(params).jaxpr
        _, used = partial_eval.dce_jaxpr(jaxpr, [True])
        seen = {path for path, is_used in zip(leaf_paths(params), used, strict=True) if is_used}
        assert [path in seen for path in network.convs] == [i <= place for i in range(len(network.convs))]
        assert conv.min() >= 0.0


def test_training_moves_the_statistics_and_evaluation_does_not():
    network = networks.get('resnet8x0_25')(5)
    variables = network.init(jax.random.key(0), (8, 8, 3))
    image = jax.random.uniform(jax.random.key(1), (16, 8, 8, 3))
    apply = jax.jit(network.apply, static_argnums=2)
    _, trained = apply(variables, image, True)
    _, evaluated = apply(variables, image, False)
    assert not np.array_equal(trained['batch_stats']['bn1']['mean'], variables['batch_stats']['bn1']['mean'])
    jax.tree.map(np.testing.assert_array_equal, evaluated, {k: variables[k] for k in ('batch_stats', 'constants')})


def test_bfloat16_stays_near_float32():
    image = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3))
    variables = networks.get('resnet8x0_25')(5).init(jax.random.key(0), (8, 8, 3))

    network, narrow_network = (networks.get('resnet8x0_25')(5, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))

    def loss(params):
        outputs, state = narrow_network.apply({**variables, 'params': params}, image, True)
        return jnp.mean(outputs.logits**2), (outputs, state)

    grads, (narrow, state) = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    wide, _ = jax.jit(network.apply, static_argnums=2)(variables, image, True)
    # bfloat16 has eight bits of mantissa; some twenty roundings add up.
    assert np.abs(narrow.logits - wide.logits).max() < 0.1 * np.abs(wide.logits).max()
    assert {leaf.dtype for leaf in jax.tree.leaves((narrow, state, grads))} == {jnp.dtype('float32')}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(('groups', 'kernel', 'stride', 'inputs', 'outputs'), CONVOLUTIONS)
def test_convolutions_take_bfloat16(groups, kernel, stride, inputs, outputs):
    x = jax.ShapeDtypeStruct((2, 8, 8, inputs), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((kernel, kernel, inputs // groups, outputs), jnp.bfloat16)

    def loss(x, weight):
        return jnp.sum(primitives.convolve(x, weight, stride, groups)).astype(jnp.float32)

    assert {g.dtype for g in jax.eval_shape(jax.grad(loss, (0, 1)), x, weight)} == {jnp.dtype(jnp.bfloat16)}


def sharded_gradient(loss, params, image):
    """(value, gradient) of `loss` with the image's rows over two devices; fails if an activation would be moved."""
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(jax.value_and_grad(loss), out_shardings=everywhere)
    arguments = jax.device_put(params, everywhere), jax.device_put(image, NamedSharding(mesh, PartitionSpec('data')))
    compiled = step.lower(*arguments).compile()
    text = compiled.as_text()
    assert ' all-reduce' in text and not re.search(r'\b(all-gather|all-to-all|collective-permute)\(', text)
    return compiled(*arguments)


def test_a_sharded_batch_stays_where_it_is():
    """Only sums cross devices (statistics, gradients), and the result is that of one device."""
    network = networks.get('resnet8x0_25')(5)
    variables = network.init(jax.random.key(0), (8, 8, 3))
    image = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3))

    def loss(params, image):
        return jnp.mean(jnp.square(network.apply({**variables, 'params': params}, image, True)[0].logits))

    value, grads = sharded_gradient(loss, variables['params'], image)
    one_value, one_grads = jax.jit(jax.value_and_grad(loss))(variables['params'], image)
    np.testing.assert_allclose(value, one_value, rtol=1e-4)
    for path, leaf in leaf_paths(grads).items():
        reference = leaf_paths(one_grads)[path]
        np.testing.assert_allclose(leaf, reference, atol=1e-3 * (np.abs(reference).max() + 1e-3), err_msg=path)


@pytest.mark.parametrize(('groups', 'kernel', 'stride', 'inputs', 'outputs'), CONVOLUTIONS)
def test_sharded_convolutions(groups, kernel, stride, inputs, outputs):
    weight = normal(1, kernel, kernel, inputs // groups, outputs)
    first = normal(2, 1, 1, 3, inputs)  # so that the input's gradient is needed
    image = normal(0, 4, 8, 8, 3)

    def loss(params, image):
        x = primitives.convolve(image, params[0])
        return jnp.mean(jnp.square(primitives.convolve(x, params[1], stride, groups)))

    _, grads = sharded_gradient(loss, (first, weight), image)
    for grad, expected in zip(grads, jax.jit(jax.grad(loss))((first, weight), image), strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5)


def test_normalisation_is_inside():
    image = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    plain = networks.get('resnet8x0_25')(5, normalization='none')
    moved = networks.get('resnet8x0_25')(5, normalization=((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    variables = plain.init(jax.random.key(0), (8, 8, 3))
    ours = moved.init(jax.random.key(0), (8, 8, 3))
    by_hand = (image - jnp.array([[[[0.5, 0.4, 0.3]]]])) / jnp.array([[[[0.2, 0.3, 0.4]]]])
    expected = plain.apply(variables, by_hand, False)[0].logits
    np.testing.assert_allclose(moved.apply(ours, image, False)[0].logits, expected, rtol=1e-4, atol=1e-5)
    # The constants are read from the variables, so that an imported teacher keeps its own.
    np.testing.assert_allclose(plain.apply(ours, image, False)[0].logits, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="unknown normalization 'cifar'; known: cifar100"):
        networks.get('resnet8')(10, normalization='cifar')
    with pytest.raises(ValueError, match='three positive deviations'):
        networks.get('resnet8')(10, normalization=((0, 0, 0), (1, 0, 1)))
    with pytest.raises(ValueError, match='at least 8x8 pixels'):
        networks.get('resnet8')(10).init(jax.random.key(0), (4, 4, 3))


def test_the_branches_of_one():
    network = networks.get('resnet32_one')(6)
    variables = network.init(jax.random.key(0), (8, 8, 3))
    outputs = jax.jit(lambda v, x: network.apply(v, x, False)[0])(variables, normal(0, 2, 8, 8, 3))
    assert outputs.aux['branches'].shape == (2, 3, 6)
    np.testing.assert_array_equal(outputs.aux['branches'][:, 0], outputs.logits)
    np.testing.assert_allclose(outputs.aux['gate'].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_second_derivatives_are_xlas(stride):
    """KR's literal penalty takes them, reverse over reverse, through the explicit gradients."""
    x, first, second, vector = (
        jax.random.normal(jax.random.PRNGKey(i), shape)
        for i, shape in enumerate([(2, 5, 5, 3), (3, 3, 3, 4), (3, 3, 4, 2), (3, 3, 3, 4)])
    )

    def product(convolve):
        def loss(kernel):
            return jnp.sum(jnp.sin(convolve(jnp.tanh(convolve(x, kernel, stride)), second, 1)))

        return jax.jit(lambda kernel: step.hessian_vector_product(loss, kernel, vector))(first)

    wanted = product(primitives.plain)
    np.testing.assert_allclose(product(primitives.convolve), wanted, atol=2e-5 * float(jnp.max(jnp.abs(wanted))))


@pytest.mark.parametrize('name', ['resnet8x0_25', pytest.param('mobilenetv2', marks=pytest.mark.slow)])
def test_devices_exchange_nothing_inside_a_call(name):
    """Only the exchanges of the main computation have one order on all devices of a CPU; others are a deadlock."""
    mesh = sharding.make_mesh()
    network = networks.get(name)(10)
    variables = network.init(jax.random.PRNGKey(0), (16, 16, 3))

    def loss(params, image):
        outputs, _ = network.apply({**variables, 'params': params}, image, True)
        return jnp.mean(outputs.logits**2)

    image = jax.device_put(jnp.zeros((8, 16, 16, 3)), sharding.batch(mesh))
    params = jax.device_put(variables['params'], sharding.replicated(mesh))
    computation, places = '', []
    for line in jax.jit(jax.grad(loss)).lower(params, image).compile().as_text().splitlines():
        computation = line if line and not line.startswith((' ', '}')) else computation
        if re.search(r' all-reduce(-start)?\(', line):
            places.append(computation)
    assert places and all(place.startswith('ENTRY') for place in places)
