"""ConvNeXt (Liu et al. 2022) of the size Atto of timm, without stochastic depth.

Layers are named as in timm's convnext_atto ('stages.0.blocks.0.conv_dw'), whose two linear layers of a block are 1x1
convolutions. A map that the patches of the stem or of a reduction do not divide is padded with zeros at its right and
lower edge, so that images of any size are taken.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import Conv, Dense, LayerNorm, Normalization, Patches, drawn, global_mean, wrap


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Pixels of a side of the stem's patches, blocks and channels of each stage."""

    patch: int = 4
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    widths: tuple[int, ...] = (40, 80, 160, 320)


NAMES: dict[str, Architecture] = {
    'convnext_atto': Architecture(),
    'convnext_atto_2': Architecture(patch=2),  # for images of 32x32 pixels
}


class Block(nn.Module):
    """A depthwise 7x7 convolution and two 1x1 ones, scaled per channel and added to the input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        y = Conv(width, 7, groups=width, bias=True, init='small', name='conv_dw')(x)
        y = Conv(4 * width, 1, bias=True, init='small', name='mlp.fc1')(LayerNorm(name='norm')(y))
        y = Conv(width, 1, bias=True, init='small', name='mlp.fc2')(jax.nn.gelu(y, approximate=False))
        gamma = self.param('gamma', drawn('constant', 1e-6, (width,)))
        return x + y * gamma.astype(y.dtype).reshape(1, 1, 1, -1)


class ConvNeXt(nn.Module):
    """A stem of patches, stages of blocks with a reduction before all but the first, average, LayerNorm, classifier."""

    architecture: Architecture
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        """x: [B, H, W, 3], normalised."""
        sizes = self.architecture
        x = LayerNorm(name='stem.1')(Patches(sizes.widths[0], sizes.patch, name='stem.0')(x))
        feats = [x]
        for stage, (blocks, width) in enumerate(zip(sizes.blocks, sizes.widths, strict=True)):
            if stage:
                x = LayerNorm(name=f'stages.{stage}.downsample.0')(x)
                x = Patches(width, 2, name=f'stages.{stage}.downsample.1')(x)
            for block in range(blocks):
                x = Block(name=f'stages.{stage}.blocks.{block}')(x)
            feats.append(x)
        embed = LayerNorm(name='head.norm')(global_mean(x))
        small = {'kernel_init': ('normal', 0.02), 'bias_init': ('constant', 0.0)}
        # The sums that blocks return are not activated: they are maps and pre-activations in one.
        return Outputs(Dense(self.num_classes, **small, name='head.fc')(embed), tuple(feats), tuple(feats[1:]), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'imagenet'
) -> Network:
    """The network `name`."""
    module = ConvNeXt(NAMES[name], num_classes)
    return wrap(name, module, tail=('head.norm/*', 'head.fc/*'), dtype=dtype, normalization=normalization)
