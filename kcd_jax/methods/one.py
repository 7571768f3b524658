"""ONE: on-the-fly native ensemble, "OnlineKD" (Lan, Zhu, Gong, NeurIPS 2018).

A network with a shared trunk and three branches teaches itself, without another teacher. With the branches' logits
z_j, their gates g_j and the ensemble z_e = sum_j g_j z_j:

  loss = sum_j CE(z_j) + CE(z_e) + r(epoch) * sum_j T^2 KL(q~ || p_j), T = 3,
  q~ = stop_gradient(softmax(z_e / T) + 1e-7), not renormalised, r(e) = exp(-5 (1 - min(e, ramp) / ramp)^2), e from 0.

The first branch is the student (`Outputs.logits`). Its CE is the objective's; extra is the rest. The published schedule
is 300 epochs at batch 128 with ramp = 80; scale `ramp` with the epochs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax import objective
from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)


def ensemble_kl(branch_logits: Array, ensemble_logits: Array, temperature: float) -> Array:
    """f32[B] in nats times T^2: T^2 sum_k q~ (log q~ - log p); the ensemble gets no gradient."""
    log_p = jax.nn.log_softmax(branch_logits.astype(jnp.float32) / temperature)
    q = jax.lax.stop_gradient(jax.nn.softmax(ensemble_logits.astype(jnp.float32) / temperature) + 1e-7)
    return temperature**2 * jnp.sum(q * (jnp.log(q) - log_p), axis=-1)


def ramp_up(epoch: Array, ramp: int) -> Array:
    """f32[] in [exp(-5), 1]; `epoch` counts from 0."""
    missing = 1.0 - jnp.minimum(epoch.astype(jnp.float32) / ramp, 1.0)
    return jnp.exp(-5.0 * missing**2)


@ranges(
    temperature={'low': 0.01, 'high': 1000},
    ramp={'low': 1, 'high': 1_000_000},
)
def make(*, temperature: float = 3.0, ramp: int = 80) -> Method:
    """Builds the method.

    Args:
      temperature: of the KL.
      ramp: epochs until the KL has its full weight.
    """

    def init(key, setup):
        del key
        if 'branches' not in setup.student.aux:
            name = setup.student_network.name
            raise ValueError(
                f'one needs a student with branches, and {name} has none; use resnet32_one or resnet18_one'
            )
        return {}, {}

    def loss(params, state, student, teacher, batch, clock, key):
        del params, teacher, key
        branches, gates = (student.aux[name].astype(jnp.float32) for name in ('branches', 'gate'))
        ensemble = jnp.sum(gates[:, :, None] * branches, axis=1)

        def cross_entropy(logits):
            return objective.cross_entropy_per_point(logits, batch.label, batch.label_b, batch.lam)

        hard, soft = cross_entropy(ensemble), jnp.zeros_like(batch.weight)
        for j in range(branches.shape[1]):
            soft = soft + ensemble_kl(branches[:, j], ensemble, temperature)
            if j > 0:
                hard = hard + cross_entropy(branches[:, j])
        return LossOut(extra=hard + ramp_up(clock.phase_epoch, ramp) * soft, state=state)

    return Method(loss=loss, init=init, needs=(), needs_labels=True)
