"""RKD: relations of two and of three points (Park et al., CVPR 2019, "Relational Knowledge Distillation").

On pooled vectors e of a group: d_ij = ||e_i - e_j|| divided by its mean off the diagonal; psi_ijk = the cosine at i
between e_j - e_i and e_k - e_i. Both are compared by the Huber loss (delta = 1), averaged over all B^2 and B^3 entries
including the degenerate ones, which are 0. extra = 25 * distance + 50 * angle. Point i's term is the mean over j (and
k). B is the size of a group, 64.

Distances are computed from differences, not from a Gram matrix as in the public code: equal up to rounding, accurate
for close points, and safe with reduced-precision matrix products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)
RELATIONAL = True  # a point's term depends on the rest of the batch


def huber(x: Array, y: Array) -> Array:
    """x^2 / 2 inside |x - y| <= 1, |x - y| - 1/2 outside."""
    difference = jnp.abs(x - y)
    return jnp.where(difference < 1.0, 0.5 * difference**2, difference - 0.5)


def differences(embed: Array, group: int) -> Array:
    """[B, D] -> f32[n, g, g, D]: e_j - e_i at [., i, j]."""
    embed = _parts.in_groups(embed, group)
    return embed[:, None, :, :] - embed[:, :, None, :]


def distances(difference: Array) -> Array:
    """f32[n, g, g]: lengths divided by their off-diagonal mean, through which gradients flow; 0 on the diagonal.

    Clamping before the square root and masking the diagonal after it keeps all gradients finite.
    """
    size = difference.shape[1]
    length = jnp.sqrt(jnp.maximum(jnp.sum(difference**2, axis=-1), 1e-12))
    length = length * (1.0 - jnp.eye(size, dtype=jnp.float32))[None]
    mean = jnp.sum(length, axis=(1, 2), keepdims=True) / max(size * (size - 1), 1)
    return length / jnp.maximum(mean, 1e-12)


def angles(difference: Array) -> Array:
    """f32[n, g, g, g]: cosines at [., i, j, k]; 0 where two of the three points coincide."""
    unit = _parts.normalise(difference)
    return jnp.einsum('nijd,nikd->nijk', unit, unit)


def distance_loss(student: Array, teacher: Array, group: int) -> Array:
    """f32[B]."""
    pair = distances(differences(student, group)), distances(differences(teacher, group))
    return jnp.mean(huber(*pair), axis=-1).reshape(-1)


def angle_loss(student: Array, teacher: Array, group: int) -> Array:
    """f32[B]."""
    pair = angles(differences(student, group)), angles(differences(teacher, group))
    return jnp.mean(huber(*pair), axis=(-2, -1)).reshape(-1)


@ranges(
    distance={'low': 0, 'high': 1e6},
    angle={'low': 0, 'high': 1e6},
    group={'low': 2, 'high': 2**20},
)
def make(*, distance: float = 25.0, angle: float = 50.0, group: int = 64) -> Method:
    """Builds the method.

    Args:
      distance: weight of the term of two points, their distances.
      angle: weight of the term of three points, their angles.
      group: rows per group; relations are computed within a group.
    """

    def loss(params, state, student, teacher, batch, clock, key):
        del params, batch, clock, key
        target = jax.lax.stop_gradient(teacher.embed)
        extra = distance * distance_loss(student.embed, target, group) + angle * angle_loss(
            student.embed, target, group
        )
        return LossOut(extra=extra, state=state)

    return Method(loss=loss, needs=('embed',))
