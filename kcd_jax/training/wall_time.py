"""A rough wall time of a run before it starts, from its multiply-accumulates and the speed of one convolution here."""

from __future__ import annotations

import collections
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Network
from kcd_jax.networks.primitives import convolve
from kcd_jax.runtime import sharding
from kcd_jax.training import ledger, macs
from kcd_jax.training.run import Run

_MEASURED_SECONDS = 0.3
_BACKWARD = 2  # a step's backward pass costs about twice its forward pass


def line(run: Run, mesh: Mesh) -> str:
    """'time       about 40 s ...' for `--check`."""
    text = f'time       about {duration(seconds(run, mesh))} of steps'
    if isinstance(run.teacher, Run) and run.uses_teacher:
        text += f', and {duration(seconds(run.teacher, mesh))} for the teacher if none is trained yet'
    return f'{text}, by the speed of one convolution here now; compiling, evaluating and the method come on top'


def seconds(run: Run, mesh: Mesh) -> float:
    """A rough estimate of all steps of a run: the student forwards and backwards, the teacher forwards.

    The speed is that of a 3x3 convolution with its gradients, on a batch of the run and of each network's usual width:
    narrow networks reach a small part of what a machine can do.
    """
    shape = run.data.image_shape

    def per_image(network: Network) -> float:
        speed = _speed(run.recipe.batch, shape[0], _width(network, shape), mesh)
        return ledger.network_macs(network, shape) / speed

    steps, images = ledger.phase_steps(run), collections.Counter[str]()
    for phase in run.phases:
        images.update({name: steps[phase.name] * count for name, count in ledger.samples(run, phase).items()})
    passes = images['student_forward'] + images['scoring_forward'] + _BACKWARD * images['student_backward']
    spent = passes * per_image(run.student_network)
    if images['teacher_forward'] and run.host is None:
        spent += images['teacher_forward'] * per_image(run.teacher_network)
    return spent


def _width(network: Network, image_shape: tuple[int, int, int]) -> int:
    """The median number of channels of a network's kernels."""
    variables = network.variable_shapes(image_shape)
    widths = [leaf.shape[-1] for leaf in jax.tree.leaves(variables['params']) if len(leaf.shape) == 4]
    return int(statistics.median_low(widths)) if widths else 64


@functools.cache
def _speed(batch: int, side: int, width: int, mesh: Mesh) -> float:
    """Multiply-accumulates per second of a convolution and its gradients."""
    side = max(side // 2, 4)  # of a network's stages, in the middle
    kernel = jnp.ones((3, 3, width, width), jnp.float32)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(jax.nn.relu(convolve(x, kernel))))

    step = jax.jit(jax.grad(loss, (0, 1)))
    x = sharding.put_rows(np.ones((batch // jax.process_count(), side, side, width), np.float32), mesh)
    count = macs.count(jax.grad(loss, (0, 1)), kernel, jax.ShapeDtypeStruct((batch, side, side, width), jnp.float32))
    jax.block_until_ready(step(kernel, x))
    taken, start = [], time.perf_counter()
    while not taken or time.perf_counter() - start < _MEASURED_SECONDS:
        before = time.perf_counter()
        jax.block_until_ready(step(kernel, x))
        taken.append(time.perf_counter() - before)
    return count / statistics.median(taken)


def duration(seconds: float) -> str:
    """'40 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f'{max(seconds, 1):.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
