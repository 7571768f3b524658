"""How programs are timed: called in turn, and the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

WARM_UP = 2  # untimed calls before each pair of timed ones


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of one call, including the work it leaves running on the devices."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def alternate(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds per call of each function, measured in turn.

    In each turn a function is called four times and the last two calls are timed: the first calls after another
    library's are up to twice as slow, because its threads still spin and ours sleep. Training never switches.

    Args:
      functions: by name; the names are those of the result.
      repeats: turns of each function.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            calls = [1e3 * seconds(function) for _ in range(WARM_UP + 2)]
            times[name] += calls[WARM_UP:]
    return {name: statistics.median(values) for name, values in times.items()}
