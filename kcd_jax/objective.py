"""The objective of every update: gamma * CE + alpha * KD(T) + beta * extra, per point.

Everything is computed in float32, whatever the dtype of the logits, and is finite for any finite logits.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Batch, Weights

LOGITS = ('plain', 'standardised')


def kd_per_point(student_logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """The soft-target term (Hinton et al. 2015): T^2 * sum_k q_k (log q_k - log p_k), q and p softened by T.

    Args:
      student_logits, teacher_logits: [B, K]. No gradient is stopped here: the teacher's logits come without one.
      temperature: T > 0.

    Returns:
      f32[B] in nats times T^2, >= 0 up to rounding; its mean over the rows is the published 'batchmean'.
    """
    chex.assert_rank(student_logits, 2)
    chex.assert_equal_shape([student_logits, teacher_logits])
    log_p = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
    log_q = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def cross_entropy_per_point(logits: Array, label: Array, label_b: Array, lam: Array, smoothing: float = 0.0) -> Array:
    """(1 - lam) * CE(label) + lam * CE(label_b), f32[B] in nats; lam is the partner's share of the label.

    With label smoothing s (Szegedy et al. 2016) the result is (1 - s) of it, plus s times the cross entropy with the
    uniform distribution over all K classes.
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([label, label_b, lam])
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))

    def cross_entropy(label: Array) -> Array:
        return -jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]

    of_labels = (1.0 - lam) * cross_entropy(label) + lam * cross_entropy(label_b)
    return (1.0 - smoothing) * of_labels - smoothing * jnp.mean(log_p, axis=-1) if smoothing else of_labels


def standardise(logits: Array) -> Array:
    """(z - mean_k z) / (std_k z + 1e-7), std with K - 1 (Sun et al., CVPR 2024, "Logit Standardization in KD").

    Args:
      logits: [B, K], K >= 2.

    Returns:
      f32[B, K]. Equal logits in a row give zeros, with a finite (zero) gradient: the square root is kept away from 0.
    """
    logits = logits.astype(jnp.float32)
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    std = jnp.sqrt(jnp.where(variance > 0.0, variance, 1.0))
    return centred / (std + 1e-7)


def compose(
    weights: Weights,
    student_logits: Array,
    teacher_logits: Array | None,
    batch: Batch,
    extra: Array,
    logits: str = 'plain',
    smoothing: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """gamma * CE + alpha * KD(T) + beta * extra of every point; terms with weight 0 are not computed.

    Args:
      weights: Python floats, so that the choice of terms is static.
      student_logits, teacher_logits: [B, K]; the teacher's may be None if alpha is 0.
      batch: its label, label_b and lam are used; point weights are applied in `batch_loss`.
      extra: f32[B], the method's own term, not yet multiplied by beta.
      logits: 'plain', or 'standardised' for the KD term only.
      smoothing: label smoothing, for the CE term only, in [0, 1).

    Returns:
      (f32[B], {'ce' | 'kd' | 'extra': f32[B], unweighted}).

    Raises:
      ValueError: alpha is not 0 without a teacher, or `logits` is unknown.
    """
    if logits not in LOGITS:
        raise ValueError(f'logits is {logits!r}; use one of {", ".join(LOGITS)}')
    terms: dict[str, Array] = {}
    per_point: Any = jnp.zeros(student_logits.shape[0], jnp.float32)
    if weights.gamma:
        terms['ce'] = cross_entropy_per_point(student_logits, batch.label, batch.label_b, batch.lam, smoothing)
        per_point = per_point + weights.gamma * terms['ce']
    if weights.alpha:
        if teacher_logits is None:
            raise ValueError(f'weights.alpha is {weights.alpha}, but this method has no teacher; use weights.alpha=0')
        prepare = standardise if logits == 'standardised' else lambda z: z
        terms['kd'] = kd_per_point(prepare(student_logits), prepare(teacher_logits), weights.temperature)
        per_point = per_point + weights.alpha * terms['kd']
    if weights.beta:
        terms['extra'] = extra.astype(jnp.float32)
        per_point = per_point + weights.beta * terms['extra']
    return per_point, terms


def batch_loss(per_point: Array, weight: Array) -> Array:
    """The mean over rows of weight * loss; not divided by the sum of the weights, so each one scales its point."""
    return jnp.mean(weight * per_point)
