"""PKT: probabilistic knowledge transfer (Passalis, Tefas, ECCV 2018).

On pooled vectors scaled by 1 / (||e|| + 1e-7): S = (e e^T + 1) / 2, including the diagonal, with rows divided by their
sum; loss = mean over all B^2 entries of S_t log((S_t + 1e-7) / (S_s + 1e-7)), hence the large beta. Point i's term is
the mean of row i. B is the size of a group, 64.
"""

from __future__ import annotations

import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=30000.0)
RELATIONAL = True  # a point's term depends on the rest of the batch

EPS = 1e-7


def neighbour_probability(embed: Array, group: int) -> Array:
    """[B, D] -> f32[n, g, g]: rows that sum to 1."""
    embed = _parts.in_groups(embed, group)
    square = jnp.sum(embed**2, axis=-1, keepdims=True)
    length = jnp.where(square > 0.0, jnp.sqrt(jnp.where(square > 0.0, square, 1.0)), 0.0)
    embed = embed / (length + EPS)
    similarity = (jnp.einsum('nid,njd->nij', embed, embed) + 1.0) / 2.0
    return similarity / jnp.sum(similarity, axis=-1, keepdims=True)


def neighbour_loss(student: Array, teacher: Array, group: int) -> Array:
    """f32[B]."""
    p, q = neighbour_probability(student, group), neighbour_probability(teacher, group)
    # Cosines of -1 may round to slightly below it, and the logarithm of a negative number is NaN.
    p, q = jnp.maximum(p, 0.0), jnp.maximum(q, 0.0)
    return jnp.mean(q * jnp.log((q + EPS) / (p + EPS)), axis=-1).reshape(-1)


@ranges(group={'low': 2, 'high': 2**20})
def make(*, group: int = 64) -> Method:
    """Builds the method.

    Args:
      group: rows per group; probabilities are computed within a group.
    """

    def loss(params, state, student, teacher, batch, clock, key):
        del params, batch, clock, key
        return LossOut(extra=neighbour_loss(student.embed, teacher.embed, group), state=state)

    return Method(loss=loss, needs=('embed',))
