"""Golden vectors of the methods' public PyTorch code, and synthetic outputs, batches and set-ups."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.checks import synthetic

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


class Golden(dict):
    """The arrays of a topic by key; `maps` gives feature maps as NHWC."""

    def map(self, key: str) -> np.ndarray:
        """The NCHW array `key` as NHWC."""
        return np.transpose(self[key], (0, 2, 3, 1))

    def kernel(self, key: str) -> np.ndarray:
        """The OIHW kernel `key` as HWIO."""
        return np.transpose(self[key], (2, 3, 1, 0))


@pytest.fixture
def golden():
    """golden(topic) -> Golden."""

    def load(topic: str) -> Golden:
        with np.load(GOLDEN / f'{topic}.npz') as arrays:
            return Golden({key: arrays[key] for key in arrays})

    return load


@pytest.fixture
def loss_and_grad():
    """(f: *args -> f32[B], *args) -> (mean of f, gradients of the mean with respect to every argument)."""

    def run(f: Any, *args: Any) -> tuple[Any, tuple]:
        function = jax.value_and_grad(lambda *a: jnp.mean(f(*a)), argnums=tuple(range(len(args))))
        return jax.jit(function)(*jax.tree.map(jnp.asarray, args))

    return run


@pytest.fixture
def make_batch():
    """(rows, num_classes=, num_points=, views=) -> Batch with distinct points and random labels and images."""
    return synthetic.make_batch


@pytest.fixture
def make_outputs():
    """(rows, widths=, sizes=, num_classes=, seed=) -> Outputs: a stem, three stages, pooled vector, three branches."""
    return synthetic.make_outputs


@pytest.fixture
def make_setup():
    """(student, teacher: Outputs, num_classes=, num_points=, image_shape=) -> Setup around two empty networks."""
    return synthetic.make_setup


@pytest.fixture
def clock():
    """clock(phase_epoch) -> Clock."""
    return synthetic.make_clock
