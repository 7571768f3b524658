"""SP: similarity-preserving distillation (Tung, Mori, ICCV 2019).

On the last feature map: f = [B, h*w*c], G = f f^T with rows of unit length, loss = sum (G_t - G_s)^2 / B^2. Point i's
term is the sum of row i divided by B, so that the mean over points is the published value. B is the size of a group,
64 as the paper's batch, on any number of devices.
"""

from __future__ import annotations

import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=3000.0)
RELATIONAL = True  # a point's term depends on the rest of the batch


def similarity(features: Array, group: int) -> Array:
    """[B, ...] -> f32[B / g, g, g], rows of unit length."""
    features = _parts.in_groups(features, group)
    return _parts.normalise(jnp.einsum('nid,njd->nij', features, features))


def similarity_loss(student: Array, teacher: Array, group: int) -> Array:
    """f32[B]: the mean of row i of the squared difference."""
    difference = similarity(student, group) - similarity(teacher, group)
    return jnp.mean(difference**2, axis=-1).reshape(-1)


@ranges(group={'low': 2, 'high': 2**20})
def make(*, group: int = 64) -> Method:
    """Builds the method.

    Args:
      group: rows per group; similarities are computed within a group.
    """

    def loss(params, state, student, teacher, batch, clock, key):
        del params, batch, clock, key
        return LossOut(extra=similarity_loss(student.feats[-1], teacher.feats[-1], group), state=state)

    return Method(loss=loss, needs=('feats',))
