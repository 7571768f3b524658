"""Parts of the training step, and what epochs and whole runs of it take."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.results import Row
from benchmarks.timed_run import BATCH, in_own_process, timed_run
from kcd_jax import knowledge
from kcd_jax.contracts import ValueTable
from kcd_jax.runtime import sharding

PAIRS = ('resnet20-resnet8', 'resnet56-resnet20', 'wrn_40_2-wrn_16_2', 'resnet32x4-shufflev2', 'vgg13-mobilenetv2')
CIFAR_POINTS, EPOCHS = 50_000, 240

# What a run does up to its first step: imports, the config, 50,000 images in memory, a teacher, the state, compilation.
FIRST_STEP = """
import time
from kcd_jax.commands import launch
launch.prepare_jax(0)
from benchmarks.timed_run import timed_run
timed_run({pair!r}, 50_000, policy='kcd').step()
print(time.time())
"""


def startup(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """From the start of the program to the end of its first step, with an empty and with a filled compilation cache."""
    pair = PAIRS[0] if quick else PAIRS[2]
    for cache, target in (('cold', 15), ('warm', 6)):
        started = time.time()
        ended = in_own_process('-c', FIRST_STEP.format(pair=pair), JAX_COMPILATION_CACHE_DIR=str(scratch / 'xla'))
        seconds = float(ended) - started
        yield Row(
            f'start to first step, {pair}, compilation cache {cache}',
            f'{seconds:.1f} s',
            f'{target} s',
            seconds <= target,
            {'seconds': seconds},
        )


def overhead(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Recording and condensing as a share of the training time, for the cheapest pair, where it is largest."""
    del scratch
    mesh = sharding.make_mesh()
    split, whole = sharding.batch(mesh), sharding.replicated(mesh)
    record = jax.jit(
        lambda table, index, logits: knowledge.record(table, index, knowledge.prediction_entropy(logits)),
        donate_argnums=0,
        out_shardings=split,
    )
    rng = np.random.default_rng(0)
    table = sharding.put(ValueTable.create(CIFAR_POINTS), split)
    index = sharding.put(rng.integers(0, CIFAR_POINTS, BATCH, np.int32), split)
    logits = sharding.put(rng.normal(size=(BATCH, 100)).astype(np.float32), split)

    def record_batch() -> jax.Array:
        nonlocal table
        table = record(table, index, logits)
        return table.value

    run = timed_run(PAIRS[0], CIFAR_POINTS, policy='kcd')
    policy, full = run.run.policy, sharding.put(run.state.table, whole)
    replans = [epoch for epoch in range(EPOCHS) if policy.when(epoch, EPOCHS)]

    def condense() -> Any:
        state = run.state
        return policy.replan(state.key, full, state.plan, state.policy_state, replans[-1], EPOCHS)

    functions = {'step': run.step, 'record': record_batch, 'condense': condense}
    ms = timing.alternate(functions, 5 if quick else 15)
    steps = sum(size // BATCH for size in policy.keep_counts(CIFAR_POINTS, EPOCHS))
    share = (steps * ms['record'] + len(replans) * ms['condense']) / (steps * ms['step'])
    yield Row(
        f'recording + condensing, share of training, {PAIRS[0]}',
        f'{100 * share:.2f} % ({ms["record"]:.2f} + {ms["condense"]:.0f} ms)',
        'under 1 %',
        share < 0.01,
        ms,
    )


def scoring(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """A step of UNIX with its scoring pass over one without, in time and in multiply-accumulates of the ledger."""
    del scratch
    for pair in (PAIRS[0],) if quick else (PAIRS[0], PAIRS[2]):
        scores = {'scored': 'entropy', 'unscored': 'random'}
        runs = {name: timed_run(pair, 4 * BATCH, policy='unix', score=score) for name, score in scores.items()}
        ms = timing.alternate({name: run.step for name, run in runs.items()}, 5 if quick else 15)
        macs = {name: run.macs_per_step for name, run in runs.items()}
        counted, timed = (amounts['scored'] / amounts['unscored'] for amounts in (macs, ms))
        yield Row(
            f"UNIX's scoring pass, {pair}: the ledger's step x {counted:.3f}",
            f'x {timed:.3f} ({100 * (timed / counted - 1):+.1f} %)',
            'within 10 %',
            abs(timed / counted - 1) <= 0.1,
            {**ms, **{f'macs_{name}': amount for name, amount in macs.items()}},
        )


def several_seeds(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """One step of three seeds under `jax.vmap` over three steps in turn; above 1, stacking seeds would pay here."""
    del scratch
    num_seeds = 3
    for pair in PAIRS[:1] if quick else (PAIRS[0], PAIRS[2]):
        run = timed_run(pair, 32 * BATCH)
        arguments = run.arguments()
        mapped = jax.vmap(run.function(), in_axes=(0, *(None for _ in arguments)))
        stacked = jax.tree.map(lambda x: jax.numpy.stack([x] * num_seeds), run.state)
        together = jax.jit(mapped, donate_argnums=0)

        def step_together(together=together, arguments=arguments) -> jax.Array:
            nonlocal stacked
            stacked, losses = together(stacked, *arguments)
            return losses

        ms = timing.alternate({'one': run.step, 'together': step_together}, 2 if quick else 5)
        speed = num_seeds * ms['one'] / ms['together']
        yield Row(
            f'{num_seeds} seeds in one vmapped step, {pair}',
            f'{speed:.2f} times the speed of {num_seeds} steps in turn',
            details={**ms, 'seeds': num_seeds, 'speed': speed},
        )


def full_run(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """The minutes of a whole CIFAR-100 run on one GPU, from an epoch of it; the targets are for an H200."""
    del scratch
    for pair, target in ((PAIRS[2], 10), ('resnet32x4-resnet8x4', 15)):
        name = f'{pair}, {EPOCHS} epochs of CIFAR-100 on one H200'
        if jax.default_backend() != 'gpu':
            yield Row(name, 'no GPU here', f'{target} min')
            continue
        run = timed_run(pair, CIFAR_POINTS, policy='kcd')
        run.epoch(CIFAR_POINTS // (10 if quick else 1))  # compiles
        seconds = timing.seconds(lambda run=run: run.epoch(CIFAR_POINTS))
        sizes = run.run.policy.keep_counts(CIFAR_POINTS, EPOCHS)
        minutes = seconds * sum(sizes) / CIFAR_POINTS / 60
        device = jax.devices()[0].device_kind
        yield Row(name, f'{minutes:.1f} min (KC-KD, on {device})', f'{target} min', minutes <= target)
