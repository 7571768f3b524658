"""The CIFAR ResNets of depth 6n + 2 (He et al. 2016, with 1x1 shortcuts), plain, four times wider (x4) and narrowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap

_PLAIN = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)

# name: (depth, widths of the stem and of the three stages)
NAMES: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    **{f'resnet{depth}': (depth, _PLAIN) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    'resnet8x4': (8, _WIDE),
    'resnet32x4': (32, _WIDE),
    # A quarter of the width: the student of the digits demonstration, seconds an epoch on two cores.
    'resnet8x0_25': (8, (4, 4, 8, 16)),
}


def conv_names(blocks: Sequence[int], convs: int) -> tuple[str, ...]:
    """The kernels' paths of the stem and of `convs` convolutions in each block: 'layer1.0/conv1/kernel', ..."""
    each = (
        f'layer{stage}.{block}/conv{conv}/kernel'
        for stage, number in enumerate(blocks, start=1)
        for block in range(number)
        for conv in range(1, convs + 1)
    )
    return ('conv1/kernel', *each)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns (the maps after each convolution's ReLU, the last sum before it).

    Attributes:
      shortcut: the name of the projection's modules, which exist when the shape changes.
    """

    features: int
    stride: int
    shortcut: str = 'downsample'

    @nn.compact
    def __call__(self, x: Array) -> tuple[tuple[Array, ...], Array]:
        inner = nn.relu(BatchNorm(name='bn1')(Conv(self.features, 3, self.stride, name='conv1')(x)))
        y = BatchNorm(name='bn2')(Conv(self.features, 3, name='conv2')(inner))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, name=f'{self.shortcut}.0')(x)
            x = BatchNorm(name=f'{self.shortcut}.1')(x)
        return (inner, nn.relu(y + x)), y + x


class ResNet(nn.Module):
    """Stem, three stages of `blocks` basic blocks, global average, classifier."""

    blocks: int
    widths: tuple[int, int, int, int]
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        x = nn.relu(BatchNorm(name='bn1')(Conv(self.widths[0], 3, name='conv1')(x)))
        feats, preacts, convs = [x], [], [x]
        for stage, features in enumerate(self.widths[1:], start=1):
            for block in range(self.blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                maps, preact = BasicBlock(features, stride, name=f'layer{stage}.{block}')(x)
                x = maps[-1]
                convs.extend(maps)
            feats.append(x)
            preacts.append(preact)
        embed = global_mean(x)
        head = Dense(self.num_classes, name='fc')
        return Outputs(head(embed), tuple(feats), tuple(preacts), embed, convs=tuple(convs))


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    depth, widths = NAMES[name]
    return of_depth(name, depth, widths, num_classes, dtype, normalization)


def of_depth(
    name: str,
    depth: int,
    widths: tuple[int, int, int, int],
    num_classes: int,
    dtype: Any,
    normalization: Normalization,
) -> Network:
    """The network of depth 6n + 2 with these widths of the stem and of the three stages."""
    blocks = (depth - 2) // 6
    module = ResNet(blocks, widths, num_classes)
    names = conv_names((blocks,) * 3, 2)
    return wrap(name, module, tail=('fc/*',), dtype=dtype, normalization=normalization, convs=names)
