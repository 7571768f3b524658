"""ShuffleNet with three groups for 32x32 images (Zhang et al. 2018; as in CRD's code, with a ReLU after depthwise)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import (
    BatchNorm,
    Conv,
    Dense,
    GroupedConv,
    Normalization,
    Parts,
    global_mean,
    mean_3x3,
    shuffle_parts,
    wrap,
)

NAMES = ('shufflev1',)

_GROUPS = 3
_STAGES = ((240, 4), (480, 8), (960, 4))  # (channels, units)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; strided units concatenate, the others add.

    Inputs and outputs are tuples with one array per group; the first unit takes the stem's output as one. Returns
    (after ReLU, before it).
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Parts) -> tuple[Parts, Parts]:
        branch = self.features - sum(part.shape[-1] for part in x) if self.stride == 2 else self.features
        hidden = branch // 4
        y = BatchNorm(name='bn1')(GroupedConv(hidden, name='conv1')(x))
        y = shuffle_parts(tuple(map(nn.relu, y)))
        y = nn.relu(BatchNorm(name='bn2')(Conv(hidden, 3, self.stride, hidden, init='torch', name='conv2')(y)))
        y = BatchNorm(name='bn3')(GroupedConv(branch, name='conv3')(tuple(jnp.split(y, _GROUPS, -1))))
        if self.stride == 2:
            y = jnp.split(jnp.concatenate([*y, *(mean_3x3(part, 2) for part in x)], -1), _GROUPS, -1)
        else:
            y = map(jnp.add, y, x)
        y = tuple(y)
        return tuple(map(nn.relu, y)), y


class ShuffleV1(nn.Module):
    """1x1 stem, three stages, global average, classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        x = nn.relu(BatchNorm(name='bn1')(Conv(24, 1, init='torch', name='conv1')(x)))
        parts, feats, preacts = (x,), [x], []
        for stage, (features, units) in enumerate(_STAGES, start=1):
            for unit in range(units):
                parts, preact = ShuffleUnit(features, 2 if unit == 0 else 1, name=f'layer{stage}.{unit}')(parts)
            feats.append(jnp.concatenate(parts, -1))
            preacts.append(jnp.concatenate(preact, -1))
        embed = global_mean(feats[-1])
        return Outputs(Dense(self.num_classes, name='linear')(embed), tuple(feats), tuple(preacts), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    return wrap(name, ShuffleV1(num_classes), tail=('linear/*',), dtype=dtype, normalization=normalization)
