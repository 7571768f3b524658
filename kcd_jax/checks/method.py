"""The contract of every method, on synthetic outputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kcd_jax import objective
from kcd_jax.checks import require
from kcd_jax.checks.synthetic import make_batch, make_clock, make_outputs, make_setup
from kcd_jax.contracts import NEEDS, Network, Optimiser, Outputs, default_phases, table_rows
from kcd_jax.trees import leaf_paths, matches

POINTS, ROWS, CLASSES = 40, 4, 5
EXTREMES = ('zero features', 'zero features of the student', 'equal', 'huge logits')


class Case:
    """A method on synthetic outputs, compiled once: `run` returns the loss, the LossOut and the gradients."""

    def __init__(self, module: ModuleType):
        self.module = module
        self.method = module.make()
        views = self.method.num_views
        # FSP needs equal channels, and the others accept them; unequal maps are tested per method.
        self.student, self.teacher = (make_outputs(ROWS * views, seed=seed) for seed in (1, 2))
        self.setup = make_setup(make_outputs(ROWS, seed=1), make_outputs(ROWS, seed=2))
        self.batch = make_batch(ROWS, CLASSES, POINTS, views)
        self.clock = make_clock(3)
        self.params, self.state = self.method.init(jax.random.key(0), self.setup)
        self.traces = 0
        self._run = jax.jit(jax.value_and_grad(self.loss, argnums=(0, 1), has_aux=True))

    def loss(self, params: Any, student: Outputs, state: Any, teacher: Any, batch: Any, key: Any) -> Any:
        """The batch's loss and the LossOut; counts its traces."""
        self.traces += 1
        out = self.method.loss(params, state, student, teacher, batch, self.clock, key)
        return objective.batch_loss(out.extra, batch.weight), out

    def run(self, student: Any = None, teacher: Any = None, batch: Any = None, state: Any = None) -> Any:
        """(loss, LossOut, gradients of the method's parameters and of the student's outputs)."""
        student = self.student if student is None else student
        teacher = self.teacher if teacher is None else teacher
        teacher = teacher if self.method.needs else None
        batch = self.batch if batch is None else batch
        state = self.state if state is None else state
        (loss, out), grads = self._run(self.params, student, state, teacher, batch, jax.random.key(7))
        return loss, out, grads


def cases(module: ModuleType, name: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(title, what builds the case) of a file; the case is built once."""
    yield f'method {name}', functools.cache(lambda: Case(module))


def finite(tree: Any) -> bool:
    """Whether all numbers of a tree are finite."""
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))


def described(tree: Any) -> Any:
    """(shape, dtype, whether weakly typed) of each leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, 'weak_type', False)), tree)


def contract(case: Case) -> None:
    """Its own term is f32[B], finite, with gradients, and its state keeps structure, shapes and dtypes."""
    loss, out, grads = case.run()
    require(
        out.extra.shape == (ROWS,) and out.extra.dtype == jnp.float32,
        f'extra is {out.extra.dtype}{list(out.extra.shape)}, not float32[{ROWS}]',
    )
    require(loss.dtype == jnp.float32 and finite((loss, out, grads)), 'loss, state or gradient are not finite')
    bad = [name for name, value in out.metrics.items() if value.shape != () or value.dtype != jnp.float32]
    require(not bad, f'metrics {", ".join(bad)} are no float32 scalars')
    require(described(out.state) == described(case.state), 'the new state has other shapes or dtypes than the old one')
    weak = any(leaf.weak_type for leaf in jax.tree.leaves((case.params, case.state)))
    require(not weak, 'a leaf is weakly typed; give jnp.zeros and the like a dtype')
    wide = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(case.params))
    require(wide, 'a parameter is not float32')
    # The new state works like the old one: the loss of the same batch is still finite.
    require(finite(case.run(state=out.state)), 'the second step is not finite')


def needs(case: Case) -> None:
    """It reads nothing of the teacher that `needs` does not name."""
    unknown = set(case.method.needs) - set(NEEDS)
    require(not unknown, f'needs names {", ".join(sorted(unknown))}; use some of {", ".join(NEEDS)}')
    named = [name for name in case.method.needs if name != 'variables']
    blank = Outputs(logits=None)
    teacher = blank.replace(**{name: getattr(case.teacher, name) for name in named}) if named else None
    run = jax.value_and_grad(case.loss, argnums=(0, 1), has_aux=True)
    traces = case.traces
    try:
        given = (case.params, case.student, case.state, teacher, case.batch, jax.random.key(7))
        (loss, _), _ = jax.eval_shape(run, *given)
    finally:
        case.traces = traces  # fewer inputs are another program
    require(loss.dtype == jnp.float32, f'the loss is {loss.dtype}')


def hard(case: Case, kind: str) -> tuple[Outputs, Outputs]:
    """(student, teacher) outputs of an extreme case, one of `EXTREMES`."""
    if kind == 'zero features':
        blank = jax.tree.map(jnp.zeros_like, case.student)
        return blank.replace(aux=case.student.aux), blank
    if kind == 'zero features of the student':
        return jax.tree.map(jnp.zeros_like, case.student).replace(aux=case.student.aux), case.teacher
    if kind == 'equal':
        return case.student, case.student

    def scaled(outputs: Outputs) -> Outputs:
        branches = 1e4 * outputs.aux['branches']
        return outputs.replace(logits=1e4 * outputs.logits, aux={**outputs.aux, 'branches': branches})

    return scaled(case.student), scaled(case.teacher)


def extremes(case: Case) -> None:
    """Loss, gradient and state are finite for zero features, equal networks and huge logits."""
    bad = [kind for kind in EXTREMES if not finite(case.run(*hard(case, kind)))]
    require(not bad, f'not finite for {", ".join(bad)}')


def bfloat16(case: Case) -> None:
    """Bfloat16 outputs give float32 terms and state."""

    def narrow(outputs: Outputs) -> Outputs:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)

    student = narrow(case.student)
    teacher = narrow(case.teacher) if case.method.needs else None
    run = jax.value_and_grad(case.loss, argnums=(0, 1), has_aux=True)
    (loss, out), grads = jax.eval_shape(run, case.params, student, case.state, teacher, case.batch, jax.random.key(7))
    require(loss.dtype == out.extra.dtype == jnp.float32, f'extra is {out.extra.dtype}; cast the features to float32')
    same = [x.dtype for x in jax.tree.leaves(out.state)] == [x.dtype for x in jax.tree.leaves(case.state)]
    require(same, 'the state changes its dtypes')
    require(all(grad.dtype == jnp.bfloat16 for grad in jax.tree.leaves(grads[1])), 'gradients are not bfloat16')


def weight_zero(case: Case) -> None:
    """A row of weight zero gives no gradient."""
    # Only through its own term: in a relational loss the terms of other points still depend on it.
    weight = case.batch.weight.at[1].set(0.0)
    _, out, (_, grads) = case.run(batch=case.batch.replace(weight=weight))
    require(finite((out, grads)), 'not finite')
    if getattr(case.module, 'RELATIONAL', False):
        return
    views = case.method.num_views
    touched = any(np.any(np.asarray(leaf)[views : 2 * views]) for leaf in jax.tree.leaves(grads))
    require(not touched, 'it does; say RELATIONAL = True if the terms of other points depend on a row by design')


def weight_once(case: Case) -> None:
    """`extra` does not depend on the weights, which the objective applies once."""
    heavy = case.batch.replace(weight=case.batch.weight.at[0].set(3.0))
    require(np.array_equal(case.run(batch=heavy)[1].extra, case.run()[1].extra), 'it does')


def padding(case: Case) -> None:
    """A padding row leaves the state unchanged."""
    padded = case.batch.replace(
        index=case.batch.index.at[-1].set(table_rows(POINTS)), weight=case.batch.weight.at[-1].set(0.0)
    )
    plain = case.batch.replace(weight=padded.weight)
    _, out, grads = case.run(batch=padded)
    require(finite((out, grads)), 'not finite')
    # The rows' own embeddings do not move; Z of the first batch sees the padding row, which an epoch never has.
    expected = leaf_paths(case.run(batch=plain)[1].state)
    moved = [
        p for p, x in leaf_paths(out.state).items() if 'normaliser' not in p and not np.array_equal(x, expected[p])
    ]
    require(not moved, f'it changes {", ".join(moved)}; scatter with mode="drop"')


def one_trace(case: Case) -> None:
    """One trace serves every batch."""
    case.run()
    require(case.traces <= 2, f'{case.traces} traces')  # one for the program, one for the abstract bfloat16 pass


def tiny_network() -> Network:
    """A network of three parameters for the phases."""

    def init(key: Any, shape: Any) -> Any:
        del key, shape
        norm = {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}
        return {'params': {'conv': {'kernel': jnp.ones((3, 3))}, 'bn': norm, 'fc': {'kernel': jnp.ones((3, 2))}}}

    return Network('tiny', init, lambda *_: None, tail=('fc/*',))


def phases(case: Case) -> None:
    """Labels are unique, every update moves parameters, every parameter is trained, one update keeps statistics."""
    main, student = Optimiser(optax.trace(0.9), lambda epoch: 0.1 / (1 + epoch)), tiny_network()
    if case.method.phases is None:
        found = default_phases(case.method, 8, main)
    else:
        found = case.method.phases(8, main, student)
    params = {'student': student.init(None, None)['params'], 'method': case.params}
    paths = list(leaf_paths(params))
    labels, moved = [], set()
    for phase in found:
        keeping = sum(update.keep for update in phase.updates)
        require(
            phase.epochs >= 1 and keeping == 1, f'phase {phase.name}: {phase.epochs} epochs, {keeping} updates keep'
        )
        for update in phase.updates:
            labels.append(update.label)
            now = {path for path in paths if matches(path, update.moves)}
            require(now, f'{update.label} moves nothing')
            moved |= now
            require(phase.optimisers[update.label].lr(0) > 0.0, f'the learning rate of {update.label} is 0')
    require(len(labels) == len(set(labels)), f'two updates have one label: {", ".join(labels)}')
    require(moved == set(paths), f'{", ".join(sorted(set(paths) - moved))} are never trained')
    recorded = sum(phase.epochs for phase in found if phase.record)
    require(recorded == 8, f'{recorded} of 8 epochs are recorded')


def keywords(case: Case) -> None:
    """The settings are keywords of `make` with plain defaults, explained in its docstring."""
    parameters = inspect.signature(case.module.make).parameters.values()
    text = inspect.getdoc(case.module.make) or ''
    for p in parameters:
        plain = p.kind is p.KEYWORD_ONLY and isinstance(p.default, int | float | str)
        require(plain, f'{p.name} is no keyword with a number or a word as default')
        require(p.name in text, f'the docstring of make does not name {p.name}')
    require(len(inspect.getdoc(case.module) or '') > 80, 'the file has no docstring that says what the method is')


def donation(case: Case) -> None:
    """Parameters and state share no buffers, and are known without running `init`."""
    leaves = jax.tree.leaves((case.params, case.state))
    require(len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves), 'two leaves share a buffer')
    shapes = jax.eval_shape(lambda key: case.method.init(key, case.setup), jax.random.key(0))
    sizes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (shapes, (case.params, case.state))]
    require(sizes[0] == sizes[1], 'init gives other shapes under jax.eval_shape')


def same_key(case: Case) -> None:
    """Equal keys give equal parameters."""
    again = jax.tree.leaves(case.method.init(jax.random.key(0), case.setup))
    require(all(map(np.array_equal, again, jax.tree.leaves((case.params, case.state)))), 'they do not')


CHECKS: tuple[Callable[[Case], None], ...] = (
    contract,
    needs,
    extremes,
    bfloat16,
    weight_zero,
    weight_once,
    padding,
    one_trace,
    phases,
    keywords,
    donation,
    same_key,
)
