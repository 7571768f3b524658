"""The contract of every policy. A new file in policies/ is tested with its defaults, without an edit here."""

from __future__ import annotations

import importlib
import inspect
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kcd_jax import policies
from kcd_jax.contracts import Batch, ValueTable, full_plan, table_rows
from kcd_jax.training.state import copy_to

POINTS = 300
EPOCHS = 12
EPSILON_MAX = 0.3

# Options beyond the defaults, (policy, keywords); the defaults of every policy are added to it.
VARIANTS = [
    ('kcd', {'preset': 'reference'}),
    ('kcd', {'preset': 'reference', 'augment': 'random', 'epsilon': 'constant'}),
    ('kcd', {'ratio': 0.3}),
    ('kcd', {'ratio': 1.0}),
    ('kcd', {'first': 'none', 'dropped': 'window', 'augment': 'high', 'epsilon': 'constant'}),
    ('kcd', {'ranking': 'random', 'augment': 'random', 'records': 'last', 'alpha': 0.0}),
    ('kcd', {'augment': 'none', 'value': 'loss'}),
    ('random', {'drawn': 'epoch'}),
    ('balanced', {'classes': 'even', 'ratio': 0.3}),
    ('learnability', {'score': 'entropy', 'ratio': 0.3}),
    ('moderate', {'ratio': 1.0}),
    ('rounds', {'ratio': 0.3, 'sizes': 'constant', 'doubt': 0.2, 'classes': 'proportional'}),
    ('seta', {'groups': 4, 'window': 0.5, 'ratio': 0.5}),
    ('unix', {'score': 'random', 'mix': 'none', 'k': 9}),
    ('unix', {'score': 'margin', 'mix': 'constant', 'beta': 0.2}),
    ('_template', {}),
]


# `reuse` cannot be built from its defaults (it needs the folder of a run); others_test.py tests it.
NEEDS_A_RUN = {'reuse'}


def all_policies():
    return [(name, {}) for name in policies.names() if name not in NEEDS_A_RUN] + VARIANTS


def build(name, keywords):
    if name == '_template':
        from kcd_jax.policies import _template

        return _template.make(**keywords)
    return policies.get(name).make(**keywords)


def identify(case):
    return f'{case[0]}-{"-".join(map(str, case[1].values()))}' if case[1] else case[0]


@pytest.fixture(params=all_policies(), ids=identify)
def case(request):
    return request.param


def images():
    return np.random.default_rng(3).integers(0, 256, (POINTS, 2, 2, 3), np.uint8)


def table_after(epoch, rows):
    """Entropies after `epoch` epochs: the kept points were visited, some never."""
    rng = np.random.default_rng(epoch)
    value = rng.random(rows).astype(np.float32)
    count = rng.integers(0, epoch + 1, rows).astype(np.int32)
    value[count == 0] = 0
    value[POINTS:], count[POINTS:] = 0, 0
    return ValueTable(jnp.asarray(value), jnp.asarray(count), POINTS)


def further(policy, mesh=None):
    """The keywords that `replan` gets beyond its arguments: labels of five classes, the teacher's scores."""
    rows, found = table_rows(POINTS), {}
    real = np.arange(rows) < POINTS
    if policy.reads_labels:
        found['labels'] = np.where(real, np.minimum(np.arange(rows) % 16, 4), 0).astype(np.int32)
    if policy.teacher_scores:
        draw = np.random.default_rng(5).random
        found['teacher'] = {name: np.where(real, draw(rows), 0).astype(np.float32) for name in policy.teacher_scores}
    return jax.device_put(found, None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def run(policy, mesh=None):
    """Every condensation of a run on random values: [(epoch, plan, policy_state)]."""
    rows = table_rows(POINTS)
    plan, state = full_plan(POINTS), policy.init(POINTS, rows, images())
    key = jax.random.key(7)
    if mesh is not None:
        plan, state, key = jax.device_put((plan, state, key), NamedSharding(mesh, PartitionSpec()))
    result = [(0, plan, state)]
    for epoch in range(EPOCHS):
        if policy.when(epoch, EPOCHS):
            table = table_after(epoch, rows)
            if mesh is not None:  # whole on every device, as the contract says
                table = jax.device_put(table, NamedSharding(mesh, PartitionSpec()))
            key_of_epoch = jax.random.fold_in(key, epoch)
            more = further(policy, mesh)
            plan, state = policy.replan(key_of_epoch, table, plan, state, epoch, EPOCHS, **more)
            if mesh is not None:  # as the loop does
                plan, state = copy_to((plan, state), NamedSharding(mesh, PartitionSpec()))
            result.append((epoch, plan, state))
    return result


def test_keywords_are_the_hyper_parameters(case):
    parameters = inspect.signature(importlib.import_module(f'kcd_jax.policies.{case[0]}').make).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


def test_plans_keep_the_contract(case):
    policy = build(*case)
    rows = table_rows(POINTS)
    structure = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), full_plan(POINTS))
    sizes = policy.keep_counts(POINTS, EPOCHS)
    assert len(sizes) == EPOCHS and all(isinstance(n, int) and 1 <= n <= POINTS for n in sizes)
    assert not policy.when(EPOCHS, EPOCHS)
    start = policy.init(POINTS, rows, images())
    history = run(policy)
    for number, (epoch, plan, state) in enumerate(history):
        order, num_keep = np.asarray(plan.order), int(plan.num_keep)
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), plan) == structure
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype, x.weak_type), start
        )
        assert sorted(order) == list(range(rows))
        assert 1 <= num_keep <= POINTS and (order[:num_keep] < POINTS).all(), 'padding is never kept'
        partner, epsilon, weight = (np.asarray(x) for x in (plan.partner, plan.epsilon, plan.weight))
        mixed = epsilon > 0
        assert (partner[:POINTS] < POINTS).all() and (partner >= 0).all()
        assert (epsilon >= 0).all() and (epsilon <= np.float32(EPSILON_MAX)).all()
        assert (partner[~mixed] == np.arange(rows)[~mixed]).all()
        assert np.isin(np.flatnonzero(mixed), order[:num_keep]).all()
        assert policy.mixes or not mixed.any()
        assert (weight >= 0).all() and np.isfinite(weight).all()
        leaves = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((plan, state))]
        assert len(leaves) == len(set(leaves)), 'two leaves share a buffer'
        until = history[number + 1][0] if number + 1 < len(history) else EPOCHS
        if case[0] not in ('infobatch', 'seta'):  # their sizes are known in expectation only
            assert sizes[epoch:until] == [num_keep] * (until - epoch)


def test_plans_are_equal_on_any_number_of_devices(case):
    policy = build(*case)
    single = run(policy)
    for devices in (2, 4):
        split = run(policy, Mesh(np.asarray(jax.devices()[:devices]), ('data',)))
        assert len(single) == len(split)
        for (_, *expected), (_, *found) in zip(single, split, strict=True):
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
                np.testing.assert_array_equal(a, b)
                assert b.sharding.is_fully_replicated and len(b.sharding.device_set) == devices


def test_stages_share_their_compilations(case, caplog):
    """The second condensation may still compile (it sees the first one's plan), the later ones compile nothing."""
    policy = build(*case)
    compiled = []
    plan, state, seen = full_plan(POINTS), policy.init(POINTS, table_rows(POINTS), images()), 0
    more = further(policy)
    for epoch in range(1, EPOCHS):
        if policy.when(epoch, EPOCHS):
            seen += 1
            table, key = table_after(epoch, table_rows(POINTS)), jax.random.fold_in(jax.random.key(7), epoch)
            with caplog.at_level(logging.WARNING), jax.log_compiles(True):
                caplog.clear()
                plan, state = policy.replan(key, table, plan, state, epoch, EPOCHS, **more)
                messages = [r.getMessage() for r in caplog.records if r.getMessage().startswith('Compiling')]
            compiled += messages if seen > 2 else []
    assert not compiled


def test_a_choice_inside_the_batch(case):
    policy = build(*case)
    batch, classes = 16, 5
    rows = policy.rows(batch)
    assert 1 <= rows <= batch
    if policy.in_batch is None:
        assert rows == batch and not policy.scores
        return
    rng = np.random.default_rng(0)
    original = Batch(
        index=jnp.asarray(rng.permutation(batch), jnp.int32),
        image=jnp.asarray(rng.random((batch, 4, 4, 3)), jnp.float32),
        label=jnp.asarray(rng.integers(0, classes, batch), jnp.int32),
        label_b=jnp.asarray(rng.integers(0, classes, batch), jnp.int32),
        lam=jnp.zeros(batch, jnp.float32),
        weight=jnp.ones(batch, jnp.float32),
    )
    logits = jnp.asarray(rng.normal(size=(batch, classes)), jnp.float32)
    chosen = jax.jit(policy.in_batch)(jax.random.key(1), original, logits)
    shapes = jax.tree.map(lambda x: ((rows, *x.shape[1:]), x.dtype), original)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), chosen) == shapes
    label_of = dict(zip(original.index.tolist(), original.label.tolist(), strict=True))
    assert [label_of[i] for i in chosen.index.tolist()] == chosen.label.tolist()
    assert ((chosen.lam >= 0) & (chosen.lam <= 1)).all() and len(set(chosen.index.tolist())) == rows
    assert float(chosen.image.min()) >= 0 and float(chosen.image.max()) <= 1
