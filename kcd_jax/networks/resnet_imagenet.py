"""ResNet18/34/50/101 for ImageNet: 7x7 strided stem, max-pooling, stride on the 3x3 of the bottlenecks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap
from kcd_jax.networks.resnet import conv_names
from kcd_jax.networks.resnet_cifar import stages

# name: (blocks in each of the four stages, whether they are bottlenecks)
NAMES: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    'resnet18': ((2, 2, 2, 2), False),
    'resnet34': ((3, 4, 6, 3), False),
    'resnet50': ((3, 4, 6, 3), True),
    'resnet101': ((3, 4, 23, 3), True),
}


class ImageNetResNet(nn.Module):
    """Stem and pooling, four stages, global average, classifier. The stem's tap is before the pooling."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        stem = nn.relu(BatchNorm(name='bn1')(Conv(64, 7, 2, name='conv1')(x)))
        x = nn.max_pool(stem, (3, 3), (2, 2), ((1, 1), (1, 1)))
        feats, preacts, convs = stages(x, self.blocks, self.bottleneck, 'downsample')
        embed = global_mean(feats[-1])
        head = Dense(self.num_classes, name='fc')
        return Outputs(head(embed), (stem, *feats), tuple(preacts), embed, convs=(stem, *convs))


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'imagenet'
) -> Network:
    """The network `name` of this family."""
    blocks, bottleneck = NAMES[name]
    module, names = ImageNetResNet(blocks, bottleneck, num_classes), conv_names(blocks, 3 if bottleneck else 2)
    return wrap(name, module, tail=('fc/*',), dtype=dtype, normalization=normalization, convs=names)
