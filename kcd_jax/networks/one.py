"""ONE's networks of three branches (Lan et al. 2018): a shared trunk, three last stages, and a gate that weighs them.

Outputs.logits, the taps and `embed` are those of the first branch, which is the student that remains;
aux['branches'] f32[B, 3, K] are all logits and aux['gate'] f32[B, 3] their weights, which sum to 1.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, Outputs
from kcd_jax.networks.layers import BatchNorm, Conv, Dense, Normalization, global_mean, wrap
from kcd_jax.networks.resnet import BasicBlock

# name: blocks of each stage; four stages are ImageNet's, with its stem.
NAMES = {'resnet8_one': (1, 1, 1), 'resnet32_one': (5, 5, 5), 'resnet18_one': (2, 2, 2, 2)}
_BRANCHES = 3


class Branches(nn.Module):
    """A residual network whose last stage and classifier exist three times.

    Attributes:
      blocks: in each stage, of basic blocks. widths: of the stem, then of each stage. imagenet: a 7x7 strided stem and
        max-pooling instead of a 3x3 stem.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    imagenet: bool
    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Outputs:
        stem = Conv(self.widths[0], 7, 2, name='conv1') if self.imagenet else Conv(self.widths[0], 3, name='conv1')
        x = nn.relu(BatchNorm(name='bn1')(stem(x)))
        feats, preacts = [x], []
        if self.imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        last = len(self.blocks)
        for stage in range(1, last):
            x, preact = self._stage(x, stage, '')
            feats.append(x)
            preacts.append(preact)
        ends, logits = [], []
        for branch in range(1, _BRANCHES + 1):
            ends.append(self._stage(x, last, f'_{branch}'))
            logits.append(Dense(self.num_classes, name=f'fc_{branch}')(global_mean(ends[-1][0])))
        gate = BatchNorm(name='gate_norm')(Dense(_BRANCHES, name='gate')(global_mean(x)))
        gate = nn.softmax(nn.relu(gate.astype(jnp.float32)))
        feats.append(ends[0][0])
        preacts.append(ends[0][1])
        aux = {'branches': jnp.stack(logits, axis=1), 'gate': gate}
        return Outputs(logits[0], tuple(feats), tuple(preacts), global_mean(ends[0][0]), aux)

    def _stage(self, x: Array, stage: int, suffix: str) -> tuple[Array, Array]:
        """(after ReLU, before it) of stage `stage`, named 'layer{stage}{suffix}'."""
        for block in range(self.blocks[stage - 1]):
            stride = 2 if stage > 1 and block == 0 else 1
            maps, preact = BasicBlock(self.widths[stage], stride, name=f'layer{stage}{suffix}.{block}')(x)
            x = maps[-1]
        return x, preact


def make(
    name: str, num_classes: int, *, dtype: Any = jnp.float32, normalization: Normalization | None = None
) -> Network:
    """The network `name` of this family; `normalization` defaults to the data set's that it was made for."""
    imagenet = len(NAMES[name]) == 4
    widths = (64, 64, 128, 256, 512) if imagenet else (16, 16, 32, 64)
    module = Branches(NAMES[name], widths, imagenet, num_classes)
    normalization = normalization or ('imagenet' if imagenet else 'cifar100')
    # After the last tap of the first branch comes its classifier; the other branches are parallel to it.
    return wrap(name, module, tail=('fc_1/*',), dtype=dtype, normalization=normalization)
