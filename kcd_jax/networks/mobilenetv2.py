"""MobileNetV2 at half width for 32x32 images (Sandler et al. 2018; the variant of CRD's code: ReLU, a strided stem)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap

NAMES = ('mobilenetv2',)

# (expansion, channels, blocks, stride of the first block); feature maps are taken after the groups in _TAPS.
_GROUPS = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
_TAPS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1; the input is added where its shape is unchanged."""

    expansion: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = x.shape[-1] * self.expansion
        y = nn.relu(BatchNorm(name='conv.1')(Conv(hidden, 1, name='conv.0')(x)))
        y = nn.relu(BatchNorm(name='conv.4')(Conv(hidden, 3, self.stride, hidden, name='conv.3')(y)))
        y = BatchNorm(name='conv.7')(Conv(self.features, 1, name='conv.6')(y))
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """Strided stem, seven groups, 1x1 convolution to 1280, global average, classifier. The feature maps are linear."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        x = nn.relu(BatchNorm(name='conv1.1')(Conv(16, 3, 2, name='conv1.0')(x)))
        feats = [x]
        for group, (expansion, features, blocks, stride) in enumerate(_GROUPS):
            for block in range(blocks):
                name = f'blocks.{group}.{block}'
                x = InvertedResidual(expansion, features, stride if block == 0 else 1, name=name)(x)
            if group in _TAPS:
                feats.append(x)
        x = nn.relu(BatchNorm(name='conv2.1')(Conv(1280, 1, name='conv2.0')(x)))
        embed = global_mean(x)
        head = Dense(self.num_classes, ('normal', 0.01), ('constant', 0.0), name='classifier.0')
        return Outputs(head(embed), tuple(feats), tuple(feats[1:]), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    tail = ('conv2.*', 'classifier.0/*')
    return wrap(name, MobileNetV2(num_classes), tail=tail, dtype=dtype, normalization=normalization)
