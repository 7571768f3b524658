"""Images per second of each network: forward, and in a training step without a teacher."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.results import Row
from kcd_jax import networks
from kcd_jax.contracts import Array, PyTree
from kcd_jax.runtime import sharding
from kcd_jax.training import macs

# The students and teachers of the papers' CIFAR tables.
NAMES = (
    *('resnet8', 'resnet20', 'resnet56', 'resnet8x4', 'resnet32x4', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2'),
    *('vgg8', 'vgg13', 'resnet50_cifar', 'mobilenetv2', 'shufflev1', 'shufflev2'),
)


def measure(name: str, repeats: int, *, batch: int = 64, num_classes: int = 100, pixels: int = 32) -> dict[str, float]:
    """Times a network on all devices.

    Args:
      name: of the network.
      repeats: timed turns, see `timing.alternate`.
      batch: images per call, over all devices.
      num_classes: of the classifier.
      pixels: side of the images.

    Returns:
      {'forward': images per second in evaluation, 'train': in steps of cross entropy and SGD, 'macs':
      multiply-accumulates of one image's forward pass}.
    """
    network, mesh = networks.get(name)(num_classes), sharding.make_mesh()
    rows, whole = sharding.batch(mesh), sharding.replicated(mesh)
    random = np.random.default_rng(0)
    images = sharding.put(random.random((batch, pixels, pixels, 3), np.float32), rows)
    labels = sharding.put(random.integers(0, num_classes, batch).astype(np.int32), rows)
    variables = sharding.put(network.init(jax.random.key(0), (pixels, pixels, 3)), whole)

    @jax.jit
    def forward(variables: PyTree, images: Array) -> Array:
        return network.apply(variables, images, False)[0].logits

    @jax.jit
    def train(variables: PyTree, images: Array, labels: Array) -> PyTree:
        def loss(params: PyTree) -> tuple[Array, PyTree]:
            outputs, state = network.apply({**variables, 'params': params}, images, True)
            log_p = jax.nn.log_softmax(outputs.logits)
            return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1)), state

        grads, state = jax.grad(loss, has_aux=True)(variables['params'])
        return {'params': jax.tree.map(lambda p, g: p - 0.01 * g, variables['params'], grads), **state}

    calls = {'forward': lambda: forward(variables, images), 'train': lambda: train(variables, images, labels)}
    ms = timing.alternate(calls, repeats)
    speeds = {mode: 1e3 * batch / ms[mode] for mode in calls}
    return {**speeds, 'macs': macs.count(forward, variables, images) // batch}


def all_networks(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Every CIFAR network. Target: a quarter of the multiply-accumulates per second that the first one reaches."""
    del scratch
    reference = None
    for name in NAMES[:2] if quick else NAMES:
        found = measure(name, 2 if quick else 5)
        work = found['macs'] * found['train'] / 1e9
        reference = reference or work
        yield Row(
            f'network {name}',
            f'{found["forward"]:,.0f} / {found["train"]:,.0f} images/s',
            f'{reference / 4:.2f} G MAC/s (has {work:.2f})',
            work >= reference / 4,
            found,
        )
