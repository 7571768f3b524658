"""Jitted functions whose compilation is not counted as work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


class Program:
    """A jitted function; the time of its first call, which compiles it, is added to `seconds['compile']`."""

    def __init__(self, function: Callable[..., Any], seconds: dict[str, float], **options: Any):
        """`options`: of `jax.jit`."""
        self._jitted, self._seconds, self._compiled = jax.jit(function, **options), seconds, False

    def __call__(self, *arguments: Any) -> Any:
        """Dispatches one call, whose arguments have the shapes of the first one's."""
        if self._compiled:
            return self._jitted(*arguments)
        start, self._compiled = time.perf_counter(), True
        result = self._jitted(*arguments)
        self._seconds['compile'] += time.perf_counter() - start
        return result
