"""ResNet18/34/50 with a 3x3 stem and no pooling, for 32x32 images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap
from kcd_jax.networks.resnet import BasicBlock, conv_names

# name: (blocks in each of the four stages, whether they are bottlenecks)
NAMES: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    'resnet18_cifar': ((2, 2, 2, 2), False),
    'resnet34_cifar': ((3, 4, 6, 3), False),
    'resnet50_cifar': ((3, 4, 6, 3), True),
}


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 to four times the width, and a shortcut; returns what `BasicBlock` does."""

    features: int
    stride: int
    shortcut: str = 'downsample'

    @nn.compact
    def __call__(self, x: Array) -> tuple[tuple[Array, ...], Array]:
        first = nn.relu(BatchNorm(name='bn1')(Conv(self.features, 1, name='conv1')(x)))
        second = nn.relu(BatchNorm(name='bn2')(Conv(self.features, 3, self.stride, name='conv2')(first)))
        y = BatchNorm(name='bn3')(Conv(4 * self.features, 1, name='conv3')(second))
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = Conv(4 * self.features, 1, self.stride, name=f'{self.shortcut}.0')(x)
            x = BatchNorm(name=f'{self.shortcut}.1')(x)
        return (first, second, nn.relu(y + x)), y + x


def stages(
    x: Array, blocks: tuple[int, ...], bottleneck: bool, shortcut: str
) -> tuple[list[Array], list[Array], list[Array]]:
    """The stages 'layer1' to 'layer4', of widths 64 to 512; called inside a module's compact method.

    Returns:
      (each stage's output after ReLU, each stage's sum before it, the maps after each convolution).
    """
    block_type = Bottleneck if bottleneck else BasicBlock
    feats, preacts, convs = [], [], []
    for stage, repeats in enumerate(blocks, start=1):
        for block in range(repeats):
            stride = 2 if stage > 1 and block == 0 else 1
            maps, preact = block_type(32 * 2**stage, stride, shortcut, name=f'layer{stage}.{block}')(x)
            x = maps[-1]
            convs.extend(maps)
        feats.append(x)
        preacts.append(preact)
    return feats, preacts, convs


class CifarResNet(nn.Module):
    """3x3 stem, four stages, global average, classifier."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        stem = nn.relu(BatchNorm(name='bn1')(Conv(64, 3, name='conv1')(x)))
        feats, preacts, convs = stages(stem, self.blocks, self.bottleneck, 'shortcut')
        embed = global_mean(feats[-1])
        head = Dense(self.num_classes, name='linear')
        return Outputs(head(embed), (stem, *feats), tuple(preacts), embed, convs=(stem, *convs))


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    blocks, bottleneck = NAMES[name]
    module, names = CifarResNet(blocks, bottleneck, num_classes), conv_names(blocks, 3 if bottleneck else 2)
    return wrap(name, module, tail=('linear/*',), dtype=dtype, normalization=normalization, convs=names)
