"""VGG with BatchNorm for 32x32 images (Simonyan & Zisserman 2015): pooling after three blocks, a global average."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, halve_by_max, wrap

# name: convolutions in each of the five blocks
NAMES: dict[str, tuple[int, int, int, int, int]] = {
    'vgg8': (1, 1, 1, 1, 1),
    'vgg11': (1, 1, 2, 2, 2),
    'vgg13': (2, 2, 2, 2, 2),
    'vgg16': (2, 2, 3, 3, 3),
    'vgg19': (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five blocks of conv-BN-ReLU; pooling after the first three, and after the fourth for images of 64 pixels.

    The first block counts as the stem: its pre-activation is not in `preacts`.
    """

    repeats: tuple[int, int, int, int, int]
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        pools = 4 if x.shape[1] == 64 else 3
        feats, preacts = [], []
        for block, (repeats, features) in enumerate(zip(self.repeats, _WIDTHS, strict=True)):
            for conv in range(repeats):
                x = Conv(features, 3, bias=True, name=f'block{block}.{3 * conv}')(x)
                preact = BatchNorm(name=f'block{block}.{3 * conv + 1}')(x)
                x = nn.relu(preact)
            feats.append(x)
            preacts.append(preact)
            if block < pools:
                x = halve_by_max(x)
        embed = global_mean(x)
        head = Dense(self.num_classes, ('normal', 0.01), ('constant', 0.0), name='classifier')
        return Outputs(head(embed), tuple(feats), tuple(preacts[1:]), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family."""
    module = VGG(NAMES[name], num_classes)
    return wrap(name, module, tail=('classifier/*',), dtype=dtype, normalization=normalization)
