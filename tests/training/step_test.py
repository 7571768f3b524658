"""The pure steps: the order of an epoch, and one compiled step against a NumPy-style recomputation."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcd_jax import methods, networks, policies
from kcd_jax.contracts import LossOut, Method, Optimiser, Outputs, Phase, Setup, Update, Weights, full_plan
from kcd_jax.knowledge import prediction_entropy
from kcd_jax.training import evaluate, state, step
from kcd_jax.trees import leaf_paths, merge, select


class TinyLoop:
    """One training step on random images with a given method and phase."""

    def __init__(self, loss=None, *, method_params=None, updates=None, train_mode=('student/*',), record=True):
        loss = loss or methods.get('none').make().loss
        method = Method(loss=loss, init=lambda key, setup: (method_params or {}, {}))
        updates = updates or (Update(loss, ('student/*',), 'main'),)
        main = Optimiser(optax.trace(0.9), lambda epoch: 0.1)
        optimisers = {update.label: main for update in updates}
        self.phase = Phase('main', 1, train_mode, optimisers, updates, record)
        self.calls = 0
        student = networks.get('tiny')(5)

        def counted(variables, image, train):
            self.calls += 1
            return student.apply(variables, image, train)

        self.spec = step.StepSpec(
            dataclasses.replace(student, apply=counted), None, method, policies.get('none').make(), Weights(1.0), 8
        )
        random = np.random.RandomState(0)
        images = random.randint(0, 256, (256, 12, 12, 3)).astype(np.uint8)
        self.points = step.Points(jnp.asarray(images), jnp.asarray(random.randint(0, 5, 256).astype(np.int32)))
        shapes = student.output_shapes((12, 12, 3), 8)
        setup = Setup(shapes, shapes, 200, 256, 5, 8, (12, 12, 3), np.asarray(self.points.labels), student, None, None)
        self.before = state.create(
            jax.random.PRNGKey(0),
            student=student,
            method=method,
            policy=self.spec.policy,
            phases=(self.phase,),
            setup=setup,
            images=None,
        )
        self.order = step.epoch_order(self.before.key, self.before.plan, jnp.int32(0))
        self.run = jax.jit(functools.partial(step.run_chunk, spec=self.spec, phase=self.phase, length=1))

    def step(self, weight=1.0):
        """(state before, state after)."""
        before = self.before.replace(plan=self.before.plan.replace(weight=jnp.full(256, weight, jnp.float32)))
        rates = {label: jnp.float32(0.1) for label in self.phase.optimisers} | {'phase_epoch': jnp.int32(0)}
        return before, self.run(before, self.order, rates, self.points, {})[0]

    def count_student_forwards(self):
        self.calls = 0
        self.step()
        return self.calls


@pytest.fixture
def tiny_loop(tiny_networks):
    return TinyLoop


def plan_of(num_points, kept):
    """A plan that keeps the points `kept`, in that order."""
    plan = full_plan(num_points)
    rest = [i for i in range(plan.order.shape[0]) if i not in set(kept)]
    return plan.replace(order=jnp.asarray([*kept, *rest], jnp.int32), num_keep=jnp.int32(len(kept)))


@given(st.integers(1, 300), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_an_epochs_order_begins_with_the_kept_points_and_is_a_permutation(num_points, epoch, random):
    kept = random.sample(range(num_points), random.randint(1, num_points))
    plan = plan_of(num_points, kept)
    order = np.asarray(step.epoch_order(jax.random.PRNGKey(3), plan, jnp.int32(epoch)))
    assert sorted(order) == list(range(len(order)))
    assert set(order[: len(kept)]) == set(kept)


def test_the_order_of_the_kept_points_does_not_depend_on_how_they_rank():
    """A pure function of (seed, epoch, the kept set): two plans that keep the same set train in the same order."""
    key, epoch = jax.random.PRNGKey(0), jnp.int32(4)
    one = step.epoch_order(key, plan_of(100, [5, 9, 70, 2]), epoch)
    other = step.epoch_order(key, plan_of(100, [2, 70, 5, 9]), epoch)
    np.testing.assert_array_equal(one, other)


def test_each_epoch_and_each_seed_has_its_own_order():
    plan = full_plan(500)
    orders = [
        np.asarray(step.epoch_order(jax.random.PRNGKey(seed), plan, jnp.int32(epoch)))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all((a[:500] != b[:500]).mean() > 0.9 for a, b in ((orders[0], orders[1]), (orders[0], orders[2])))


def test_the_order_is_close_to_uniform():
    """The mean position of each point over many epochs is that of a fair shuffle, within five standard errors."""
    plan, epochs = full_plan(256, rows=256), 200
    orders = jax.vmap(lambda e: step.epoch_order(jax.random.PRNGKey(0), plan, e))(jnp.arange(epochs, dtype=jnp.int32))
    positions = np.argsort(np.asarray(orders), axis=1)
    error = 256 / np.sqrt(12) / np.sqrt(epochs)
    assert np.abs(positions.mean(axis=0) - 127.5).max() < 5 * error


def test_selecting_and_merging_are_inverse():
    tree = {'student': {'a': {'kernel': jnp.ones(2)}, 'b': {'bias': jnp.zeros(3)}}, 'method': {'head': jnp.ones(1)}}
    moved = select(tree, ('student/a/*', 'method/*'))
    assert set(moved) == {'student/a/kernel', 'method/head'}
    again = merge(tree, {path: leaf + 1 for path, leaf in moved.items()})
    assert float(again['student']['a']['kernel'][0]) == 2 and float(again['student']['b']['bias'][0]) == 0
    assert leaf_paths(merge(tree, leaf_paths(tree))).keys() == leaf_paths(tree).keys()


def test_running_statistics_outside_the_trained_part_are_restored():
    old = {'batch_stats': {'stem': {'mean': jnp.zeros(1)}, 'fc': {'mean': jnp.zeros(1)}}}
    new = jax.tree.map(lambda x: x + 1, old)
    mixed = step._restore_outside(new, old, ('student/stem/*',))
    assert float(mixed['batch_stats']['stem']['mean'][0]) == 1 and float(mixed['batch_stats']['fc']['mean'][0]) == 0


def test_evaluation_counts_every_valid_row_once():
    class Stub:
        @staticmethod
        def apply(variables, image, train):
            del variables, train
            return Outputs(logits=image[:, 0, 0, :] * 10.0), {}

    images = np.zeros((4, 8, 8, 3), np.uint8)
    for row, label in enumerate((0, 1, 2, 0)):
        images[row, 0, 0, label] = 255
    labels = np.asarray([0, 1, 0, 0], np.int32)
    valid = np.asarray([True, True, True, False])
    teacher = jnp.asarray([[9.0, 0, 0], [9.0, 0, 0], [0, 0, 9.0], [9.0, 0, 0]])
    sums, reading = evaluate.eval_step({}, jnp.asarray(images), jnp.asarray(labels), jnp.asarray(valid), teacher, Stub)
    assert float(sums['correct']) == 2 and float(sums['agree']) == 2
    log_p = np.asarray(jax.nn.log_softmax(reading.logits))
    np.testing.assert_allclose(reading.entropy, -np.sum(np.exp(log_p) * log_p, axis=-1), atol=1e-6)
    assert 'top5' not in sums, 'five of three classes say nothing'
    assert float(sums['loss']) == pytest.approx(-(log_p[0, 0] + log_p[1, 1] + log_p[2, 0]), rel=1e-6)


def test_two_updates_of_one_step_share_the_students_forward(tiny_loop):
    """The second update sees the same student outputs while the first moved only the method's own parameters."""
    calls = []

    def loss(params, state, student, teacher, batch, clock, key):
        del teacher, clock, key
        calls.append(1)
        return LossOut(extra=jnp.mean(student.embed, axis=-1) * params['scale'] * batch.weight, state=state)

    loop = tiny_loop(
        loss,
        method_params={'scale': jnp.ones(())},
        updates=(
            Update(loss, ('method/*',), 'critic', keep=False),
            Update(loss, ('student/*',), 'main'),
        ),
    )
    forwards = loop.count_student_forwards()
    assert forwards == 1 and len(calls) == 2


def test_a_phase_without_train_mode_leaves_the_running_statistics(tiny_loop):
    def loss(params, state, student, teacher, batch, clock, key):
        del params, student, teacher, clock, key
        return LossOut(extra=jnp.zeros_like(batch.weight), state=state)

    loop = tiny_loop(loss, train_mode=(), record=False)
    before, after = loop.step()
    for path, leaf in leaf_paths(before.model_state).items():
        np.testing.assert_array_equal(leaf, leaf_paths(after.model_state)[path])
    np.testing.assert_array_equal(before.table.count, after.table.count)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    )


def test_a_step_records_the_entropy_of_the_image_that_it_trained_on(tiny_loop):
    loop = tiny_loop()
    before, after = loop.step()
    index = np.asarray(loop.order[: loop.spec.batch])
    raw = step.fetch(loop.points, before, loop.order, loop.spec)
    batch = step._prepare(before, raw, loop.spec)
    outputs, _ = loop.spec.student.apply({'params': before.params['student'], **before.model_state}, batch.image, True)
    expected = prediction_entropy(outputs.logits)
    np.testing.assert_allclose(after.table.value[index], expected, rtol=1e-5)  # jitted against not: fused differently
    assert np.asarray(after.table.count).sum() == loop.spec.batch


def test_a_mean_loss_is_not_divided_by_the_weights_sum(tiny_loop):
    loop = tiny_loop()
    _, half = loop.step(weight=0.5)
    _, full = loop.step(weight=1.0)
    assert float(half.metrics['loss'][0]) == pytest.approx(0.5 * float(full.metrics['loss'][0]), rel=1e-6)


def test_top5_accuracy_of_many_classes():
    class Stub:
        @staticmethod
        def apply(variables, image, train):
            del variables, train
            return Outputs(logits=jnp.broadcast_to(-jnp.arange(20.0), (image.shape[0], 20))), {}

    labels = jnp.asarray([0, 4, 5, 19], jnp.int32)
    images, valid = jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.ones(4, bool)
    sums, _ = evaluate.eval_step({}, images, labels, valid, None, Stub)
    assert float(sums['top5']) == 2 and float(sums['correct']) == 1


def test_the_order_of_an_epoch_is_traced_once_whatever_is_kept():
    chex.clear_trace_counter()
    order = jax.jit(chex.assert_max_traces(step.epoch_order, n=1))
    plan = full_plan(600)
    for num_keep in (600, 300, 20):
        found = order(jax.random.PRNGKey(0), plan.replace(num_keep=jnp.int32(num_keep)), jnp.int32(num_keep))
        assert set(np.asarray(found)[:num_keep]) == set(range(num_keep))
