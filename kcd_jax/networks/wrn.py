"""Wide residual networks (Zagoruyko & Komodakis 2016): pre-activation blocks; feature maps are raw residual sums."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap

# name: (depth, width)
NAMES: dict[str, tuple[int, int]] = {f'wrn_{depth}_{width}': (depth, width) for depth in (16, 40) for width in (1, 2)}


class WideBlock(nn.Module):
    """BN-ReLU-conv twice and a shortcut; returns (the sum, the first BN's output).

    Where the widths differ, a 1x1 shortcut takes the activated input; elsewhere the shortcut is the raw input.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        normed = BatchNorm(name='bn1')(x)
        active = nn.relu(normed)
        y = nn.relu(BatchNorm(name='bn2')(Conv(self.features, 3, self.stride, name='conv1')(active)))
        y = Conv(self.features, 3, name='conv2')(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, name='convShortcut')(active)
        return x + y, normed


class WideResNet(nn.Module):
    """Stem convolution, three groups, a last BN-ReLU, global average, classifier.

    A stage's pre-activation is its normalised raw sum: the output of the next group's first BN, or of the last BN.
    """

    blocks: int
    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        x = Conv(16, 3, name='conv1')(x)
        feats, preacts = [x], []
        for stage in (1, 2, 3):
            for block in range(self.blocks):
                features, stride = 2 ** (stage + 3) * self.width, 2 if stage > 1 and block == 0 else 1
                x, normed = WideBlock(features, stride, name=f'block{stage}.layer.{block}')(x)
                if stage > 1 and block == 0:
                    preacts.append(normed)
            feats.append(x)
        preacts.append(BatchNorm(name='bn1')(x))
        embed = global_mean(nn.relu(preacts[-1]))
        logits = Dense(self.num_classes, bias_init=('constant', 0.0), name='fc')(embed)
        return Outputs(logits, tuple(feats), tuple(preacts), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    depth, width = NAMES[name]
    module = WideResNet((depth - 4) // 6, width, num_classes)
    return wrap(name, module, tail=('bn1/*', 'fc/*'), dtype=dtype, normalization=normalization)
