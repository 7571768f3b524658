"""The training step and the condensation, compiled for a mesh from shapes alone: no data, no memory, no run."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kcd_jax import data, knowledge
from kcd_jax.contracts import PyTree, ValueTable
from kcd_jax.runtime import sharding
from kcd_jax.training import check, ledger, step

ALPHA, EPSILON_MAX = 0.03, 0.3  # of the paper


def points_of(num_points: int, image_shape: tuple[int, int, int], num_classes: int) -> data.Dataset:
    """A data set of these shapes that takes no memory: every image is the same black one."""

    def split(count: int) -> data.Split:
        images = np.broadcast_to(np.uint8(0), (count, *image_shape))
        return data.Split(images, np.zeros(count, np.int32))

    return data.Dataset(
        name='shapes',
        train=split(num_points),
        test=split(1),
        class_names=tuple(map(str, range(num_classes))),
        num_classes=num_classes,
        image_shape=image_shape,
        normalization=data.Normalization((0.5,) * 3, (0.25,) * 3),
        description='shapes only',
    )


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Abstract arrays with places."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def training_step(
    config: ConfigDict, dataset: data.Dataset, mesh: Mesh, *, resident: bool = True
) -> jax.stages.Compiled:
    """The step of `config` as training runs it. resident: the points lie on the devices; else a batch comes in."""
    run = check.resolve(config, dataset, device_count=mesh.size)
    phase, whole, split = run.phases[0], sharding.replicated(mesh), sharding.batch(mesh)
    spec = check.step_spec_of(run, config, functools.partial(sharding.constrain_batch, mesh))
    shapes = ledger.abstract_state(run)
    places = sharding.state_shardings(mesh, shapes)
    rates = {label: jax.ShapeDtypeStruct((), jnp.float32) for label in phase.optimisers}
    rates['phase_epoch'] = jax.ShapeDtypeStruct((), jnp.int32)

    rows, batch = run.setup.rows, config.batch
    index, labels = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    supply: Any
    if resident:
        images = jax.ShapeDtypeStruct((rows, *dataset.image_shape), jnp.uint8)
        supply = _placed(step.Points(images, labels), whole)
    else:
        images = jax.ShapeDtypeStruct((batch, *dataset.image_shape), jnp.uint8)
        supply = _placed(step.RawBatch(index, images, images, index), split)
    function = functools.partial(step.run_chunk, spec=spec, phase=phase, length=1)
    teacher = {} if run.teacher is None else _placed(ledger.abstract_variables(run.teacher, dataset.image_shape), whole)
    jitted = jax.jit(function, donate_argnums=0, out_shardings=(places, whole))
    arguments = _placed(shapes, places), _placed(labels, whole), _placed(rates, whole), supply, teacher
    return jitted.lower(*arguments).compile()


def _table(num_points: int, mesh: Mesh) -> ValueTable:
    return _placed(jax.eval_shape(lambda: ValueTable.create(num_points)), sharding.batch(mesh))


def recording(num_points: int, batch: int, mesh: Mesh) -> jax.stages.Compiled:
    """Recording a batch of values in the split table, as the step does it."""
    split = sharding.batch(mesh)
    index = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split)
    value = jax.ShapeDtypeStruct((batch,), jnp.float32, sharding=split)
    jitted = jax.jit(knowledge.record, donate_argnums=0, out_shardings=split)
    return jitted.lower(_table(num_points, mesh), index, value).compile()


def condensation(num_points: int, mesh: Mesh) -> jax.stages.Compiled:
    """From the split table to the plan and the order of the next epoch on every device."""

    def condense(table: ValueTable, num_keep: jax.Array, key: jax.Array, epoch: jax.Array) -> Any:
        table = sharding.constrain_replicated(mesh, table)
        plan = knowledge.summarize(knowledge.rank(table, ALPHA), num_keep, EPSILON_MAX, num_points)
        return plan, step.epoch_order(key, plan, epoch)

    whole = sharding.replicated(mesh)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    key = _placed(jax.eval_shape(lambda: jax.random.PRNGKey(0)), whole)
    jitted = jax.jit(condense, out_shardings=whole)
    return jitted.lower(_table(num_points, mesh), number, key, number).compile()


def bytes_of(compiled: jax.stages.Compiled) -> int:
    """What a program needs on one device, arguments, results and temporaries, by the compiler's own count."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
