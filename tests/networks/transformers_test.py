"""Parts of the transformers and of ConvNeXt against flax's layers and plain loops."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import networks
from kcd_jax.networks import convnext, layers, vit
from kcd_jax.trees import leaf_paths

pytestmark = pytest.mark.fast_compile


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layer_norm_equals_flax():
    x = 3 * normal(0, 2, 5, 7) + 100
    params = {'params': {'scale': normal(1, 7), 'bias': normal(2, 7)}}
    expected = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False).apply(params, x)
    np.testing.assert_allclose(layers.LayerNorm().apply(params, x), expected, atol=1e-5)
    assert layers.LayerNorm().apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(('height', 'width'), [(8, 12), (7, 9), (1, 3)])
def test_patches_are_a_convolution_of_the_padded_image(height, width):
    x, kernel, bias = normal(0, 2, height, width, 3), normal(1, 4, 4, 3, 5), normal(2, 5)
    found = layers.Patches(5, 4).apply({'params': {'kernel': kernel, 'bias': bias}}, x)
    padded = np.pad(x, ((0, 0), (0, -height % 4), (0, -width % 4), (0, 0)))
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            patch = padded[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = np.einsum('bhwc,hwcf->bf', patch, kernel) + bias
            np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (2, -(-height // 4), -(-width // 4), 5)


def test_attention_is_a_softmax_over_all_tokens_per_head():
    tokens, width, heads = 5, 6, 2
    x, attention = normal(0, 1, tokens, width), vit.Attention(heads)
    params = {
        'qkv': {'kernel': normal(1, width, 3 * width), 'bias': normal(2, 3 * width)},
        'proj': {'kernel': normal(3, width, width), 'bias': normal(4, width)},
    }
    query, key, value = np.split(x[0] @ params['qkv']['kernel'] + params['qkv']['bias'], 3, axis=1)
    mixed, size = np.zeros((tokens, width)), width // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(tokens):
            weights = np.exp(key[:, part] @ query[token, part] / math.sqrt(size))
            mixed[token, part] = weights / weights.sum() @ value[:, part]
    expected = mixed @ params['proj']['kernel'] + params['proj']['bias']
    np.testing.assert_allclose(attention.apply({'params': params}, x)[0], expected, rtol=1e-3, atol=1e-4)


def test_a_block_of_convnext_adds_a_scaled_branch():
    x = normal(0, 1, 5, 5, 2)
    variables = {
        'conv_dw': {'kernel': normal(1, 7, 7, 1, 2), 'bias': normal(2, 2)},
        'norm': {'scale': normal(3, 2), 'bias': normal(4, 2)},
        'mlp.fc1': {'kernel': normal(5, 1, 1, 2, 8), 'bias': normal(6, 8)},
        'mlp.fc2': {'kernel': normal(7, 1, 1, 8, 2), 'bias': normal(8, 2)},
        'gamma': normal(9, 2),
    }
    padded, y = np.pad(x[0], ((3, 3), (3, 3), (0, 0))), np.zeros((5, 5, 2))
    for row in range(5):
        for column in range(5):
            y[row, column] = (padded[row : row + 7, column : column + 7] * variables['conv_dw']['kernel'][:, :, 0]).sum(
                (0, 1)
            )
    y += variables['conv_dw']['bias']
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * variables['norm']['scale'] + variables['norm']['bias']
    y = y @ variables['mlp.fc1']['kernel'][0, 0] + variables['mlp.fc1']['bias']
    y = y * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(y)
    y = y @ variables['mlp.fc2']['kernel'][0, 0] + variables['mlp.fc2']['bias']
    found = convnext.Block().apply({'params': variables}, x)
    np.testing.assert_allclose(found[0], x[0] + variables['gamma'] * y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('name', ['transformer', pytest.param('convnext', marks=pytest.mark.slow)])
def test_every_parameter_is_trained(name, monkeypatch):
    monkeypatch.setitem(vit.NAMES, 'transformer', vit.Architecture(4, width=12, depth=4))
    monkeypatch.setitem(convnext.NAMES, 'convnext', convnext.Architecture(2, (1, 1), (4, 8)))
    network = networks.get(name)(3)
    variables = network.init(jax.random.key(0), (8, 12, 3))

    def loss(params):
        outputs, state = network.apply({**variables, 'params': params}, normal(0, 2, 8, 12, 3), True)
        return jnp.mean(jnp.square(outputs.logits - 1)), (outputs, state)

    grads, (outputs, state) = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    assert all(np.any(leaf) and np.isfinite(leaf).all() for leaf in leaf_paths(grads).values())
    sizes = [(2, 3)] * 5 if name == 'transformer' else [(4, 6), (4, 6), (2, 3)]
    assert [feat.shape[1:3] for feat in outputs.feats] == sizes and not state['batch_stats']
