"""Golden vectors of the methods' public PyTorch code, and synthetic outputs, batches and set-ups."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.contracts import Batch, Clock, Network, Outputs, Setup, table_rows

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

    def build(rows: int, num_classes: int = 5, num_points: int = 40, views: int = 1, size: int = 8) -> Batch:
        rng = np.random.default_rng(rows)
        label = jnp.asarray(np.arange(num_points) % num_classes, jnp.int32)
        index = jnp.asarray(rng.permutation(num_points)[:rows], jnp.int32)
        image = jnp.asarray(rng.random((rows * views, size, size, 3)), jnp.float32)
        zeros = jnp.zeros(rows, jnp.float32)
        return Batch(index, image, label[index], label[index], zeros, zeros + 1.0)

    return build


@pytest.fixture
def make_outputs():
    """(rows, widths=, sizes=, num_classes=, seed=) -> Outputs: a stem, three stages, pooled vector, three branches."""

    def build(
        rows: int,
        widths: tuple[int, ...] = (4, 4, 6, 8),
        sizes: tuple[int, ...] = (8, 8, 4, 2),
        num_classes: int = 5,
        seed: int = 0,
    ) -> Outputs:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> jax.Array:
            return jnp.asarray(rng.normal(size=shape), jnp.float32)

        preacts = tuple(normal(rows, s, s, c) for s, c in zip(sizes[1:], widths[1:], strict=True))
        stem = jnp.maximum(normal(rows, sizes[0], sizes[0], widths[0]), 0.0)
        feats = (stem, *(jnp.maximum(p, 0.0) for p in preacts))
        branches = normal(rows, 3, num_classes)
        aux = {'branches': branches, 'gate': jax.nn.softmax(normal(rows, 3))}
        return Outputs(branches[:, 0], feats, preacts, jnp.mean(feats[-1], axis=(1, 2)), aux)

    return build


@pytest.fixture
def make_setup():
    """(student, teacher: Outputs, num_classes=, num_points=, image_shape=) -> Setup around two empty networks."""

    def build(
        student: Outputs,
        teacher: Outputs,
        num_classes: int = 5,
        num_points: int = 40,
        image_shape: tuple[int, int, int] = (8, 8, 3),
    ) -> Setup:
        def shapes(outputs: Outputs) -> Outputs:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), outputs)

        rows = table_rows(num_points)
        labels = np.zeros(rows, np.int32)
        labels[:num_points] = np.arange(num_points) % num_classes
        empty = Network('empty', lambda key, shape: {}, lambda variables, image, train: (student, {}))
        return Setup(
            student=shapes(student),
            teacher=shapes(teacher),
            num_points=num_points,
            rows=rows,
            num_classes=num_classes,
            batch=student.logits.shape[0],
            image_shape=image_shape,
            labels=labels,
            student_network=empty,
            teacher_network=empty,
            teacher_variables=None,
        )

    return build


@pytest.fixture
def clock():
    """clock(phase_epoch) -> Clock."""

    def build(phase_epoch: int = 0) -> Clock:
        zero = jnp.zeros((), jnp.int32)
        return Clock(zero, zero, zero + phase_epoch)

    return build
