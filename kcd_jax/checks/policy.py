"""The contract of every policy, on random values."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax.checks import require
from kcd_jax.contracts import Batch, Plan, Policy, ValueTable, full_plan, table_rows
from kcd_jax.runtime import sharding
from kcd_jax.training.state import copy_to

POINTS, EPOCHS = 300, 12
ROWS = table_rows(POINTS)


class Case:
    """A policy and the module that makes it."""

    def __init__(self, module: ModuleType, keywords: Mapping[str, Any] | None = None):
        self.module = module
        self.policy: Policy = module.make(**(keywords or {}))

    @functools.cached_property
    def history(self) -> list[tuple[int, Plan, Any]]:
        """`run` on one device."""
        return self.run()

    def run(self, mesh: Mesh | None = None) -> list[tuple[int, Plan, Any]]:
        """Every condensation of a run on random values: [(epoch, plan, policy_state)]."""
        policy = self.policy
        plan, state = full_plan(POINTS), policy.init(POINTS, ROWS, images())
        key, more = jax.random.key(7), further(policy)
        if mesh is not None:
            plan, state, key, more = jax.device_put((plan, state, key, more), sharding.replicated(mesh))
        result = [(0, plan, state)]
        for epoch in range(EPOCHS):
            if policy.when(epoch, EPOCHS):
                table = table_after(epoch)
                if mesh is not None:  # whole on every device, as the contract says
                    table = jax.device_put(table, sharding.replicated(mesh))
                plan, state = policy.replan(jax.random.fold_in(key, epoch), table, plan, state, epoch, EPOCHS, **more)
                if mesh is not None:  # as the loop does
                    plan, state = copy_to((plan, state), sharding.replicated(mesh))
                result.append((epoch, plan, state))
        return result


def cases(module: ModuleType, name: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(title, what builds the case) of a file."""
    yield f'policy {name}', functools.cache(lambda: Case(module))


def images() -> np.ndarray:
    """u8[POINTS, 2, 2, 3]."""
    return np.random.default_rng(3).integers(0, 256, (POINTS, 2, 2, 3), np.uint8)


def table_after(epoch: int) -> ValueTable:
    """Entropies after `epoch` epochs: the kept points were visited, some never."""
    rng = np.random.default_rng(epoch)
    value = rng.random(ROWS).astype(np.float32)
    count = rng.integers(0, epoch + 1, ROWS).astype(np.int32)
    value[count == 0] = 0
    value[POINTS:], count[POINTS:] = 0, 0
    return ValueTable(jnp.asarray(value), jnp.asarray(count), POINTS)


def further(policy: Policy) -> dict[str, Any]:
    """The keywords that `replan` gets beyond its arguments: labels of five classes, the teacher's scores."""
    found: dict[str, Any] = {}
    real = np.arange(ROWS) < POINTS
    if policy.reads_labels:
        found['labels'] = np.where(real, np.minimum(np.arange(ROWS) % 16, 4), 0).astype(np.int32)
    if policy.teacher_scores:
        draw = np.random.default_rng(5).random
        found['teacher'] = {name: np.where(real, draw(ROWS), 0).astype(np.float32) for name in policy.teacher_scores}
    return jax.device_put(found)


def described(tree: Any) -> Any:
    """(shape, dtype, whether weakly typed) of each leaf."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def keywords(case: Case) -> None:
    """The settings are keywords of `make` with defaults."""
    parameters = inspect.signature(case.module.make).parameters.values()
    bad = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
    require(not bad, f'{", ".join(bad)} are none')


def sizes(case: Case) -> None:
    """The sizes of the epochs are known beforehand, and no plan is made after the last one."""
    counts = case.policy.keep_counts(POINTS, EPOCHS)
    whole = len(counts) == EPOCHS and all(isinstance(n, int) and 1 <= n <= POINTS for n in counts)
    require(whole, f'keep_counts({POINTS}, {EPOCHS}) is {counts}; it must be {EPOCHS} integers from 1 to {POINTS}')
    require(not case.policy.when(EPOCHS, EPOCHS), 'when(epochs, epochs) asks for one')
    if getattr(case.module, 'SIZES_EXPECTED', False):
        return
    for number, (epoch, plan, _) in enumerate(case.history):
        until = case.history[number + 1][0] if number + 1 < len(case.history) else EPOCHS
        kept = int(plan.num_keep)
        require(
            counts[epoch:until] == [kept] * (until - epoch),
            f'keep_counts says {counts[epoch:until]} from epoch {epoch}, and the plan keeps {kept}; say '
            'SIZES_EXPECTED = True in the file if sizes depend on the data',
        )


def plans(case: Case) -> None:
    """Plans and states keep shapes, rank every point once, keep real points and mix only kept ones."""
    start = case.policy.init(POINTS, ROWS, images())
    for epoch, plan, state in case.history:
        at = f'epoch {epoch}: '
        order, num_keep = np.asarray(plan.order), int(plan.num_keep)
        require(described(plan) == described(full_plan(POINTS)), f'{at}the plan has other shapes or dtypes')
        require(described(state) == described(start), f'{at}the state has other shapes or dtypes than from init')
        require(sorted(order) == list(range(ROWS)), f'{at}order is no permutation')
        kept = 1 <= num_keep <= POINTS and (order[:num_keep] < POINTS).all()
        require(kept, f'{at}num_keep is {num_keep}, or padding is kept')
        partner, epsilon, weight = (np.asarray(x) for x in (plan.partner, plan.epsilon, plan.weight))
        mixed = epsilon > 0
        require((partner[:POINTS] < POINTS).all() and (partner >= 0).all(), f'{at}a partner is padding')
        require((epsilon >= 0).all() and (epsilon <= 1).all(), f'{at}epsilon is outside of [0, 1]')
        require((partner[~mixed] == np.arange(ROWS)[~mixed]).all(), f'{at}an unmixed point has another partner')
        require(np.isin(np.flatnonzero(mixed), order[:num_keep]).all(), f'{at}a dropped point is mixed')
        require(case.policy.mixes or not mixed.any(), f'{at}points are mixed, and mixes is False')
        require((weight >= 0).all() and np.isfinite(weight).all(), f'{at}a weight is negative or not finite')
        leaves = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((plan, state))]
        require(len(leaves) == len(set(leaves)), f'{at}two leaves share a buffer')


def devices(case: Case) -> None:
    """Plans are the same on as many of 1, 2 and 4 devices as there are."""
    single, count = jax.device_get(case.history), jax.device_count()
    for number in (n for n in (2, 4) if n <= count):
        split = case.run(sharding.make_mesh(jax.devices()[:number]))
        require(len(single) == len(split), f'{len(split)} plans on {number} devices, and {len(single)} on one')
        for (epoch, *expected), (_, *found) in zip(single, split, strict=True):
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
                require(np.array_equal(a, b), f'epoch {epoch}: they differ on {number} devices')
                whole = b.sharding.is_fully_replicated and len(b.sharding.device_set) == number
                require(whole, f'epoch {epoch}: a leaf is not whole on each of {number} devices')


class _Compilations(logging.Handler):
    """Counts what JAX compiles."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the lines on compilations."""
        if (line := record.getMessage()).startswith('Compiling'):
            self.names.append(line.split()[1])


def compilations(case: Case) -> None:
    """From the third plan on nothing is compiled anew."""
    # The second one may still compile: it sees the first one's plan.
    policy, handler, logger = case.policy, _Compilations(), logging.getLogger('jax')
    plan, state, seen = full_plan(POINTS), policy.init(POINTS, ROWS, images()), 0
    more, propagated = further(policy), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        for epoch in (epoch for epoch in range(1, EPOCHS) if policy.when(epoch, EPOCHS)):
            seen += 1
            table, key = table_after(epoch), jax.random.fold_in(jax.random.key(7), epoch)
            with jax.log_compiles(True):
                handler.names.clear()
                plan, state = policy.replan(key, table, plan, state, epoch, EPOCHS, **more)
            require(seen <= 2 or not handler.names, f'epoch {epoch} compiles {", ".join(handler.names)}')
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def in_batch(case: Case) -> None:
    """A choice inside the batch returns distinct points of it with their labels, and images in [0, 1]."""
    policy, batch, classes = case.policy, 16, 5
    rows = policy.rows(batch)
    require(1 <= rows <= batch, f'rows({batch}) is {rows}')
    if policy.in_batch is None:
        require(rows == batch and not policy.scores, 'rows or scores say that it chooses, and in_batch is None')
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
    require(
        jax.tree.map(lambda x: (x.shape, x.dtype), chosen) == shapes, f'shapes or dtypes are not those of {rows} rows'
    )
    label_of = dict(zip(original.index.tolist(), original.label.tolist(), strict=True))
    require([label_of.get(i) for i in chosen.index.tolist()] == chosen.label.tolist(), 'labels are of other points')
    require(len(set(chosen.index.tolist())) == rows, 'a point is chosen twice')
    require(((chosen.lam >= 0) & (chosen.lam <= 1)).all(), 'lam is outside [0, 1]')
    require(float(chosen.image.min()) >= 0 and float(chosen.image.max()) <= 1, 'pixels are outside [0, 1]')


CHECKS: tuple[Callable[[Case], None], ...] = (keywords, sizes, plans, devices, compilations, in_batch)
