"""A bound on dispatched programs that have not finished.

JAX dispatches asynchronously. A loop that dispatches one program per batch without waiting may deadlock: on two CPU
devices, a program waits in its all-reduce for a device whose queue is full of later programs. It also keeps the inputs
of all pending programs in memory.
"""

from __future__ import annotations

import collections

import jax

from kcd_jax.contracts import PyTree

LIMIT = 8  # enough to hide dispatch; a queue of 32 programs deadlocked on two CPU devices


class Inflight:
    """Blocks on the oldest output while more than `limit` are pending."""

    def __init__(self, limit: int = LIMIT):
        """Starts with nothing pending.

        Args:
          limit: largest number of pending outputs, at least 1.

        Raises:
          ValueError: `limit` is below 1.
        """
        if limit < 1:
            raise ValueError(f'inflight limit is {limit}; use 1 or more')
        self.limit = limit
        self._pending: collections.deque[PyTree] = collections.deque()

    def add(self, output: PyTree) -> None:
        """Registers an output of a program that was just dispatched.

        Args:
          output: an array or a tree of arrays. Pass a small one (a loss, not the logits), since it is kept alive until
            it is ready. It must not be donated to another program.
        """
        self._pending.append(output)
        while len(self._pending) > self.limit:
            jax.block_until_ready(self._pending.popleft())

    def wait(self) -> None:
        """Blocks until nothing is pending."""
        while self._pending:
            jax.block_until_ready(self._pending.popleft())
