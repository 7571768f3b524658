"""Vision transformers (Dosovitskiy et al. 2021) of the shape of DeiT-Ti (Touvron et al. 2021), without its distillation
token.

Layers are named as in timm ('blocks.0.attn.qkv'). Images of any size are taken; one that the patches do not divide is
padded with zeros at its right and lower edge. Position embeddings are learned for the size of the images, so that
weights fit that size only. Feature maps are the patch tokens: of the embedding, and after each quarter of the blocks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import Dense, LayerNorm, Normalization, Patches, drawn, wrap

_STAGES = 4
_SMALL = {'kernel_init': ('normal', 0.02), 'bias_init': ('constant', 0.0)}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of a transformer: pixels of a patch's side, width of a token, blocks (a multiple of 4), heads."""

    patch: int
    width: int = 192
    depth: int = 12
    heads: int = 3


NAMES: dict[str, Architecture] = {
    'deit_tiny_16': Architecture(16),
    'deit_tiny_4': Architecture(4),  # for images of 32x32 pixels
    'vit_mini_4': Architecture(4, width=48, depth=4),
}


class Attention(nn.Module):
    """Multi-head self-attention [B, T, D] -> [B, T, D]; the softmax is computed in float32."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        qkv = Dense(3 * width, **_SMALL, name='qkv')(x)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum('bthd,bshd->bhts', query, key).astype(jnp.float32)
        weights = jax.nn.softmax(scores * (width // self.heads) ** -0.5, axis=-1).astype(x.dtype)
        x = jnp.einsum('bhts,bshd->bthd', weights, value).reshape(batch, tokens, width)
        return Dense(width, **_SMALL, name='proj')(x)


class Block(nn.Module):
    """Attention and two linear layers, each after a LayerNorm and added to its input."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x + Attention(self.heads, name='attn')(LayerNorm(name='norm1')(x))
        inner = Dense(4 * x.shape[-1], **_SMALL, name='mlp.fc1')(LayerNorm(name='norm2')(x))
        return x + Dense(x.shape[-1], **_SMALL, name='mlp.fc2')(jax.nn.gelu(inner, approximate=False))


class ViT(nn.Module):
    """Patches, a class token before them, blocks; the classifier reads the class token."""

    architecture: Architecture
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        """x: [B, H, W, 3], normalised."""
        sizes = self.architecture
        x = Patches(sizes.width, sizes.patch, name='patch_embed.proj')(x)
        batch, height, width, features = x.shape
        token = self.param('cls_token', drawn('normal', 0.02, (1, 1, features)))
        place = self.param('pos_embed', drawn('normal', 0.02, (1, 1 + height * width, features)))
        token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, features))
        x = jnp.concatenate([token, x.reshape(batch, -1, features)], axis=1) + place.astype(x.dtype)
        feats = [x[:, 1:].reshape(batch, height, width, features)]
        for number in range(sizes.depth):
            x = Block(sizes.heads, name=f'blocks.{number}')(x)
            if (number + 1) % (sizes.depth // _STAGES) == 0:
                feats.append(x[:, 1:].reshape(batch, height, width, features))
        embed = LayerNorm(name='norm')(x[:, 0])
        # The sums that blocks return are not activated: they are maps and pre-activations in one.
        return Outputs(Dense(self.num_classes, **_SMALL, name='head')(embed), tuple(feats), tuple(feats[1:]), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'imagenet'
) -> Network:
    """The transformer `name`."""
    module = ViT(NAMES[name], num_classes)
    return wrap(name, module, tail=('norm/*', 'head/*'), dtype=dtype, normalization=normalization)
