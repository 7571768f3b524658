"""How long condensation takes, for the bench."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import ValueTable, table_rows
from kcd_jax.knowledge.ranking import rank
from kcd_jax.knowledge.summary import summarize

RATIO, ALPHA, EPSILON_MAX = 0.7, 0.03, 0.3


def random_table(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """(value f32[N], count i32[N]) of made-up entropies, up to 240 visits."""
    rng, rows = np.random.default_rng(0), table_rows(num_points)
    value, count = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    value[:num_points] = rng.random(num_points, np.float32)
    count[:num_points] = rng.integers(1, 241, num_points, np.int32)
    return value, count


def _median_ms(function: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def condensation_ms(num_points: int, repeats: int = 5) -> float:
    """Median milliseconds of ranking and summary, from the table to the plan, without compilation.

    Args:
      num_points: points of the table.
      repeats: timed calls.
    """
    value, count = random_table(num_points)
    num_keep = round(RATIO * num_points)
    table = ValueTable(jnp.asarray(value), jnp.asarray(count), num_points)
    condense = jax.jit(lambda table, n: summarize(rank(table, ALPHA), n, EPSILON_MAX, num_points))
    jax.block_until_ready(condense(table, num_keep))
    return _median_ms(lambda: condense(table, num_keep), repeats)
