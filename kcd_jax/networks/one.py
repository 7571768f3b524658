"""ONE's networks with three branches (Lan et al. 2018): a shared trunk, three last stages, and a gate that weighs them.

Outputs.logits, the taps and `embed` are those of the first branch, which is the student that remains;
aux['branches'] f32[B, 3, K] are the logits of all branches and aux['gate'] f32[B, 3] their weights, which sum to 1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Dense, Normalization, global_mean, wrap
from kcd_jax.networks.resnet import NAMES as RESNETS
from kcd_jax.networks.resnet import Architecture, stage, stem

# name: the network whose last stage is branched
NAMES = {'resnet8_one': 'resnet8', 'resnet32_one': 'resnet32', 'resnet18_one': 'resnet18'}
_BRANCHES = 3


class Branches(nn.Module):
    """A residual network whose last stage and classifier exist three times."""

    architecture: Architecture
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        """x: [B, H, W, 3], normalised."""
        tap, x = stem(x, self.architecture)
        feats, preacts = [tap], []
        last = len(self.architecture.blocks)
        for number in range(1, last):
            maps, preact = stage(x, self.architecture, number)
            x = maps[-1]
            feats.append(x)
            preacts.append(preact)
        ends, logits = [], []
        for branch in range(1, _BRANCHES + 1):
            maps, preact = stage(x, self.architecture, last, f'_{branch}')
            ends.append((maps[-1], preact))
            logits.append(Dense(self.num_classes, name=f'fc_{branch}')(global_mean(maps[-1])))
        gate = BatchNorm(name='gate_norm')(Dense(_BRANCHES, name='gate')(global_mean(x)))
        gate = nn.softmax(nn.relu(gate.astype(jnp.float32)))
        feats.append(ends[0][0])
        preacts.append(ends[0][1])
        aux = {'branches': jnp.stack(logits, axis=1), 'gate': gate}
        return Outputs(logits[0], tuple(feats), tuple(preacts), global_mean(ends[0][0]), aux)


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization | None = None
) -> Network:
    """The network `name`; `normalization` defaults to that of the network it is made from."""
    architecture = RESNETS[NAMES[name]]
    normalization = normalization or architecture.normalization
    # After the last tap of the first branch comes its classifier; the other branches are parallel to it.
    return wrap(name, Branches(architecture, num_classes), tail=('fc_1/*',), dtype=dtype, normalization=normalization)
