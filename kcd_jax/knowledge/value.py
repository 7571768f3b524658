"""The value of a training point: its prediction entropy (KCD Eq. 7), averaged online over its visits (Eq. 12)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, ValueTable

# A logit this far below the largest has probability 0 in float32; the bound keeps 0 * log 0 and its gradient finite.
_LOWEST_SHIFTED_LOGIT = -1e4


def prediction_entropy(logits: Array) -> Array:
    """Entropy of the predicted distribution, H = -sum_k p_k log p_k with p = softmax(logits) at T = 1 (KCD Eq. 7).

    Computed from the log-softmax. The authors' code multiplies p by log p, which is NaN once a logit is about 90 below
    the largest; a single NaN destroys the whole ranking.

    Args:
      logits: [B, K], any float dtype; computed in float32.

    Returns:
      f32[B] in nats, 0 <= H <= ln K up to rounding, finite for any finite logits.

    >>> import jax.numpy as jnp
    >>> prediction_entropy(jnp.array([[0.0, 0.0], [9.0, -9.0]])).round(4).tolist()  # ln 2, and hardly a doubt
    [0.6930999755859375, 0.0]
    """
    logits = logits.astype(jnp.float32)
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = jnp.maximum(shifted, _LOWEST_SHIFTED_LOGIT)
    log_p = shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def record(table: ValueTable, index: Array, value: Array) -> ValueTable:
    """Online value recording: V <- V + (value - V) / F, the running mean over the F visits (KCD Eq. 12).

    A point that occurs d times in one call counts as d visits; the mean does not depend on the order. Only `index` and
    `value` move between devices, never the table.

    Args:
      table: N rows.
      index: i32[B], rows; N (the padding index) is dropped.
      value: f32[B], e.g. `prediction_entropy`.

    Returns:
      The new table.

    >>> table = record(ValueTable.create(3, 3), jnp.array([0, 2]), jnp.array([1.0, 0.5]))
    >>> table = record(table, jnp.array([0]), jnp.array([2.0]))
    >>> table.value.tolist(), table.count.tolist()
    ([1.5, 0.0, 0.5], [2, 0, 1])
    """
    chex.assert_equal_shape([index, value])
    count = table.count.at[index].add(1, mode='drop')
    step = (value.astype(jnp.float32) - table.value[index]) / count[index].astype(jnp.float32)
    return table.replace(value=table.value.at[index].add(step, mode='drop'), count=count)


def record_last(table: ValueTable, index: Array, value: Array) -> ValueTable:
    """Records the newest value instead of the mean (the ablation "w/o OVR" of KCD Table 4); visits are still counted.

    Args and Returns as for `record`. If a point occurs more than once in a call, its largest value is recorded, so that
    the result does not depend on the order of a device's writes.

    >>> table = ValueTable.create(num_points=2, rows=2)
    >>> for value in (0.5, 0.25):
    ...     table = record_last(table, jnp.array([1]), jnp.array([value]))
    >>> table.value.tolist(), table.count.tolist()
    ([0.0, 0.25], [0, 2])
    """
    chex.assert_equal_shape([index, value])
    count = table.count.at[index].add(1, mode='drop')
    cleared = table.value.at[index].set(-jnp.inf, mode='drop')
    return table.replace(value=cleared.at[index].max(value.astype(jnp.float32), mode='drop'), count=count)
