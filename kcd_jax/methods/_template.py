"""NAME: one line on the idea (authors, venue, "title").

The formula with its equation number, the meaning of B, K and other symbols, its loss weights, and how and why it
differs from the authors' code.

Copy this file to `methods/NAME.py`; `method=NAME` and the common tests find it there. Files whose names begin with '_'
are not methods. See docs/adding_a_method.md.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

# gamma * CE + alpha * KD + beta * extra, as in the paper's table.
WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)
# Add `RELATIONAL = True` if a point's term depends on the other points of the batch.


def embedding_loss(projected: Array, target: Array, scale: float) -> Array:
    """f32[B]: one value per point, so that policies can weight points; the batch loss is their mean."""
    return jnp.mean(((projected - target) / scale) ** 2, axis=-1)


@ranges(scale={'above': 0, 'high': 1e6})
def make(*, scale: float = 1.0) -> Method:
    """Builds the method. The keywords are its only hyper-parameters: the config reads them from here.

    Args:
      scale: divides the difference, in the units of the embeddings.
    """

    def init(key, setup):
        """Returns (trainable parameters, other state); refuses unsuitable networks in one line."""
        if setup.student.embed is None:
            raise ValueError('template needs a pooled vector (Outputs.embed), and the student has none; use kd')
        sizes = setup.student.embed.shape[-1], setup.teacher.embed.shape[-1]
        return {'projection': _parts.linear_init(key, *sizes)}, {}

    def loss(params, state, student, teacher, batch, clock, key):
        """The method's own term; the cross entropy and KD are added outside. The teacher gets no gradient."""
        del batch, clock, key
        projected = _parts.linear(params['projection'], student.embed.astype(jnp.float32))
        target = jax.lax.stop_gradient(teacher.embed.astype(jnp.float32))
        return LossOut(extra=embedding_loss(projected, target, scale), state=state)

    return Method(loss=loss, init=init, needs=('embed',))
