"""How fast each network is on this machine: images a second, forward and in a training step of its own."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import networks
from kcd_jax.contracts import Array, PyTree

# Names that are measured unless others are asked for: the students and teachers of the CIFAR tables.
CIFAR = (
    *('resnet8', 'resnet20', 'resnet56', 'resnet8x4', 'resnet32x4', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2'),
    *('vgg8', 'vgg13', 'resnet50_cifar', 'mobilenetv2', 'shufflev1', 'shufflev2'),
)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of one network.

    Attributes:
      forward, train: images a second in evaluation, and in steps of cross entropy and SGD without a teacher.
      compile_seconds: of both programs together.
    """

    name: str
    forward: float
    train: float
    compile_seconds: float


def measure(
    name: str,
    *,
    batch: int = 64,
    num_classes: int = 100,
    pixels: int = 32,
    seconds: float = 1.0,
    dtype: Any = jnp.float32,
    sharding: Any = None,
    replicated: Any = None,
) -> Speed:
    """Runs network `name` for about `seconds` in each mode and takes the median of its calls.

    Args:
      batch: images a call, over all devices. pixels: of each side. dtype: of the computation.
      sharding, replicated: where the images' rows and the variables go; None: the default device.
    """
    network = networks.get(name)(num_classes, dtype=dtype)
    variables = network.init(jax.random.key(0), (pixels, pixels, 3))
    random = np.random.default_rng(0)
    images = jax.device_put(random.random((batch, pixels, pixels, 3), np.float32), sharding)
    labels = jax.device_put(random.integers(0, num_classes, batch).astype(np.int32), sharding)
    variables = jax.device_put(variables, replicated)

    def forward(variables: PyTree, images: Array) -> Array:
        return network.apply(variables, images, False)[0].logits

    def train(variables: PyTree, images: Array, labels: Array) -> PyTree:
        def loss(params: PyTree) -> tuple[Array, PyTree]:
            outputs, state = network.apply({**variables, 'params': params}, images, True)
            log_p = jax.nn.log_softmax(outputs.logits)
            return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1)), state

        grads, state = jax.grad(loss, has_aux=True)(variables['params'])
        return {'params': jax.tree.map(lambda p, g: p - 0.01 * g, variables['params'], grads), **state}

    start = time.perf_counter()
    forward_step = jax.jit(forward).lower(variables, images).compile()
    train_step = jax.jit(train).lower(variables, images, labels).compile()
    compile_seconds = time.perf_counter() - start
    return Speed(
        name,
        forward=batch / _median_seconds(lambda: forward_step(variables, images), seconds),
        train=batch / _median_seconds(lambda: train_step(variables, images, labels), seconds),
        compile_seconds=compile_seconds,
    )


def _median_seconds(call: Any, seconds: float) -> float:
    """The median time of calls that together take about `seconds`, at least three, after one to warm up."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))
