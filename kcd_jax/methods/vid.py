"""VID: variational information distillation (Ahn et al., CVPR 2019).

For every stage, at equal size: mu = W3 ReLU(W2 ReLU(W1 F_s)) with 1x1 convolutions without bias, of widths C_s -> C_t
-> C_t -> C_t, sigma^2_c = log(1 + exp(rho_c)) + 1e-5, loss = mean 1/2 [(mu - F_t)^2 / sigma^2 + log sigma^2], summed
over stages. Regressors and rho are trained with the student; one public code base does not train rho.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, PyTree, Weights
from kcd_jax.methods import _parts

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)

MIN_VARIANCE = 1e-5
INITIAL_VARIANCE = 5.0
INITIAL_RHO = math.log(math.exp(INITIAL_VARIANCE - MIN_VARIANCE) - 1.0)


def regressor_init(key: Array, channels_s: int, channels_t: int) -> PyTree:
    """The three kernels [in, out] and rho [out]."""
    keys = jax.random.split(key, 3)
    widths = (channels_s, channels_t, channels_t)
    params = {
        f'kernel{i + 1}': _parts.uniform(keys[i], (width, channels_t), 1.0 / math.sqrt(width))
        for i, width in enumerate(widths)
    }
    return {**params, 'rho': jnp.full(channels_t, INITIAL_RHO, jnp.float32)}


def variational_loss(params: PyTree, student: Array, teacher: Array) -> Array:
    """f32[B] in nats, up to a constant: the negative log-likelihood of the teacher's map given the student's."""
    mean = jax.nn.relu(jax.nn.relu(student @ params['kernel1']) @ params['kernel2']) @ params['kernel3']
    variance = (jax.nn.softplus(params['rho']) + MIN_VARIANCE)[None, None, None, :]
    return _parts.mean_per_row(0.5 * ((mean - teacher) ** 2 / variance + jnp.log(variance)))


def make() -> Method:
    """Builds the method; its only hyper-parameter is beta."""

    def init(key, setup):
        pairs = list(zip(setup.student.feats[1:], setup.teacher.feats[1:], strict=False))
        keys = jax.random.split(key, max(len(pairs), 1))
        params = {
            f'stage{i + 1}': regressor_init(k, s.shape[-1], t.shape[-1])
            for i, (k, (s, t)) in enumerate(zip(keys, pairs, strict=False))
        }
        return params, {}

    def loss(params, state, student, teacher, batch, clock, key):
        del clock, key
        extra = jnp.zeros_like(batch.weight)
        for i, pair in enumerate(_parts.stage_maps(student.feats, teacher.feats)):
            extra = extra + variational_loss(params[f'stage{i + 1}'], *pair)
        return LossOut(extra=extra, state=state)

    return Method(loss=loss, init=init, needs=('feats',))
