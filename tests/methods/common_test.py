"""The contract of every method. A new file in methods/ is tested with its defaults, without an edit here."""

from __future__ import annotations

import functools
import importlib
import inspect
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kcd_jax import contracts, methods, objective, plugins
from kcd_jax.contracts import Network, Optimiser, default_phases, table_rows
from kcd_jax.methods import _parts, sp
from kcd_jax.trees import leaf_paths, matches

POINTS, ROWS, CLASSES = 40, 4, 5


def module_of(name):
    return importlib.import_module(f'kcd_jax.methods.{name}')


class Case:
    """A method on synthetic outputs, compiled once: `run` returns the loss, the LossOut and the gradients."""

    def __init__(self, name, make_setup, make_outputs, make_batch, clock):
        self.module = module_of(name)
        self.method = self.module.make()
        views = self.method.num_views
        # FSP needs equal channels, and the others accept them; unequal maps are tested per method.
        self.student, self.teacher = (make_outputs(ROWS * views, seed=seed) for seed in (1, 2))
        self.setup = make_setup(make_outputs(ROWS, seed=1), make_outputs(ROWS, seed=2))
        self.batch = make_batch(ROWS, CLASSES, POINTS, views)
        self.clock = clock(3)
        self.params, self.state = self.method.init(jax.random.key(0), self.setup)
        self.traces = 0
        self._run = jax.jit(jax.value_and_grad(self._loss, argnums=(0, 1), has_aux=True))

    def _loss(self, params, student, state, teacher, batch, key):
        self.traces += 1
        out = self.method.loss(params, state, student, teacher, batch, self.clock, key)
        return objective.batch_loss(out.extra, batch.weight), out

    def run(self, student=None, teacher=None, batch=None, state=None):
        student = self.student if student is None else student
        teacher = self.teacher if teacher is None else teacher
        teacher = teacher if self.method.needs else None
        batch = self.batch if batch is None else batch
        state = self.state if state is None else state
        (loss, out), grads = self._run(self.params, student, state, teacher, batch, jax.random.key(7))
        return loss, out, grads


@pytest.fixture(scope='module')
def cases():
    return {}


@pytest.fixture(params=[*methods.names(), '_template'])
def case(request, cases, make_setup, make_outputs, make_batch, clock):
    if request.param not in cases:
        cases[request.param] = Case(request.param, make_setup, make_outputs, make_batch, clock)
    return cases[request.param]


def finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact))


def check_contract(case):
    """Extra per point, float32; the state's structure, shapes and dtypes unchanged, none of them weakly typed."""
    loss, out, grads = case.run()
    assert out.extra.shape == (ROWS,) and out.extra.dtype == jnp.float32
    assert loss.dtype == jnp.float32 and finite((loss, out, grads))
    assert all(metric.shape == () and metric.dtype == jnp.float32 for metric in out.metrics.values())

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, 'weak_type', False)), tree)

    assert described(out.state) == described(case.state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((case.params, case.state)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(case.params))
    # The new state works like the old one: the loss of the same batch is still finite.
    assert finite(case.run(state=out.state))


def test_the_contract_holds(case):
    check_contract(case)


def hard(case, kind):
    """(student, teacher) outputs of an extreme case."""
    if kind == 'zero features':
        blank = jax.tree.map(jnp.zeros_like, case.student)
        return blank.replace(aux=case.student.aux), blank
    if kind == 'zero features of the student':
        return jax.tree.map(jnp.zeros_like, case.student).replace(aux=case.student.aux), case.teacher
    if kind == 'equal':
        return case.student, case.student

    def scaled(outputs):
        branches = 1e4 * outputs.aux['branches']
        return outputs.replace(logits=1e4 * outputs.logits, aux={**outputs.aux, 'branches': branches})

    return scaled(case.student), scaled(case.teacher)


def test_the_loss_reads_nothing_of_the_teacher_that_needs_does_not_name(case):
    """The teacher pass returns only the outputs in `needs`."""
    blank = contracts.Outputs(logits=None)
    named = [name for name in case.method.needs if name != 'variables']
    teacher = blank.replace(**{name: getattr(case.teacher, name) for name in named}) if named else None
    run = jax.value_and_grad(case._loss, argnums=(0, 1), has_aux=True)
    (loss, _), _ = jax.eval_shape(run, case.params, case.student, case.state, teacher, case.batch, jax.random.key(7))
    case.traces -= 1  # fewer inputs are another program
    assert loss.dtype == jnp.float32 and set(case.method.needs) <= set(contracts.NEEDS)


@pytest.mark.parametrize('kind', ['zero features', 'zero features of the student', 'equal', 'huge logits'])
def test_value_gradient_and_state_are_finite_for_extreme_inputs(case, kind):
    assert finite(case.run(*hard(case, kind)))


def test_bfloat16_outputs_give_float32_terms_and_state(case):
    """Shapes and dtypes of the whole gradient, traced; the arithmetic is float32's from the first cast on."""

    def narrow(outputs):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)

    student = narrow(case.student)
    teacher = narrow(case.teacher) if case.method.needs else None
    run = jax.value_and_grad(case._loss, argnums=(0, 1), has_aux=True)
    (loss, out), grads = jax.eval_shape(run, case.params, student, case.state, teacher, case.batch, jax.random.key(7))
    assert loss.dtype == out.extra.dtype == jnp.float32
    assert jax.tree.map(lambda x: x.dtype, out.state) == jax.tree.map(lambda x: x.dtype, case.state)
    assert all(grad.dtype == jnp.bfloat16 for grad in jax.tree.leaves(grads[1]))


@pytest.mark.slow
def test_bfloat16_outputs_give_finite_values_close_to_float32(case):
    def narrow(outputs):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)

    _, out, grads = case.run(narrow(case.student), narrow(case.teacher))
    case.traces -= 1  # another dtype is another program
    assert finite((out, grads))
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), narrow(outputs)) for outputs in (case.student, case.teacher)]
    # The same numbers, widened before: only the network's own rounding is left out.
    np.testing.assert_allclose(out.extra, case.run(*wide)[1].extra, rtol=1e-4, atol=1e-6)


def test_a_row_of_weight_zero_gives_no_gradient(case):
    """Only through its own term: in a relational loss the terms of other points still depend on it."""
    weight = case.batch.weight.at[1].set(0.0)
    _, out, (_, grads) = case.run(batch=case.batch.replace(weight=weight))
    assert finite((out, grads))
    if getattr(case.module, 'RELATIONAL', False):
        return
    views = case.method.num_views
    for leaf in jax.tree.leaves(grads):
        assert not np.any(np.asarray(leaf)[views : 2 * views])


def test_a_points_weight_scales_only_its_own_term(case):
    """`extra` does not depend on the weight, which the objective applies once."""
    heavy = case.batch.replace(weight=case.batch.weight.at[0].set(3.0))
    np.testing.assert_array_equal(case.run(batch=heavy)[1].extra, case.run()[1].extra)


def test_padding_is_inert(case):
    """A row with the padding index and weight 0 leaves the state unchanged."""
    padded = case.batch.replace(
        index=case.batch.index.at[-1].set(table_rows(POINTS)), weight=case.batch.weight.at[-1].set(0.0)
    )
    plain = case.batch.replace(weight=padded.weight)
    _, out, grads = case.run(batch=padded)
    assert finite((out, grads))
    # The rows' own embeddings do not move; Z of the first batch sees the padding row, which an epoch never has.
    expected = case.run(batch=plain)[1].state
    for path, leaf in leaf_paths(out.state).items():
        if 'normaliser' not in path:
            np.testing.assert_array_equal(leaf, leaf_paths(expected)[path])


def test_one_trace_served_every_case(case):
    case.run()
    assert case.traces <= 2  # one for the program, one for the abstract bfloat16 pass


def tiny_network():
    def init(key, shape):
        del key, shape
        norm = {'scale': jnp.ones(3), 'bias': jnp.zeros(3)}
        return {'params': {'conv': {'kernel': jnp.ones((3, 3))}, 'bn': norm, 'fc': {'kernel': jnp.ones((3, 2))}}}

    return Network('tiny', init, lambda *_: None, tail=('fc/*',))


def check_phases(case):
    """Labels are unique, every update moves parameters, every parameter is trained, one update keeps statistics."""
    main, student = Optimiser(optax.trace(0.9), lambda epoch: 0.1 / (1 + epoch)), tiny_network()
    if case.method.phases is None:
        phases = default_phases(case.method, 8, main)
    else:
        phases = case.method.phases(8, main, student)
    params = {'student': student.init(None, None)['params'], 'method': case.params}
    paths = list(leaf_paths(params))
    labels, moved = [], set()
    for phase in phases:
        assert phase.epochs >= 1 and sum(update.keep for update in phase.updates) == 1
        for update in phase.updates:
            labels.append(update.label)
            now = {path for path in paths if matches(path, update.moves)}
            assert now, f'{update.label} moves nothing'
            moved |= now
            assert phase.optimisers[update.label].lr(0) > 0.0
    assert len(labels) == len(set(labels))
    assert moved == set(paths)
    assert sum(phase.epochs for phase in phases if phase.record) == 8


def test_the_phases_are_sound(case):
    check_phases(case)


def test_hyper_parameters_are_keywords_with_plain_defaults(case):
    parameters = inspect.signature(case.module.make).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and isinstance(p.default, int | float | str) for p in parameters)
    assert all(p.name in inspect.getdoc(case.module.make) for p in parameters)
    assert len(inspect.getdoc(case.module)) > 80


def test_the_state_can_be_donated_and_described_without_running(case):
    leaves = jax.tree.leaves((case.params, case.state))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    shapes = jax.eval_shape(lambda key: case.method.init(key, case.setup), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), (case.params, case.state)
    )


def test_init_follows_the_key(case):
    same = case.method.init(jax.random.key(0), case.setup)
    jax.tree.map(np.testing.assert_array_equal, same, (case.params, case.state))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'fitnets' \(did you mean 'fitnet'\?\); known: .*vid"):
        methods.get('fitnets')
    assert '_template' not in methods.names() and '_parts' not in methods.names()


def test_a_new_file_is_found_by_its_name(tmp_path, monkeypatch, make_setup, make_outputs, make_batch, clock):
    shutil.copy(module_of('_template').__file__, tmp_path / 'nearest_words.py')
    monkeypatch.setattr(methods, '__path__', [*methods.__path__, str(tmp_path)])
    try:
        assert 'nearest_words' in methods.names()
        module = methods.get('nearest_words')
        assert module.__file__ == str(tmp_path / 'nearest_words.py')
        assert plugins.hyper_parameters(module) == {'scale': 1.0}
        case = Case('nearest_words', make_setup, make_outputs, make_batch, clock)
        check_contract(case)
        check_phases(case)
    finally:
        sys.modules.pop('kcd_jax.methods.nearest_words', None)
        vars(methods).pop('nearest_words', None)


@pytest.mark.parametrize(
    ('rows', 'group', 'size'), [(64, 64, 64), (128, 64, 64), (48, 64, 48), (96, 64, 48), (1, 64, 1)]
)
def test_groups_are_equal_and_at_most_as_large_as_asked(rows, group, size):
    assert _parts.group_size(rows, group) == size


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match='a batch of 97 does not split into equal groups of 2 to 64'):
        _parts.group_size(97, 64)


def test_relations_do_not_depend_on_the_number_of_devices():
    features = jax.random.normal(jax.random.key(0), (2, 16, 6))
    loss = jax.jit(functools.partial(sp.similarity_loss, group=4))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
    split = jax.device_put(features, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'data')))
    # Each device sums its own rows in the same order; only a fused program may round otherwise.
    np.testing.assert_allclose(loss(split[0], split[1]), loss(features[0], features[1]), rtol=1e-6)
