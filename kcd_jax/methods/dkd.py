"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022).

With p, q the student's and the teacher's softmax at temperature T and y the label: TCKD = T^2 KL([q_y, 1 - q_y] ||
[p_y, 1 - p_y]), NCKD = T^2 KL(q^ || p^) with the true class masked out; extra = min(1, epoch / warmup) * (target *
TCKD + others * NCKD), with epochs counted from 1 as in the public trainer. It replaces the KD term: gamma is 1 and
alpha is 0. `others` (the paper's beta) depends on the pair: 8 by default, 6 or 2.

Both terms are computed from log-sums over the other classes and are finite for any logits. The public code subtracts
1000 from the true class and takes logarithms of sums of probabilities, which is not.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Weights
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=1.0)


def decoupled(student_logits: Array, teacher_logits: Array, label: Array, temperature: float) -> tuple[Array, Array]:
    """(TCKD, NCKD), both f32[B] in nats times T^2.

    Args:
      student_logits, teacher_logits: [B, K].
      label: i32[B].
    """
    is_target = jax.nn.one_hot(label, student_logits.shape[-1], dtype=jnp.bool_)

    def split(logits: Array) -> tuple[Array, Array, Array]:
        """log [p_y, 1 - p_y] as f32[B] each, and the log softmax over the other classes (anything at y)."""
        logits = logits.astype(jnp.float32) / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        rest = jax.nn.logsumexp(logits, axis=-1, where=~is_target)
        target = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return target - total, rest - total, logits - rest[:, None]

    log_py, log_pn, log_p = split(student_logits)
    log_qy, log_qn, log_q = split(teacher_logits)
    target = jnp.exp(log_qy) * (log_qy - log_py) + jnp.exp(log_qn) * (log_qn - log_pn)
    q = jnp.exp(jnp.where(is_target, -jnp.inf, log_q))
    others = jnp.sum(q * jnp.where(is_target, 0.0, log_q - log_p), axis=-1)
    return temperature**2 * target, temperature**2 * others


@ranges(
    target={'low': 0, 'high': 1e6},
    others={'low': 0, 'high': 1e6},
    temperature={'low': 0.01, 'high': 1000},
    warmup={'low': 0, 'high': 1_000_000},
)
def make(*, target: float = 1.0, others: float = 8.0, temperature: float = 4.0, warmup: int = 20) -> Method:
    """Builds the method.

    Args:
      target: weight of TCKD, the paper's alpha.
      others: weight of NCKD, the paper's beta.
      temperature: of both parts.
      warmup: epochs of the linear warm-up of the term's weight; 0: none.
    """

    def loss(params, state, student, teacher, batch, clock, key):
        del params, key
        tckd, nckd = decoupled(student.logits, teacher.logits, batch.label, temperature)
        growth = jnp.minimum((clock.phase_epoch.astype(jnp.float32) + 1.0) / warmup, 1.0) if warmup else 1.0
        return LossOut(extra=growth * (target * tckd + others * nckd), state=state)

    return Method(loss=loss, needs=('logits',), needs_labels=True)
