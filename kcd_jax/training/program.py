"""Functions that are compiled once, at their first call, outside of what is timed as work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


class Program:
    """A function compiled at its first call; the time that takes is added to `seconds['compile']`.

    Later arguments must have the shapes, dtypes and shardings of the first ones: others are an error, not a second
    compilation that nobody notices.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        seconds: dict[str, float],
        look: Callable[[Any], None] | None = None,
        **options: Any,
    ):
        """Compiles nothing.

        Args:
          function: of arrays.
          seconds: whose 'compile' is increased.
          look: called with the traced function's jaxpr.
          options: of `jax.jit`.
        """
        self._jitted, self._seconds, self._look = jax.jit(function, **options), seconds, look
        self._compiled: jax.stages.Compiled | None = None

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)(*arguments)

    def compiled(self, *arguments: Any) -> jax.stages.Compiled:
        """The compiled program for such arguments."""
        if self._compiled is None:
            start = time.perf_counter()
            traced = self._jitted.trace(*arguments)
            if self._look is not None:
                self._look(traced.jaxpr)
            self._compiled = traced.lower().compile()
            self._seconds['compile'] += time.perf_counter() - start
        return self._compiled
