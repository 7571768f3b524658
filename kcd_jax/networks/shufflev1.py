"""ShuffleNet with three groups for 32x32 images (Zhang et al. 2018; the field's variant: a ReLU after depthwise)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.networks.layers import (
    BatchNorm,
    Conv,
    Dense,
    Normalization,
    global_mean,
    mean_3x3,
    shuffle_channels,
    wrap,
)
from kcd_jax.spec import Array, Network, Outputs

NAMES = ('shufflev1',)

_GROUPS = 3
_STAGES = ((240, 4), (480, 8), (960, 4))  # (channels, units)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; strided units concatenate, the others add.

    Returns (after ReLU, before it).
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        conv = functools.partial(Conv, init='torch')
        branch = self.features - x.shape[-1] if self.stride == 2 else self.features
        hidden = branch // 4
        groups = 1 if x.shape[-1] == 24 else _GROUPS
        y = nn.relu(BatchNorm(name='bn1')(conv(hidden, 1, 1, groups, name='conv1')(x)))
        y = shuffle_channels(y, groups)
        y = nn.relu(BatchNorm(name='bn2')(conv(hidden, 3, self.stride, hidden, name='conv2')(y)))
        y = BatchNorm(name='bn3')(conv(branch, 1, 1, _GROUPS, name='conv3')(y))
        y = jnp.concatenate([y, mean_3x3(x, 2)], -1) if self.stride == 2 else y + x
        return nn.relu(y), y


class ShuffleV1(nn.Module):
    """1x1 stem, three stages, global average, classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        x = nn.relu(BatchNorm(name='bn1')(Conv(24, 1, init='torch', name='conv1')(x)))
        feats, preacts = [x], []
        for stage, (features, units) in enumerate(_STAGES, start=1):
            for unit in range(units):
                x, preact = ShuffleUnit(features, 2 if unit == 0 else 1, name=f'layer{stage}.{unit}')(x)
            feats.append(x)
            preacts.append(preact)
        embed = global_mean(x)
        return Outputs(Dense(self.num_classes, name='linear')(embed), tuple(feats), tuple(preacts), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    return wrap(name, ShuffleV1(num_classes), tail=('linear/*',), dtype=dtype, normalization=normalization)
