"""CRD: contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020).

Each network's pooled vectors are embedded by a linear layer and scaled to unit length. Two banks hold one embedding per
training point. Each student embedding is contrasted with the teacher's bank, its own point against `num_negatives`
points of other classes, and vice versa; extra is the sum of both sides (`_contrast.noise_contrast`). Then the banks
move half-way to the new embeddings. Both linear layers are trained with the student, with weight decay.

Differences from the public code: negatives are drawn on the device, with replacement. The number of points in the
formula is that of the whole training set, even if a policy trains on fewer. The papers' row "CRD" has alpha = 1.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, PyTree, Weights
from kcd_jax.methods import _contrast, _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=0.8)


def embed(params: PyTree, pooled: Array) -> Array:
    """[B, D] -> f32[B, size], of unit length."""
    return _parts.normalise(_parts.linear(params, pooled.astype(jnp.float32)))


@ranges(
    num_negatives={'low': 1, 'high': 2**20},
    score_temperature={'low': 0.001, 'high': 1000},
    bank_momentum={'low': 0, 'below': 1},
    size={'low': 1, 'high': 2**16},
)
def make(
    *, num_negatives: int = 16384, score_temperature: float = 0.07, bank_momentum: float = 0.5, size: int = 128
) -> Method:
    """Builds the method.

    Args:
      num_negatives: K, negatives per point and step.
      score_temperature: tau of the scores; the KD term has its own.
      bank_momentum: weight of a bank's old row when it is updated.
      size: width of the embedding.
    """

    side = functools.partial(_contrast.noise_contrast, temperature=score_temperature)

    def init(key, setup):
        student_key, teacher_key, bank_key = jax.random.split(key, 3)
        params = {
            'embed_student': _parts.linear_init(student_key, setup.student.embed.shape[-1], size),
            'embed_teacher': _parts.linear_init(teacher_key, setup.teacher.embed.shape[-1], size),
        }
        return params, _contrast.bank_init(bank_key, setup, size)

    def loss(params, state, student, teacher, batch, clock, key):
        del clock
        negatives = _contrast.draw_negatives(key, state, batch.label, num_negatives)
        extra, state = _contrast.contrast(
            embed(params['embed_student'], student.embed),
            embed(params['embed_teacher'], teacher.embed),
            state,
            batch.index,
            batch.weight,
            negatives,
            bank_momentum,
            side,
        )
        return LossOut(extra=extra, state=state)

    return Method(loss=loss, init=init, needs=('embed',), needs_labels=True)
