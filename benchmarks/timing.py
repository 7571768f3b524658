"""How the rows are timed: calls in turn, and the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

WARM_UP = 2


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, up to the end of what it started on the devices."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def alternate(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each function, in turn; in each turn two calls warm up and two are timed.

    The first calls after another library's are up to twice as slow, ours and PyTorch's alike: its threads still wait
    for work by spinning, and our own have gone to sleep. Training never switches.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            calls = [1e3 * seconds(function) for _ in range(WARM_UP + 2)]
            times[name] += calls[WARM_UP:]
    return {name: statistics.median(values) for name, values in times.items()}
