"""How long the scoring pass of policies that choose inside the batch takes (UNIX)."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Network, PyTree
from kcd_jax.runtime import sharding

CALLS = 10  # that are timed


def seconds(network: Network, variables: PyTree, shape: tuple[int, ...], mesh: Mesh) -> tuple[float, float]:
    """(seconds of compiling it, seconds of one pass): the network in train mode on a batch of black images.

    In training the pass lies inside the step's program, which has one clock: so it is timed here by itself. An
    estimate, for inside the step it may share work with others.

    Args:
      network, variables: of the student.
      shape: (B, H, W, 3).
      mesh: over which the batch is split.
    """
    begun = time.perf_counter()
    batch = sharding.put(np.zeros(shape, np.float32), sharding.batch(mesh))

    def score(variables: PyTree, images: jax.Array) -> tuple[jax.Array, PyTree]:
        outputs, model_state = network.apply(variables, images, True)
        return outputs.logits, model_state

    program = jax.jit(score).lower(variables, batch).compile()
    compiling = time.perf_counter() - begun
    jax.block_until_ready(program(variables, batch))
    begun = time.perf_counter()
    for _ in range(CALLS):
        last = program(variables, batch)
    jax.block_until_ready(last)
    return compiling, (time.perf_counter() - begun) / CALLS
