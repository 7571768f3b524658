"""Time of the scoring pass of policies that select within the batch (UNIX)."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Network, PyTree
from kcd_jax.runtime import sharding
from kcd_jax.training.program import Program

CALLS = 10  # timed calls


def seconds(
    network: Network, variables: PyTree, shape: tuple[int, ...], mesh: Mesh, counted: dict[str, float]
) -> float:
    """Seconds per pass of the network in train mode on a batch of black images.

    In training the pass is part of the step's program and cannot be timed there. Timing it alone is an estimate: inside
    the step it may share work with other passes.

    Args:
      network, variables: of the student.
      shape: (B, H, W, 3).
      mesh: over which the batch is split.
      counted: whose 'compile' grows, as for `Program`.
    """
    batch = sharding.put(np.zeros(shape, np.float32), sharding.batch(mesh))

    def score(variables: PyTree, images: jax.Array) -> tuple[jax.Array, PyTree]:
        outputs, model_state = network.apply(variables, images, True)
        return outputs.logits, model_state

    program = Program(score, counted)
    jax.block_until_ready(program(variables, batch))
    begun = time.perf_counter()
    for _ in range(CALLS):
        last = program(variables, batch)
    jax.block_until_ready(last)
    return (time.perf_counter() - begun) / CALLS
