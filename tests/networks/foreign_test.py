"""Models of other frameworks as networks: the same outputs, one contract, training, resuming and loading."""

from __future__ import annotations

import os

os.environ.setdefault('KERAS_BACKEND', 'jax')

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kcd_jax import networks
from kcd_jax.contracts import Outputs
from kcd_jax.training import macs
from kcd_jax.trees import leaf_paths

pytestmark = pytest.mark.fast_compile

SHAPE = (8, 8, 3)
KEY = jax.random.key(3)
MIXED = np.float64(0.5)  # times a float32 array it is an error under strict promotion


class LinenBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3), strides=2)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = LinenBlock(4, name='block1')(x, train)
        x = LinenBlock(6, name='block2')(x, train)
        x = nn.Dropout(0.5, deterministic=not train)(jnp.mean(x, (1, 2)))
        return nn.Dense(3, name='head')(x) * jnp.arange(1, 4)  # int32 times float32


class LinenTokens(nn.Module):
    """No batch statistics: tokens, a class token, LayerNorm and attention."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), strides=4, name='patches')(x)
        x = x.reshape(x.shape[0], -1, 8)
        token = self.param('token', nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], 1)
        x = x + nn.MultiHeadDotProductAttention(2, name='attention')(nn.LayerNorm()(x))
        x = nn.LayerNorm(name='norm')(x)
        return nn.Dense(3, name='head')(x[:, 0])


class NnxBlock(nnx.Module):
    def __init__(self, inputs, width, rngs):
        self.conv = nnx.Conv(inputs, width, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([NnxBlock(3, 4, rngs), NnxBlock(4, 6, rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(jnp.mean(x, (1, 2)))) * jnp.arange(1, 4)


def linen(**other):
    return networks.from_linen(LinenNet(), taps=('block1', 'block2'), embed=mean_of_last, **other)


def mean_of_last(taps):
    return jnp.mean(taps[-1], (1, 2))


def from_nnx(**other):
    model = NnxNet(nnx.Rngs(0))
    return networks.from_nnx(model, taps=('blocks[0]', 'blocks.1'), embed=mean_of_last, **other), model


def make_equinox():
    eqx = pytest.importorskip('equinox')

    class Block(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm

        def __init__(self, inputs, width, key):
            self.conv = eqx.nn.Conv2d(inputs, width, 3, 2, 1, key=key)
            self.norm = eqx.nn.BatchNorm(width, 'rows', mode='batch')

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return jax.nn.relu(x), state

    class Net(eqx.Module):
        blocks: list
        dropout: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.blocks = [Block(3, 4, keys[0]), Block(4, 6, keys[1])]
            self.dropout = eqx.nn.Dropout(0.5)
            self.head = eqx.nn.Linear(6, 3, key=keys[2])

        def __call__(self, x, state, key=None):
            for block in self.blocks:
                x, state = block(x, state)
            x = self.dropout(jnp.mean(x, (1, 2)), key=key)
            return self.head(x) * jnp.arange(1, 4), state

    return eqx, Net


def from_equinox(**other):
    eqx, net = make_equinox()
    model, state = eqx.nn.make_with_state(net)(jax.random.key(0))
    taps = ('blocks[0]', 'blocks[1]')
    return networks.from_equinox(model, state, taps=taps, embed=mean_of_last, **other), (model, state)


def from_keras(**other):
    keras = pytest.importorskip('keras')
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = x = keras.Input(SHAPE)
    for number, width in enumerate((4, 6), start=1):
        x = layers.Conv2D(width, 3, 2, padding='same')(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU(name=f'block{number}')(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(name='pool')(x))
    model = keras.Model(image, layers.Dense(3, name='head')(x), name='keras_net')
    return networks.from_keras(model, taps=('block1', 'block2'), embed='pool', **other), model


def from_functions(**other):
    def init(key, image_shape):
        first, second = jax.random.split(key)
        return {
            'params': {
                'conv': 0.1 * jax.random.normal(first, (3, 3, 3, 6)),
                'head': [jax.random.normal(second, (6, 3)), jnp.zeros(3)],
            },
            'moments': {'mean': jnp.zeros(6)},
        }

    def apply(variables, image, train, key):
        params, mean = variables['params'], variables['moments']['mean']
        x = jax.lax.conv_general_dilated(
            image, params['conv'], (4, 4), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        now = jnp.mean(x, (0, 1, 2)) if train else mean
        x = jax.nn.relu(x - now)
        if train:
            x = x * jax.random.bernoulli(key, 0.5, x.shape) * 2
        embed = jnp.mean(x, (1, 2))
        logits = (embed @ params['head'][0] + params['head'][1]) * jnp.arange(1, 4)
        return Outputs(logits, feats=(x,), embed=embed), {'moments': {'mean': 0.9 * mean + 0.1 * now}}

    return networks.from_functions(init, apply, name='plain', **other), (init, apply)


KINDS = {
    'linen': lambda: linen(),
    'nnx': lambda: from_nnx()[0],
    'equinox': lambda: from_equinox()[0],
    'keras': lambda: from_keras()[0],
    'functions': lambda: from_functions()[0],
}


@pytest.fixture(scope='module')
def built():
    made = {}
    return lambda kind: made.setdefault(kind, None) or made.update({kind: KINDS[kind]()}) or made[kind]


def images(rows=4):
    return jax.random.uniform(jax.random.key(1), (rows, *SHAPE))


def direct(kind):
    """(network, its variables, logits of the model called as its framework has it, in evaluation)."""
    x = images()
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        if kind == 'linen':
            variables = jax.jit(LinenNet().init)(KEY, x)
            return linen(), jax.jit(LinenNet().apply)(variables, x)
        if kind == 'nnx':
            network, model = from_nnx()
            model.eval()
            return network, model(x)
        if kind == 'equinox':
            network, (model, state) = from_equinox()
            eqx, _ = make_equinox()
            model = eqx.nn.inference_mode(model)
            one = jax.jit(jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name='rows'))
            return network, one(jnp.moveaxis(x, -1, 1), state)[0]
        if kind == 'keras':
            network, model = from_keras()
            return network, model(x, training=False)
        network, (init, apply) = from_functions()
        return network, apply(init(KEY, SHAPE), x, False, None)[0].logits


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_are_those_of_the_model_called_directly(kind):
    network, expected = direct(kind)
    outputs, _ = jax.jit(network.apply, static_argnums=2)(network.init(KEY, SHAPE), images(), False)
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-5)
    widths = [feat.shape for feat in outputs.feats]
    assert widths == ([(4, 2, 2, 6)] if kind == 'functions' else [(4, 4, 4, 4), (4, 2, 2, 6)])
    np.testing.assert_allclose(outputs.embed, outputs.feats[-1].mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_a_training_pass_has_gradients_new_statistics_and_a_new_key(kind, built):
    network = built(kind)
    variables = network.init(KEY, SHAPE)
    rest = {name: tree for name, tree in variables.items() if name != 'params'}

    @jax.jit
    def step(rest):
        def loss(params):
            outputs, state = network.apply({'params': params, **rest}, images(16), True)
            return jnp.sum(jnp.square(outputs.logits)), (outputs, state)

        return jax.grad(loss, has_aux=True)(variables['params'])

    grads, (first, state) = step(rest)
    _, (again, _) = step(rest)
    _, (second, later) = step(state)
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.array_equal(first.logits, second.logits), 'the same units are dropped'
    assert jax.tree.structure(state) == jax.tree.structure(later) == jax.tree.structure(rest)
    moved = {path for path, leaf in leaf_paths(state).items() if not np.array_equal(leaf, leaf_paths(rest)[path])}
    statistics = {path for path in leaf_paths(state) if 'mean' in path and not path.startswith('constants')}
    # equinox numbers its states
    assert statistics <= moved if kind != 'equinox' else len(moved) >= 4
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype('float32')}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    # Batch normalisation leaves nothing of the bias before it.
    assert all(np.any(leaf) for path, leaf in leaf_paths(grads).items() if 'onv' not in path or 'bias' not in path)


@pytest.mark.parametrize('kind', KINDS)
def test_the_dropout_follows_the_key_of_the_network(kind, built):
    states = []
    for seed in (1, 2):
        variables = leaf_paths(built(kind).init(jax.random.key(seed), SHAPE))
        states.append({path: leaf for path, leaf in variables.items() if path.startswith('dropout') or 'seed' in path})
    assert states[0] and any(not np.array_equal(leaf, states[1][path]) for path, leaf in states[0].items())


@pytest.mark.parametrize('kind', ['nnx', 'equinox', 'keras'])
def test_the_users_model_lives_on(kind, built):
    network = built(kind)
    jax.tree.map(lambda leaf: leaf.delete(), network.init(KEY, SHAPE))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(network.init(KEY, SHAPE)['params']))


def test_a_pass_has_the_operations_of_the_model_called_directly():
    network, model = from_nnx()
    graph, state = nnx.split(model)
    variables = jax.eval_shape(lambda: network.init(KEY, SHAPE))
    for train in (False, True):

        def direct(state, image, train=train):
            merged = nnx.merge(graph, state)
            merged.train() if train else merged.eval()
            with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
                return merged(image)

        def adapted(variables, image, train=train):
            return network.apply(variables, image, train)[0].logits

        assert macs.count(adapted, variables, images()) == macs.count(direct, state, images()) > 0
