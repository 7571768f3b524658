"""Residual networks (He et al. 2016): for CIFAR with three or four stages, and for ImageNet.

Layers are named as in the public PyTorch code of each network, which differs in the names of the projections and of the
classifier.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What distinguishes the residual networks.

    Attributes:
      blocks: number of blocks in each stage.
      widths: channels of the stem, then of each stage; a bottleneck returns four times as many.
      bottleneck: blocks of three convolutions (1x1, 3x3, 1x1) instead of two 3x3.
      imagenet: a 7x7 stem of stride 2 and max-pooling instead of a 3x3 stem.
      shortcut: name of the projection's layers; '' is the paper's option A, which has no parameters.
      classifier: name of the last layer.
      normalization: the default, that of the public checkpoints.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    imagenet: bool = False
    shortcut: str = 'downsample'
    classifier: str = 'fc'
    normalization: str = 'cifar100'


def _cifar(depth: int, *widths: int, **other: Any) -> Architecture:
    """Depth 6n + 2: three stages of n basic blocks."""
    return Architecture(((depth - 2) // 6,) * 3, widths, **other)


_FOUR_STAGES = (64, 64, 128, 256, 512)
_18, _34, _101 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3)  # ResNet-50 has the blocks of 34
_AS_IN_CIFAR = {'shortcut': 'shortcut', 'classifier': 'linear'}
_AS_IN_IMAGENET = {'imagenet': True, 'normalization': 'imagenet'}

NAMES: dict[str, Architecture] = {
    **{f'resnet{depth}': _cifar(depth, 16, 16, 32, 64) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    'resnet8x4': _cifar(8, 32, 64, 128, 256),
    'resnet32x4': _cifar(32, 32, 64, 128, 256),
    # A quarter of the width: the student of the digits demonstration, seconds per epoch on two cores.
    'resnet8x0_25': _cifar(8, 4, 4, 8, 16),
    # KR's narrowed students. The paper (Tables 1 and 2) gives only the parameters, about 0.09 M and 0.17 M; these
    # widths come nearest.
    'resnet8_kr': _cifar(8, 17, 17, 34, 69),
    'resnet14_kr': _cifar(14, 15, 15, 31, 62),
    # Option A; the public checkpoints, for CIFAR-10, were trained with ImageNet's normalization.
    **{
        f'resnet{depth}_a': _cifar(depth, 16, 16, 32, 64, shortcut='', classifier='linear', normalization='imagenet')
        for depth in (20, 32, 44, 56, 110)
    },
    'resnet18_cifar': Architecture(_18, _FOUR_STAGES, **_AS_IN_CIFAR),
    'resnet34_cifar': Architecture(_34, _FOUR_STAGES, **_AS_IN_CIFAR),
    'resnet50_cifar': Architecture(_34, _FOUR_STAGES, bottleneck=True, **_AS_IN_CIFAR),
    'resnet18': Architecture(_18, _FOUR_STAGES, **_AS_IN_IMAGENET),
    'resnet34': Architecture(_34, _FOUR_STAGES, **_AS_IN_IMAGENET),
    'resnet50': Architecture(_34, _FOUR_STAGES, bottleneck=True, **_AS_IN_IMAGENET),
    'resnet101': Architecture(_101, _FOUR_STAGES, bottleneck=True, **_AS_IN_IMAGENET),
}


def shortcut(x: Array, features: int, stride: int, name: str) -> Array:
    """The residual branch's partner: the input, projected where its shape changes; called in a compact method.

    Without a name (option A) the projection is a slice, padded with zero channels on both sides.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    if not name:
        side = (features - x.shape[-1]) // 2
        return jnp.pad(
            lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1)), ((0, 0), (0, 0), (0, 0), (side, side))
        )
    return BatchNorm(name=f'{name}.1')(Conv(features, 1, stride, name=f'{name}.0')(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns (the map after each convolution's ReLU, the sum before the last)."""

    features: int
    stride: int
    shortcut: str = 'downsample'

    @nn.compact
    def __call__(self, x: Array) -> tuple[tuple[Array, ...], Array]:
        inner = nn.relu(BatchNorm(name='bn1')(Conv(self.features, 3, self.stride, name='conv1')(x)))
        y = BatchNorm(name='bn2')(Conv(self.features, 3, name='conv2')(inner))
        x = shortcut(x, self.features, self.stride, self.shortcut)
        return (inner, nn.relu(y + x)), y + x


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 to four times the width, and a shortcut; returns what `BasicBlock` does."""

    features: int
    stride: int
    shortcut: str = 'downsample'

    @nn.compact
    def __call__(self, x: Array) -> tuple[tuple[Array, ...], Array]:
        first = nn.relu(BatchNorm(name='bn1')(Conv(self.features, 1, name='conv1')(x)))
        second = nn.relu(BatchNorm(name='bn2')(Conv(self.features, 3, self.stride, name='conv2')(first)))
        y = BatchNorm(name='bn3')(Conv(4 * self.features, 1, name='conv3')(second))
        x = shortcut(x, 4 * self.features, self.stride, self.shortcut)
        return (first, second, nn.relu(y + x)), y + x


def stem(x: Array, architecture: Architecture) -> tuple[Array, Array]:
    """(tap after ReLU, input of the first stage); called in a compact method."""
    width = architecture.widths[0]
    conv = Conv(width, 7, 2, name='conv1') if architecture.imagenet else Conv(width, 3, name='conv1')
    tap = nn.relu(BatchNorm(name='bn1')(conv(x)))
    return tap, nn.max_pool(tap, (3, 3), (2, 2), ((1, 1), (1, 1))) if architecture.imagenet else tap


def stage(x: Array, architecture: Architecture, number: int, suffix: str = '') -> tuple[list[Array], Array]:
    """(the map after each convolution, the last sum before its ReLU) of a stage; called in a compact method.

    Args:
      x: [B, h, w, c].
      architecture: of the network.
      number: of the stage, from 1; its blocks are called 'layer{number}{suffix}.0', ...
      suffix: of the name, where a stage exists several times.
    """
    block_type = Bottleneck if architecture.bottleneck else BasicBlock
    all_maps = []
    for block in range(architecture.blocks[number - 1]):
        stride = 2 if number > 1 and block == 0 else 1
        name = f'layer{number}{suffix}.{block}'
        maps, preact = block_type(architecture.widths[number], stride, architecture.shortcut, name=name)(x)
        x = maps[-1]
        all_maps.extend(maps)
    return all_maps, preact


class ResNet(nn.Module):
    """Stem, stages, global average, classifier. The stem's tap is before the pooling."""

    architecture: Architecture
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        """x: [B, H, W, 3], normalised."""
        tap, x = stem(x, self.architecture)
        feats, preacts, convs = [tap], [], [tap]
        for number in range(1, len(self.architecture.blocks) + 1):
            maps, preact = stage(x, self.architecture, number)
            x = maps[-1]
            feats.append(x)
            preacts.append(preact)
            convs.extend(maps)
        embed = global_mean(x)
        logits = Dense(self.num_classes, name=self.architecture.classifier)(embed)
        return Outputs(logits, tuple(feats), tuple(preacts), embed, convs=tuple(convs))


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization | None = None
) -> Network:
    """The network `name`; `normalization` defaults to that of its public checkpoints."""
    architecture = NAMES[name]
    kernels = [
        f'layer{number}.{block}/conv{conv}/kernel'
        for number, blocks in enumerate(architecture.blocks, start=1)
        for block in range(blocks)
        for conv in range(1, 4 if architecture.bottleneck else 3)
    ]
    return wrap(
        name,
        ResNet(architecture, num_classes),
        tail=(f'{architecture.classifier}/*',),
        convs=('conv1/kernel', *kernels),
        dtype=dtype,
        normalization=normalization or architecture.normalization,
    )
