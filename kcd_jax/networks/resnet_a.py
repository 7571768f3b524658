"""The CIFAR-10 ResNets of the paper's option A: shortcuts without parameters, which slice and pad with zeros."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap
from kcd_jax.networks.resnet import conv_names

# name: depth
NAMES: dict[str, int] = {f'resnet{depth}_a': depth for depth in (20, 32, 44, 56, 110)}


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions; where the width grows, every other pixel with zeros around its channels is the shortcut.

    Returns (the maps after each convolution's ReLU, the last sum before it).
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[tuple[Array, ...], Array]:
        inner = nn.relu(BatchNorm(name='bn1')(Conv(self.features, 3, self.stride, name='conv1')(x)))
        y = BatchNorm(name='bn2')(Conv(self.features, 3, name='conv2')(inner))
        if self.stride != 1 or x.shape[-1] != self.features:
            side = (self.features - x.shape[-1]) // 2
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (side, side)))
        return (inner, nn.relu(y + x)), y + x


class ResNetA(nn.Module):
    """Stem, three stages of `blocks` padded blocks, global average, classifier."""

    blocks: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        x = nn.relu(BatchNorm(name='bn1')(Conv(16, 3, name='conv1')(x)))
        feats, preacts, convs = [x], [], [x]
        for stage, features in enumerate((16, 32, 64), start=1):
            for block in range(self.blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                maps, preact = PaddedBlock(features, stride, name=f'layer{stage}.{block}')(x)
                x = maps[-1]
                convs.extend(maps)
            feats.append(x)
            preacts.append(preact)
        embed = global_mean(x)
        head = Dense(self.num_classes, name='linear')
        return Outputs(head(embed), tuple(feats), tuple(preacts), embed, convs=tuple(convs))


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'imagenet'
) -> Network:
    """The network `name` of this family; its public checkpoints were trained with ImageNet's normalisation."""
    blocks = (NAMES[name] - 2) // 6
    module, names = ResNetA(blocks, num_classes), conv_names((blocks,) * 3, 2)
    return wrap(name, module, tail=('linear/*',), dtype=dtype, normalization=normalization, convs=names)
