"""Creates a TrainState."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import (
    Batch,
    Clock,
    Method,
    Network,
    Phase,
    Policy,
    PyTree,
    Setup,
    TrainState,
    ValueTable,
    full_plan,
    stream,
)
from kcd_jax.trees import leaf_paths, select

if TYPE_CHECKING:
    from kcd_jax.training.run import Run

# Metrics of every step; a method's own are added by name.
METRICS = ('loss', 'ce', 'kd', 'extra', 'accuracy', 'entropy', 'teacher_entropy')


def split_variables(variables: PyTree) -> tuple[PyTree, PyTree]:
    """(params, model_state) of a network's variables."""
    return variables['params'], {name: tree for name, tree in variables.items() if name != 'params'}


def create(
    key: jax.Array,
    *,
    student: Network,
    method: Method,
    policy: Policy,
    phases: tuple[Phase, ...],
    setup: Setup,
    images: Any,
    metric_names: tuple[str, ...] = (),
    averaged: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      key: the run's base key.
      student: the network.
      method, policy, phases: of the run.
      setup: the method's input for its initialisation.
      images: u8[num_points, H, W, 3] for policies that keep a copy, or None.
      metric_names: the method's own metrics, in addition to `METRICS`.
      averaged: whether the state holds an average of the student's variables.

    Raises:
      ValueError: the method does not support the pair of networks, or two updates share an optimiser's label.
    """
    student_variables = student.init(stream(key, 'student', 0), setup.image_shape)
    student_params, model_state = split_variables(student_variables)
    method_params, method_state = method.init(stream(key, 'method', 0), setup)
    params = {'student': student_params, 'method': method_params}

    opt_state: dict[str, PyTree] = {}
    for phase in phases:
        for update in phase.updates:
            if update.label in opt_state:
                raise ValueError(
                    f'two updates share the optimiser label {update.label!r}; labels are unique over all phases'
                )
            moved = select(params, update.moves)
            if not moved:
                raise ValueError(
                    f'update {update.label!r} moves nothing: no parameter matches {", ".join(update.moves)}'
                )
            opt_state[update.label] = phase.optimisers[update.label].transform.init(moved)

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        epoch=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        model_state=model_state,
        method_state=method_state,
        opt_state=opt_state,
        table=ValueTable.create(setup.num_points, setup.rows),
        plan=full_plan(setup.num_points, setup.rows),
        policy_state=policy.init(setup.num_points, setup.rows, images),
        metrics={name: jnp.zeros(2, jnp.float32) for name in (*METRICS, *metric_names)},
        bad_step=jnp.full((), -1, jnp.int32),
        ema=jax.tree.map(jnp.copy, student_variables) if averaged else {},
    )
    return strong(state)


def strong(tree: PyTree) -> PyTree:
    """The tree without weakly typed leaves, which would recompile the step. NumPy arrays are never weakly typed."""

    def typed(x: Any) -> Any:
        whole = isinstance(x, np.ndarray) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if whole else jnp.asarray(x, x.dtype)

    return jax.tree.map(typed, tree)


def copy_to(tree: PyTree, where: jax.sharding.Sharding) -> PyTree:
    """Copies arrays into new buffers with sharding `where`, without passing through the host.

    A new plan is copied before it joins the state: the state is donated to the next step, donation refuses shared
    buffers, and a policy may return one array twice or an array that is already in the state.

    Args:
      tree: arrays on the devices of `where`, or on the host.
      where: the sharding of every result.

    Returns:
      The same tree; its leaves share no buffers with each other or with `tree`.
    """
    return _copier(where)(tree)


@functools.lru_cache(maxsize=8)
def _copier(where: jax.sharding.Sharding) -> Callable[[PyTree], PyTree]:
    # Without jnp.copy, jit would return an input that passes through unchanged as the same array.
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=where)


def parameter_count(variables: PyTree) -> int:
    """Number of trainable parameters in a network's 'params'."""
    return sum(leaf.size for leaf in leaf_paths(variables['params']).values())


def metric_names(run: Run) -> tuple[str, ...]:
    """The names of the method's own metrics, from its abstract outputs."""
    setup, rows = run.setup, run.rows
    seen = rows * run.method.num_views

    def abstract(rows: int, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    student, teacher = jax.tree.map(lambda x: abstract(seen, x.shape[1:], x.dtype), (setup.student, setup.teacher))
    index = abstract(rows, dtype=jnp.int32)
    batch = Batch(index, abstract(seen, setup.image_shape), index, index, abstract(rows), abstract(rows))
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    clock = Clock(scalar, scalar, scalar)
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    params, method_state = jax.eval_shape(lambda k: run.method.init(k, setup), key)
    found: list[str] = []
    for phase in run.phases:
        for update in phase.updates:
            out = jax.eval_shape(update.loss, params, method_state, student, teacher, batch, clock, key)
            found += [name for name in out.metrics if name not in found and name not in METRICS]
    return tuple(found)
