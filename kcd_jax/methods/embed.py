"""EMBED: the student's pooled vector is regressed on the teacher's embedding, for teachers that give nothing else.

Self-supervised networks (DINO and the like) have embeddings and no classes. With the student's pooled vector e_s, the
teacher's embedding e_t of width D and a projection g, a linear layer or an MLP with one hidden layer of ReLUs:

  cosine: extra = 1 - <g(e_s), e_t> / (|g(e_s)| |e_t|)      mse: extra = sum_d (g(e_s)_d - e_t,d)^2 / D

This is the hint of FitNets (Romero et al., ICLR 2015) for vectors. The projection is discarded after training. It
trains no logits: with gamma and alpha 0, as here, there is no prediction whose entropy could be taken, so the recorded
value of a point is its own loss, and the student is judged by its embeddings (the mean cosine to the teacher's; a
linear probe and nearest neighbours where there are labels).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Outputs, PyTree, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=0.0, alpha=0.0, beta=1.0)
DISTANCES = ('cosine', 'mse')


def project(params: PyTree, pooled: Array) -> Array:
    """[B, D_s] -> f32[B, D_t]."""
    x = pooled.astype(jnp.float32)
    if 'hidden' in params:
        x = jax.nn.relu(_parts.linear(params['hidden'], x))
    return _parts.linear(params['out'], x)


def cosine(x: Array, y: Array) -> Array:
    """f32[B] in [-1, 1]; 0 for a zero vector."""
    return jnp.sum(_parts.normalise(x) * _parts.normalise(y), axis=-1)


@ranges(distance={'choices': DISTANCES}, hidden={'low': 0, 'high': 2**16})
def make(*, distance: str = 'cosine', hidden: int = 0) -> Method:
    """Builds the method.

    Args:
      distance: cosine, or mse: the mean squared difference over the dimensions.
      hidden: width of the projection's hidden layer; 0: a linear projection.
    """

    def init(key: Array, setup):
        for who, outputs in (('student', setup.student), ('teacher', setup.teacher)):
            if outputs.embed is None:
                raise ValueError(f'embed needs a pooled vector (Outputs.embed), and the {who} has none')
        size, target = setup.student.embed.shape[-1], setup.teacher.embed.shape[-1]
        hidden_key, out_key = jax.random.split(key)
        params = {'hidden': _parts.linear_init(hidden_key, size, hidden)} if hidden else {}
        return {**params, 'out': _parts.linear_init(out_key, hidden or size, target)}, {}

    def loss(params, state, student, teacher, batch, clock, key):
        del batch, clock, key
        projected = project(params, student.embed)
        target = jax.lax.stop_gradient(teacher.embed.astype(jnp.float32))
        if distance == 'cosine':
            return LossOut(extra=1.0 - cosine(projected, target), state=state)
        return LossOut(extra=jnp.mean((projected - target) ** 2, axis=-1), state=state)

    def similarity(params: PyTree, student: Outputs, teacher: Outputs) -> Array:
        return cosine(project(params, student.embed), teacher.embed.astype(jnp.float32))

    return Method(loss=loss, init=init, needs=('embed',), predicts=False, similarity=similarity)
