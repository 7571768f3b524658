"""What a method costs beside KD: the time of its step, what it keeps, and what its program needs meanwhile."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import Row, timing
from benchmarks.own import OwnRun, own_run
from kcd_jax import methods as known_methods
from kcd_jax.methods import _contrast
from kcd_jax.runtime import sharding

BATCH = 64
POINTS = 50_000  # CIFAR's: the contrastive methods' banks have a row for each
PAIR = 'resnet20-resnet8'
# ONE needs a student with branches; every other method, FSP too, takes the pair above.
OTHER_PAIRS = {'one': 'resnet20-resnet8_one'}
NEGATIVES, SIZE = 16_384, 128  # CRD's, and the width of its embeddings


def _kept_bytes(run: OwnRun) -> int:
    """Bytes of parameters, method state and optimiser state: what a method may add to."""
    state = run.state
    return sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.method_state, state.opt_state)))


def _working_bytes(run: OwnRun) -> int:
    """Bytes on one device that the compiled step needs while it runs, beside its arguments and results."""
    return run.program().memory_analysis().temp_size_in_bytes


def _mebibytes(count: int) -> str:
    return f'{round(count / 2**20, 1) + 0.0:+.1f} MiB'  # 0.0 is added to lose the sign of -0.0


def steps(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """The step of every method and phase over that of KD, in turn with it."""
    repeats, num_points = (2, 20 * BATCH) if quick else (5, POINTS)
    with own_run(f'{PAIR},method=kd,policy=none', num_points, scratch) as kd:
        ms = timing.alternate({'kd': kd.step}, repeats)['kd']
        kept, working = _kept_bytes(kd), _working_bytes(kd)
        yield Row(
            f'method kd, {PAIR}, batch {BATCH}, {num_points:,} points',
            f'{ms:.0f} ms; state {kept / 2**20:.1f} MiB, work {working / 2**20:.1f} MiB',
            details={'ms': ms, 'state_bytes': kept, 'working_bytes': working},
        )
        for name in known_methods.names():
            if name == 'kd':
                continue
            pair = OTHER_PAIRS.get(name, PAIR)
            with own_run(f'{pair},method={name},policy=none', num_points, scratch) as run:
                phases = run.loop.run.phases
                for phase in phases:
                    run.enter(phase)
                    ms = timing.alternate({'kd': kd.step, name: run.step}, repeats)
                    kept, working = _kept_bytes(run) - _kept_bytes(kd), _working_bytes(run) - _working_bytes(kd)
                    which = f', phase {phase.name}' if len(phases) > 1 else ''
                    yield Row(
                        f'method {name}{which}' + (f' ({pair})' if pair != PAIR else ''),
                        f'{ms[name] / ms["kd"]:.2f} times KD; state {_mebibytes(kept)}, work {_mebibytes(working)}',
                        details={'ms': ms[name], 'kd_ms': ms['kd'], 'state_bytes': kept, 'working_bytes': working},
                    )


def scores_by_rows(anchor: jax.Array, bank: jax.Array, index: jax.Array) -> jax.Array:
    """What `_contrast.scores` computes, from the bank's rows: a gather of [B, K, size] and one product with it."""
    rows = jnp.take(jax.lax.stop_gradient(bank), index, axis=0, mode='clip')
    return jnp.einsum('bd,bkd->bk', anchor, rows)


def scores(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """CRD's scores and their gradient: a product with the bank and a gather of scores, against a gather of rows."""
    del scratch
    num_negatives = 1024 if quick else NEGATIVES
    mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
    split, whole = sharding.batch(mesh), sharding.replicated(mesh)
    anchor = sharding.put(rng.normal(size=(BATCH, SIZE)).astype(np.float32), split)
    bank = sharding.put(rng.normal(size=(POINTS, SIZE)).astype(np.float32), whole)
    index = sharding.put(rng.integers(0, POINTS, (BATCH, num_negatives + 1), np.int32), split)

    def timed(function: Callable[..., jax.Array]) -> Callable[[], jax.Array]:
        gradient = jax.jit(jax.grad(lambda anchor: jnp.mean(jnp.exp(function(anchor, bank, index) / SIZE))))
        return functools.partial(gradient, anchor)

    ms = timing.alternate({'product': timed(_contrast.scores), 'rows': timed(scores_by_rows)}, 2 if quick else 5)
    faster = ms['rows'] / ms['product']
    yield Row(
        f'CRD scores, {num_negatives:,} negatives',
        f'{ms["product"]:.0f} ms by a product; {ms["rows"]:.0f} by a gather of rows',
        'faster than a gather of rows',
        '3 times faster',
        faster > 1.0,
        ms,
    )


def rows(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Every method beside KD, and CRD's scores."""
    yield from scores(quick, scratch)
    yield from steps(quick, scratch)
