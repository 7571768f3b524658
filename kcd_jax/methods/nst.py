"""NST: neuron selectivity transfer (Huang, Wang 2017), with the squared linear kernel.

For every stage, at equal size, channels are unit vectors over space and k(a, b) = (a . b)^2. extra is the squared
maximum mean discrepancy, mean k(t, t) + mean k(s, s) - 2 mean k(s, t) with means over pairs of channels, summed over
stages. The first term is constant.
"""

from __future__ import annotations

import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.methods import _parts

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=50.0)


def channels(features: Array) -> Array:
    """[B, h, w, c] -> f32[B, c, h * w], each channel of unit length."""
    rows, height, width, count = features.shape
    return _parts.normalise(jnp.swapaxes(features.reshape(rows, height * width, count), 1, 2))


def kernel_mean(a: Array, b: Array) -> Array:
    """f32[B]: mean over pairs of channels of (a . b)^2."""
    return _parts.mean_per_row(jnp.einsum('bip,bjp->bij', a, b) ** 2)


def discrepancy(student: Array, teacher: Array) -> Array:
    """f32[B] for one pair of maps of equal size."""
    s, t = channels(student), channels(teacher)
    return kernel_mean(t, t) + kernel_mean(s, s) - 2.0 * kernel_mean(s, t)


def make() -> Method:
    """Builds the method; its only hyper-parameter is beta."""

    def loss(params, state, student, teacher, batch, clock, key):
        del params, clock, key
        extra = jnp.zeros_like(batch.weight)
        for pair in _parts.stage_maps(student.feats, teacher.feats):
            extra = extra + discrepancy(*pair)
        return LossOut(extra=extra, state=state)

    return Method(loss=loss, needs=('feats',))
