"""NAME: one line on the architecture (authors, year), and where it differs from the paper.

Copy this file to `networks/NAME.py`: the names in NAMES then work in every config, in the shared tests and in
`python -m kcd_jax networks`, with no other edit. Files whose names begin with '_' are not families. See
docs/adding_a_network.md.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap

# name: (channels of each stage)
NAMES: dict[str, tuple[int, ...]] = {'template': (16, 32)}


class Template(nn.Module):
    """A stem and one convolution per stage.

    Modules are named as in the public PyTorch code, if there is any, so that its checkpoints can be imported. BatchNorm
    needs no flag: it trains exactly when the caller may change the running statistics.
    """

    widths: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        """x: [B, H, W, 3], normalised, in the dtype of the computation; H and W are at least 8."""
        x = nn.relu(BatchNorm(name='bn1')(Conv(16, 3, name='conv1')(x)))
        feats, preacts = [x], []  # the stem's tap; each stage adds one to both
        for stage, features in enumerate(self.widths, start=1):
            preact = BatchNorm(name=f'layer{stage}.1')(Conv(features, 3, 2, name=f'layer{stage}.0')(x))
            x = nn.relu(preact)
            feats.append(x)
            preacts.append(preact)
        embed = global_mean(x)
        return Outputs(Dense(self.num_classes, name='fc')(embed), tuple(feats), tuple(preacts), embed)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization = 'cifar100'
) -> Network:
    """The network `name` of this family; `tail` matches the parameters after the last feature map."""
    return wrap(name, Template(NAMES[name], num_classes), tail=('fc/*',), dtype=dtype, normalization=normalization)
