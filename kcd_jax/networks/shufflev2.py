"""ShuffleNetV2 (Ma et al. 2018): at full width for 32x32 images, and x0.5 for ImageNet.

The two follow different public code, so their layers have different names, but the units are the same: a strided unit
convolves two halves, the others pass one half on; the halves are concatenated and shuffled.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, shuffle_channels, wrap

NAMES = ('shufflev2', 'shufflev2_x0_5')

# The names of (conv, norm) of a unit: the left half's depthwise and 1x1, then the right half's 1x1, depthwise, 1x1.
_CIFAR_DOWN = tuple((f'conv{number}', f'bn{number}') for number in range(1, 6))
_CIFAR_KEEP = ((), (), *_CIFAR_DOWN[:3])
_IMAGENET = (
    ('branch1.0', 'branch1.1'),
    ('branch1.2', 'branch1.3'),
    ('branch2.0', 'branch2.1'),
    ('branch2.3', 'branch2.4'),
    ('branch2.5', 'branch2.6'),
)


class ShuffleUnit(nn.Module):
    """One unit of `features` output channels; returns (after shuffle, concatenation before ReLU and shuffle)."""

    features: int
    down: bool
    names: tuple[tuple[str, ...], ...]

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        half, stride = self.features // 2, 2 if self.down else 1

        def pointwise(y: Array, names: tuple[str, ...]) -> Array:
            conv, norm = names
            return BatchNorm(name=norm)(Conv(half, 1, init='torch', name=conv)(y))

        def depthwise(y: Array, names: tuple[str, ...]) -> Array:
            conv, norm = names
            features = y.shape[-1]
            return BatchNorm(name=norm)(Conv(features, 3, stride, features, init='torch', name=conv)(y))

        left_depthwise, left_pointwise, entry, middle, exit_ = self.names
        if self.down:
            left_sum = pointwise(depthwise(x, left_depthwise), left_pointwise)
            left, right = nn.relu(left_sum), x
        else:
            # Not by indexing, which becomes a gather where the size of the batch is symbolic.
            left = left_sum = lax.slice_in_dim(x, 0, x.shape[-1] // 2, axis=-1)
            right = lax.slice_in_dim(x, x.shape[-1] // 2, x.shape[-1], axis=-1)
        right_sum = pointwise(depthwise(nn.relu(pointwise(right, entry)), middle), exit_)
        y = shuffle_channels(jnp.concatenate([left, nn.relu(right_sum)], -1), 2)
        return y, jnp.concatenate([left_sum, right_sum], -1)


class ShuffleV2(nn.Module):
    """Stem, three stages, 1x1 convolution to 1024, global average, classifier."""

    stages: tuple[int, int, int]
    imagenet: bool
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        conv = functools.partial(Conv, init='torch')
        names: Mapping[str, Any] = _IMAGENET_NAMES if self.imagenet else _CIFAR_NAMES
        stem = conv(24, 3, 2, name=names['stem'][0]) if self.imagenet else conv(24, 1, name=names['stem'][0])
        x = nn.relu(BatchNorm(name=names['stem'][1])(stem(x)))
        feats, preacts = [x], []
        if self.imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (features, units) in enumerate(zip(self.stages, (4, 8, 4), strict=True)):
            for unit in range(units):
                layers = names['down'] if unit == 0 else names['keep']
                x, preact = ShuffleUnit(features, unit == 0, layers, name=f'{names["stages"][stage]}.{unit}')(x)
            feats.append(x)
            preacts.append(preact)
        x = nn.relu(BatchNorm(name=names['last'][1])(conv(1024, 1, name=names['last'][0])(x)))
        embed = global_mean(x)
        logits = Dense(self.num_classes, name=names['classifier'])(embed)
        return Outputs(logits, tuple(feats), tuple(preacts), embed)


_CIFAR_NAMES = {
    'stem': ('conv1', 'bn1'),
    'stages': ('layer1', 'layer2', 'layer3'),
    'down': _CIFAR_DOWN,
    'keep': _CIFAR_KEEP,
    'last': ('conv2', 'bn2'),
    'classifier': 'linear',
}
_IMAGENET_NAMES = {
    'stem': ('conv1.0', 'conv1.1'),
    'stages': ('stage2', 'stage3', 'stage4'),
    'down': _IMAGENET,
    'keep': _IMAGENET,
    'last': ('conv5.0', 'conv5.1'),
    'classifier': 'fc',
}


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization | None = None
) -> Network:
    """The network `name` of this family; `normalization` defaults to that of its data set."""
    if name == 'shufflev2':
        module, tail = ShuffleV2((116, 232, 464), False, num_classes), ('conv2/*', 'bn2/*', 'linear/*')
    else:
        module, tail = ShuffleV2((48, 96, 192), True, num_classes), ('conv5.*', 'fc/*')
    normalization = normalization or ('cifar100' if name == 'shufflev2' else 'imagenet')
    return wrap(name, module, tail=tail, dtype=dtype, normalization=normalization)
