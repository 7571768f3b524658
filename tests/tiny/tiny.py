"""A network family for tests of the loop: four taps, compiled in a second or two.

The fixture `tiny_networks` extends `networks.__path__` by this folder: a user adds a family by adding a file.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, global_mean, wrap

NAMES = {'tiny': 4, 'tiny_one': 4, 'tiny_teacher': 24}


class Tiny(nn.Module):
    width: int
    num_classes: int
    branches: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(BatchNorm(name='bn1')(Conv(self.width, 3, 2, name='conv1')(x)))
        feats, preacts = [x], []
        for stage in (1, 2, 3):
            preact = BatchNorm(name=f'norm{stage}')(
                Conv(self.width, 3, 2 if stage == 2 else 1, name=f'layer{stage}')(x)
            )
            x = nn.relu(preact)
            feats.append(x)
            preacts.append(preact)
        embed = global_mean(x)
        logits, aux = Dense(self.num_classes, name='fc')(embed), {}
        if self.branches:
            others = [Dense(self.num_classes, name=f'fc_{branch}')(embed) for branch in (2, 3)]
            gate = nn.softmax(Dense(3, name='gate')(embed))
            aux = {'branches': jnp.stack([logits, *others], axis=1), 'gate': gate}
        return Outputs(logits, tuple(feats), tuple(preacts), embed, aux)


def make(name, num_classes, *, dtype=jnp.float32, normalization='none'):
    return wrap(
        name,
        Tiny(NAMES[name], num_classes, name == 'tiny_one'),
        tail=('fc/*',),
        dtype=dtype,
        normalization=normalization,
    )
