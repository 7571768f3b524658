"""What a distillation method costs compared with KD: the time of its step, its state, its program's working memory."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from benchmarks import timing
from benchmarks.results import Row
from benchmarks.timed_run import BATCH, TimedRun, timed_run
from kcd_jax import methods

POINTS = 50_000  # CIFAR's: the memory banks of the contrastive methods have a row per point
PAIR = 'resnet20-resnet8'
OTHER_PAIRS = {'one': 'resnet20-resnet8_one'}  # ONE needs a student with branches


def _working_bytes(run: TimedRun) -> int:
    """Bytes that the compiled step needs on one device while it runs, besides its arguments and results."""
    return run.program().memory_analysis().temp_size_in_bytes


def _mebibytes(count: int) -> str:
    return f'{round(count / 2**20, 1) + 0.0:+.1f} MiB'  # adding 0.0 turns -0.0 into 0.0


def compared_with_kd(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """The step of every method, in each of its phases, called in turn with the step of KD."""
    del scratch
    repeats, num_points = (2, 20 * BATCH) if quick else (5, POINTS)
    kd = timed_run(PAIR, num_points)
    ms = timing.alternate({'kd': kd.step}, repeats)['kd']
    state, working = kd.state_bytes, _working_bytes(kd)
    yield Row(
        f'method kd, {PAIR}, batch {BATCH}, {num_points:,} points',
        f'{ms:.0f} ms; state {state / 2**20:.1f} MiB, work {working / 2**20:.1f} MiB',
        details={'ms': ms, 'state_bytes': state, 'working_bytes': working},
    )
    for name in methods.names():
        if name == 'kd':
            continue
        pair = OTHER_PAIRS.get(name, PAIR)
        run = timed_run(pair, num_points, method=name)
        for phase in run.run.phases:
            run.enter(phase)
            ms = timing.alternate({'kd': kd.step, name: run.step}, repeats)
            more = {
                'state_bytes': run.state_bytes - state,
                'working_bytes': _working_bytes(run) - working,
            }
            which = f', phase {phase.name}' if len(run.run.phases) > 1 else ''
            yield Row(
                f'method {name}{which}' + (f' ({pair})' if pair != PAIR else ''),
                f'{ms[name] / ms["kd"]:.2f} times KD; state {_mebibytes(more["state_bytes"])}, '
                f'work {_mebibytes(more["working_bytes"])}',
                details={'ms': ms[name], 'kd_ms': ms['kd'], **more},
            )
