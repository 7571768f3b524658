"""WCoRD: Wasserstein contrastive representation distillation (Chen et al., CVPR 2021), our interpretation.

No public implementation is known. This follows the paper's outline and fills its gaps, and should be reported as such.
Both networks' pooled vectors are embedded by a linear layer, kept 1-Lipschitz by spectral normalisation (one power
iteration per step), and scaled to unit length. The critic is g(u, v) = <u, v> / score_temperature.

  global term: 'nce' (default), CRD's objective on these embeddings, or 'dual', the Wasserstein dual,
    -g(positive) + mean over negatives of g, on both sides. Negatives come from CRD's banks.
  local term: sum_ij pi_ij (1 - cos(t_i, s_j)) within a group of the batch, with pi from `iterations` of Sinkhorn
    (regulariser 0.05, uniform marginals); gradients flow through the cost only.

extra = global_weight * global + local_weight * local. The papers' row is very likely with alpha = 1.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, PyTree, Weights
from kcd_jax.methods import _contrast, _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)
RELATIONAL = True  # a point's term depends on the rest of the batch


def spectral_linear(params: PyTree, vector: Array, pooled: Array) -> tuple[Array, Array]:
    """A linear layer with its kernel divided by the largest singular value, followed by scaling to unit length.

    Args:
      params: 'kernel' [D, size], 'bias' [size].
      vector: f32[size], the estimate of the leading right singular vector.
      pooled: [B, D].

    Returns:
      (f32[B, size] of unit length, f32[size] the estimate after one power iteration, without a gradient).
    """
    kernel = jax.lax.stop_gradient(params['kernel'])
    left = _parts.normalise(kernel @ vector)
    vector = _parts.normalise(left @ kernel)
    norm = jnp.maximum(left @ params['kernel'] @ vector, 1e-12)
    scaled = {'kernel': params['kernel'] / norm, 'bias': params['bias']}
    return _parts.normalise(_parts.linear(scaled, pooled.astype(jnp.float32))), vector


def dual(score: Array, normaliser: Array, ready: Array, num_points: int, *, temperature: float) -> tuple[Array, Array]:
    """One side of the negated Wasserstein dual, f32[B]: the mean of g over the negatives minus g of column 0."""
    del ready, num_points
    return (jnp.mean(score[:, 1:], axis=1) - score[:, 0]) / temperature, normaliser


def transport_plan(cost: Array, regulariser: float, iterations: int) -> Array:
    """Sinkhorn's plan for uniform marginals, in the log domain.

    Args:
      cost: f32[..., n, n].

    Returns:
      f32[..., n, n], summing to 1; column sums are exactly 1 / n, row sums in the limit.
    """
    size = cost.shape[-1]
    log_kernel, log_mass = -cost / regulariser, -jnp.log(jnp.float32(size))

    def iterate(_, potentials):
        _, g = potentials
        f = log_mass - jax.nn.logsumexp(log_kernel + g[..., None, :], axis=-1)
        g = log_mass - jax.nn.logsumexp(log_kernel + f[..., :, None], axis=-2)
        return f, g

    zeros = jnp.zeros(cost.shape[:-1], jnp.float32)
    f, g = jax.lax.fori_loop(0, iterations, iterate, (zeros, zeros))
    return jnp.exp(log_kernel + f[..., :, None] + g[..., None, :])


def transport_cost(student: Array, teacher: Array, regulariser: float, iterations: int, group: int) -> Array:
    """f32[B]: each student row's share of the transport cost of its group, times the group's size.

    Args:
      student, teacher: f32[B, size] of unit length.
    """
    s, t = _parts.in_groups(student, group), _parts.in_groups(teacher, group)
    cost = 1.0 - jnp.einsum('nid,njd->nij', t, s)
    plan = jax.lax.stop_gradient(transport_plan(jax.lax.stop_gradient(cost), regulariser, iterations))
    return (s.shape[1] * jnp.sum(plan * cost, axis=1)).reshape(-1)


GLOBAL_TERMS = {'nce': _contrast.noise_contrast, 'dual': dual}


@ranges(
    objective={'choices': tuple(GLOBAL_TERMS)},
    global_weight={'low': 0, 'high': 1e6},
    local_weight={'low': 0, 'high': 1e6},
    num_negatives={'low': 1, 'high': 2**20},
    score_temperature={'low': 0.001, 'high': 1000},
    bank_momentum={'low': 0, 'below': 1},
    size={'low': 1, 'high': 2**16},
    regulariser={'low': 1e-4, 'high': 1000},
    iterations={'low': 1, 'high': 10_000},
    group={'low': 2, 'high': 2**20},
)
def make(
    *,
    objective: str = 'nce',
    global_weight: float = 0.8,
    local_weight: float = 0.05,
    num_negatives: int = 16384,
    score_temperature: float = 0.07,
    bank_momentum: float = 0.5,
    size: int = 128,
    regulariser: float = 0.05,
    iterations: int = 50,
    group: int = 64,
) -> Method:
    """Builds the method.

    Args:
      objective: the global term, 'nce' or 'dual'.
      global_weight: weight of the global term, over the negatives of the banks.
      local_weight: weight of the local term, the transport within a group of the batch.
      num_negatives: K, negatives per point and step, as in `crd`.
      score_temperature: tau, by which the critic's inner products are divided; the KD term has its own.
      bank_momentum: weight of a bank's old row when it is updated, as in `crd`.
      size: width of the embedding.
      regulariser: entropic regulariser of Sinkhorn.
      iterations: Sinkhorn iterations.
      group: rows per group; mass is transported within a group.
    """
    side = functools.partial(GLOBAL_TERMS[objective], temperature=score_temperature)

    def init(key, setup):
        keys = jax.random.split(key, 5)
        params, state = {}, {'bank': _contrast.bank_init(keys[0], setup, size)}
        for i, (side, outputs) in enumerate((('student', setup.student), ('teacher', setup.teacher))):
            params[f'embed_{side}'] = _parts.linear_init(keys[1 + i], outputs.embed.shape[-1], size)
            state[f'vector_{side}'] = _parts.normalise(jax.random.normal(keys[3 + i], (size,), jnp.float32))
        return params, state

    def loss(params, state, student, teacher, batch, clock, key):
        del clock
        s, vector_student = spectral_linear(params['embed_student'], state['vector_student'], student.embed)
        t, vector_teacher = spectral_linear(params['embed_teacher'], state['vector_teacher'], teacher.embed)
        bank = state['bank']
        negatives = _contrast.draw_negatives(key, bank, batch.label, num_negatives)
        extra, bank = _contrast.contrast(s, t, bank, batch.index, batch.weight, negatives, bank_momentum, side)
        local = transport_cost(s, t, regulariser, iterations, group)
        state = {'bank': bank, 'vector_student': vector_student, 'vector_teacher': vector_teacher}
        return LossOut(extra=global_weight * extra + local_weight * local, state=state)

    return Method(loss=loss, init=init, needs=('embed',), needs_labels=True)
