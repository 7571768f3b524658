"""Synthetic outputs, batches and set-ups: what methods are checked and tested on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Batch, Clock, Network, Outputs, Setup, table_rows


def make_batch(rows: int, num_classes: int = 5, num_points: int = 40, views: int = 1, size: int = 8) -> Batch:
    """A batch of distinct points with random labels and images."""
    rng = np.random.default_rng(rows)
    label = jnp.asarray(np.arange(num_points) % num_classes, jnp.int32)
    index = jnp.asarray(rng.permutation(num_points)[:rows], jnp.int32)
    image = jnp.asarray(rng.random((rows * views, size, size, 3)), jnp.float32)
    zeros = jnp.zeros(rows, jnp.float32)
    return Batch(index, image, label[index], label[index], zeros, zeros + 1.0)


def make_outputs(
    rows: int,
    widths: tuple[int, ...] = (4, 4, 6, 8),
    sizes: tuple[int, ...] = (8, 8, 4, 2),
    num_classes: int = 5,
    seed: int = 0,
) -> Outputs:
    """A stem, three stages, the pooled vector and three branches."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    preacts = tuple(normal(rows, s, s, c) for s, c in zip(sizes[1:], widths[1:], strict=True))
    stem = jnp.maximum(normal(rows, sizes[0], sizes[0], widths[0]), 0.0)
    feats = (stem, *(jnp.maximum(p, 0.0) for p in preacts))
    branches = normal(rows, 3, num_classes)
    aux = {'branches': branches, 'gate': jax.nn.softmax(normal(rows, 3))}
    return Outputs(branches[:, 0], feats, preacts, jnp.mean(feats[-1], axis=(1, 2)), aux)


def make_setup(
    student: Outputs,
    teacher: Outputs,
    num_classes: int = 5,
    num_points: int = 40,
    image_shape: tuple[int, int, int] = (8, 8, 3),
) -> Setup:
    """A set-up around two empty networks."""

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


def make_clock(phase_epoch: int = 0) -> Clock:
    """The first step of an epoch of a phase."""
    zero = jnp.zeros((), jnp.int32)
    return Clock(zero, zero, zero + phase_epoch)
