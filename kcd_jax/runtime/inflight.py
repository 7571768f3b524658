"""A bound on the programs that are dispatched and not finished yet.

JAX returns from a call before its program has run. A loop that dispatches one program per batch without waiting may
deadlock: on two CPU devices, a program waits in its all-reduce for a device whose queue is full of later programs. It
also keeps the inputs of every pending program in memory.
"""

from __future__ import annotations

import collections

import jax

from kcd_jax.contracts import PyTree

LIMIT = 8  # enough to hide the dispatch; a queue of 32 programs has deadlocked on two CPU devices


class Inflight:
    """Blocks on the oldest pending output when more than `limit` of them are pending."""

    def __init__(self, limit: int = LIMIT):
        """Starts with nothing pending.

        Args:
          limit: outputs that may be pending at once, at least 1.

        Raises:
          ValueError: `limit` is below 1.
        """
        if limit < 1:
            raise ValueError(f'inflight limit is {limit}; use 1 or more')
        self.limit = limit
        self._pending: collections.deque[PyTree] = collections.deque()

    def add(self, output: PyTree) -> None:
        """Registers the output of a program that was just dispatched.

        Args:
          output: an array, or a tree of arrays, of the program. Hold on to a small one (a loss, not the logits): it
            is kept alive until it is ready. It must not be donated to another program.
        """
        self._pending.append(output)
        while len(self._pending) > self.limit:
            jax.block_until_ready(self._pending.popleft())

    def wait(self) -> None:
        """Blocks until nothing is pending."""
        while self._pending:
            jax.block_until_ready(self._pending.popleft())
