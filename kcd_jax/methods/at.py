"""AT: attention maps (Zagoruyko, Komodakis, ICLR 2017, "Paying More Attention to Attention").

For every stage, with the larger map average-pooled first: A(F) = vec(mean_c F^2) / ||.||_2 (p = 2); extra = sum over
stages of the mean over space of (A_s - A_t)^2. This is a mean as in the public distillation code, for which beta = 1000
was tuned, not the paper's norm of the difference.
"""

from __future__ import annotations

import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.methods import _parts

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1000.0)


def attention(features: Array) -> Array:
    """[B, h, w, c] -> [B, h * w], of unit length."""
    energy = jnp.mean(features**2, axis=-1)
    return _parts.normalise(energy.reshape(energy.shape[0], -1))


def attention_loss(student: Array, teacher: Array) -> Array:
    """f32[B] for one pair of maps of equal size."""
    return _parts.mean_per_row((attention(student) - attention(teacher)) ** 2)


def make() -> Method:
    """Builds the method; its only hyper-parameter is beta."""

    def loss(params, state, student, teacher, batch, clock, key):
        del params, clock, key
        extra = jnp.zeros_like(batch.weight)
        for pair in _parts.stage_maps(student.feats, teacher.feats):
            extra = extra + attention_loss(*pair)
        return LossOut(extra=extra, state=state)

    return Method(loss=loss, needs=('feats',))
