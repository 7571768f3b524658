"""The training step and the condensation, compiled for a mesh from shapes alone: no data, no memory, no run."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.timed_run import run_of
from kcd_jax import data, knowledge
from kcd_jax.contracts import PyTree, ValueTable
from kcd_jax.runtime import sharding
from kcd_jax.training import ledger, step
from kcd_jax.training.recipe import Recipe

ALPHA, EPSILON_MAX = 0.03, 0.3  # of the paper


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Abstract arrays with shardings."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def training_step(
    pair: str, dataset: data.Dataset, batch: int, mesh: Mesh, *, resident: bool = True
) -> jax.stages.Compiled:
    """The step of KD under the policy kcd.

    Args:
      pair: 'TEACHER-STUDENT'.
      dataset: what is trained on.
      batch: rows of the global batch.
      mesh: the devices to compile for.
      resident: whether the points lie on the devices; otherwise a batch is an argument.
    """
    run = run_of(pair, dataset, policy='kcd', recipe=Recipe(batch=batch))
    phase, whole, split = run.phases[0], sharding.replicated(mesh), sharding.batch(mesh)
    spec = run.step_spec(functools.partial(sharding.constrain_batch, mesh))
    shapes = ledger.abstract_state(run)
    places = sharding.state_shardings(mesh, shapes)
    rates = {label: jax.ShapeDtypeStruct((), jnp.float32) for label in phase.optimisers}
    rates['phase_epoch'] = jax.ShapeDtypeStruct((), jnp.int32)

    rows = run.setup.rows
    index, labels = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)
    supply: Any
    if resident:
        images = jax.ShapeDtypeStruct((rows, *dataset.image_shape), jnp.uint8)
        supply = _placed(step.Points(images, labels), whole)
    else:
        images = jax.ShapeDtypeStruct((batch, *dataset.image_shape), jnp.uint8)
        supply = _placed(step.RawBatch(index, images, images, index), split)
    function = functools.partial(step.run_chunk, spec=spec, phase=phase, length=1)
    teacher = _placed(run.teacher_network.variable_shapes(dataset.image_shape), whole)
    jitted = jax.jit(function, donate_argnums=0, out_shardings=(places, whole))
    arguments = _placed(shapes, places), _placed(labels, whole), _placed(rates, whole), supply, teacher
    return jitted.lower(*arguments).compile()


def table_shapes(num_points: int, mesh: Mesh) -> ValueTable:
    """The sharded value table as shapes."""
    return _placed(jax.eval_shape(lambda: ValueTable.create(num_points)), sharding.batch(mesh))


def condensation(num_points: int, mesh: Mesh) -> jax.stages.Compiled:
    """From the sharded table to the plan and the order of the next epoch on every device."""

    def condense(table: ValueTable, num_keep: jax.Array, key: jax.Array, epoch: jax.Array) -> Any:
        table = sharding.constrain_replicated(mesh, table)
        plan = knowledge.summarize(knowledge.rank(table, ALPHA), num_keep, EPSILON_MAX, num_points)
        return plan, step.epoch_order(key, plan, epoch)

    whole = sharding.replicated(mesh)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    key = _placed(jax.eval_shape(lambda: jax.random.PRNGKey(0)), whole)
    jitted = jax.jit(condense, out_shardings=whole)
    return jitted.lower(table_shapes(num_points, mesh), number, key, number).compile()


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that a program needs on one device, by the compiler's own count; donated arguments count twice."""
    found = compiled.memory_analysis()
    return {
        'argument_bytes': found.argument_size_in_bytes,
        'output_bytes': found.output_size_in_bytes,
        'temporary_bytes': found.temp_size_in_bytes,
    }
