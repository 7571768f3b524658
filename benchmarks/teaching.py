"""The cost of a teacher that answers before the steps, against the student alone, a teacher in the step and PyTorch."""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from benchmarks import timing
from benchmarks.results import Row
from benchmarks.steps import PAIRS
from benchmarks.timed_run import BATCH, TimedRun, random_data, run_of, timed_run
from kcd_jax.runtime import sharding
from kcd_jax.training import step
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from kcd_jax.training.teacher_pass import TeacherQuery

ASKED = 4  # steps whose images form one call of the pass
LIGHT = 0.25  # seconds of a step below which a timed call takes twice ASKED steps, else half as many
ROUNDS, TURNS = 20, 8  # interleaved calls of a comparison, and of each pair of networks
SEEDS, POLICIES = 3, {'none': {}, 'random': {'stages': 2}, 'short': {}, 'infobatch': {}}

# (row, numerator, denominator, target, whether more is better): seconds of one over seconds of the other.
RATIOS = (
    ('KD step, cache warm, over the student alone', 'warm', 'alone', 1.05, False),
    ('KD step, cache cold, over the teacher in the step', 'cold', 'in_step', 1.0, False),
    ("PyTorch's KD step over ours, cache warm", 'torch', 'warm', 1.5, True),
    ("PyTorch's KD step over ours, cache warm, channels_last", 'channels_last', 'warm', 1.3, True),
    ("PyTorch's student step over ours", 'torch_alone', 'alone', 1.0, True),
    ("PyTorch's student step over ours, channels_last", 'channels_last_alone', 'alone', None, True),
)


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """(geometric mean, lower and upper end of its 95 % interval by Student's t on the logarithms)."""
    logs = np.log(ratios)
    center = float(np.mean(logs))
    half = float(stats.t.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / math.sqrt(len(logs)))
    return math.exp(center), math.exp(center - half), math.exp(center + half)


def _text(ratios: Sequence[float]) -> str:
    center, low, high = interval(ratios)
    return f'{center:.2f} [{low:.2f}, {high:.2f}]'


def against_everything(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Ratios of neighbouring calls for each of five pairs of networks, their means and intervals.

    PyTorch holds its teacher in the step, and its batch lies ready in memory.
    """
    del scratch
    found: dict[str, list[list[float]]] = {name: [] for name, *_ in RATIOS}
    functions = {pair: _functions(pair) for pair in (PAIRS[:2] if quick else PAIRS)}  # compiles
    for pair, compiled in functions.items():
        times = _seconds(compiled, 4 if quick else TURNS)
        for name, over, under, *_ in RATIOS:
            if over not in times:
                continue
            ratios = [a / b for a, b in zip(times[over], times[under])]
            found[name].append(ratios)
            ms = {what: 1e3 * float(np.median(times[what])) for what in (over, under)}
            measured = f'{_text(ratios)} ({ms[over]:.0f} / {ms[under]:.0f} ms)'
            yield Row(f'{name}, {pair}', measured, details={'ratios': ratios, 'ms': ms})
    for name, _, _, target, more in RATIOS:
        if not found[name]:
            continue
        means = [interval(ratios)[0] for ratios in found[name]]
        # Round i holds the i-th call of every pair; pairs are timed one after the other.
        rounds = [math.exp(np.mean(np.log(values))) for values in zip(*found[name])]
        mean = interval(rounds)[0]
        met = None if target is None else (mean >= target if more else mean <= target)
        wanted = '' if target is None else f'{"at least" if more else "at most"} {target}'
        yield Row(
            f'{name}, geometric mean of {len(means)} pairs',
            _text(rounds),
            wanted,
            met,
            {'pairs': means, 'rounds': rounds},
        )


def _seconds(functions: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """{what: seconds per step of each call}, every function called once per round."""
    light = timing.seconds(lambda: functions['in_step'](ASKED)) < ASKED * LIGHT
    steps = {name: 2 * ASKED if light else ASKED if name == 'cold' else ASKED // 2 for name in functions}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function(ASKED if name == 'cold' else 1)  # another library's threads still spin at first
            times[name].append(timing.seconds(lambda: function(steps[name])) / steps[name])  # noqa: B023
    return times


def _functions(pair: str) -> dict[str, Callable[[int], Any]]:
    """What is timed: each takes the given number of training steps."""
    points = 2 * ASKED * BATCH
    runs = {
        'alone': timed_run(pair, points, method='none'),
        'warm': timed_run(pair, points, teaching={}),
        'cold': timed_run(pair, points, teaching={'cache': 'off'}),
        'in_step': timed_run(pair, points),
    }
    runs['warm'].epoch(points)  # fills the cache with the views of the first epoch

    def epochs(run: TimedRun, again: bool) -> Callable[[int], Any]:
        return lambda steps: run.epoch(steps * BATCH, again=again)

    functions = {name: epochs(run, name == 'warm') for name, run in runs.items()}
    if importlib.util.find_spec('torch') is not None:
        parameters = sum(x.size for x in jax.tree.leaves(runs['alone'].state.params['student']))
        functions |= _torch_functions(pair, parameters)
    for function in functions.values():
        function(2 * ASKED)  # compiles
    return functions


def _torch_functions(pair: str, num_parameters: int) -> dict[str, Callable[[int], Any]]:
    import torch

    from benchmarks.pytorch import TorchStep

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    teacher, student = pair.split('-')
    steps = {
        f'{layout}{what}': TorchStep(name, student, BATCH, layout == 'channels_last')
        for layout in ('torch', 'channels_last')
        for what, name in (('', teacher), ('_alone', ''))
    }
    if sum(p.numel() for p in steps['torch'].student.parameters()) != num_parameters:
        raise ValueError(f'{student} has {num_parameters} parameters here and another number in PyTorch')
    return {name: lambda count, step=step: [step() for _ in range(count)] for name, step in steps.items()}


def kcd_against_kd(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """An epoch of KC-KD, cache warm, over its share of KD's plus the pass over its mixed rows; programs compiled."""
    del scratch
    points, rounds = (16 * BATCH, 2) if quick else (96 * BATCH, ROUNDS)
    kd, kcd = (timed_run(PAIRS[0], points, policy=policy, teaching={}) for policy in ('none', 'kcd'))
    for run in (kd, kcd):
        run.epoch(points, again=True)
    policy, state, epochs = kcd.run.policy, kcd.state, kcd.run.recipe.epochs
    stage = next(epoch for epoch in range(epochs // 2, epochs) if policy.when(epoch, epochs))
    plan, _ = policy.replan(state.key, state.table, state.plan, state.policy_state, stage, epochs)
    kcd.state = state.replace(plan=jax.device_put(plan, sharding.replicated(kcd.mesh)))
    keep = int(plan.num_keep) // BATCH * BATCH
    mixed = int(np.count_nonzero(np.asarray(plan.epsilon)[np.asarray(plan.order)[:keep]]))
    kcd.epoch(keep, again=True)
    row = row_seconds(kd.run)
    ratios = []
    for _ in range(rounds):
        whole = timing.seconds(lambda: kd.epoch(points, again=True))
        ratios.append(timing.seconds(lambda: kcd.epoch(keep, again=True)) / (whole * keep / points + mixed * row))
    center, _, _ = interval(ratios)
    yield Row(
        f'KC-KD over {100 * keep / points:.0f} % of KD plus the pass over {100 * mixed / keep:.0f} % mixed rows, warm',
        _text(ratios),
        'within 3 %',
        abs(center - 1) <= 0.03,
        {'ratios': ratios, 'keep': keep, 'mixed': mixed, 'points': points, 'row_ms': 1e3 * row},
    )
    yield Row(
        'compilations of the step over epochs of two sizes',
        f'{kcd.num_programs}',
        '1 per phase (+1 for the remainder)',
        kcd.num_programs <= (1 if kcd.trainer.feed.chunk == 1 else 2),
    )


def row_seconds(run: Run) -> float:
    """Seconds that the pass takes for one row, the median of five passes over all points without a cache."""
    uncached = TimedRun(run.replace(recipe=run.recipe.replace(teaching={'cache': 'off'})))
    asking, images = uncached.teacher_pass, uncached.trainer.feed.points.images
    index = np.arange(run.num_points, dtype=np.int32)
    plain = np.zeros(len(index), np.float32)
    asked = TeacherQuery(index, images, images, index, index, plain, plain == 0)
    key = step.view_key(uncached.state.key, 0, -1)
    asking.rows(asked, key)  # compiles
    return float(np.median([timing.seconds(lambda: asking.rows(asked, key)) for _ in range(5)])) / len(index)


def twelve_runs(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Three seeds of four policies with one teacher and shared views; twelve students alone, plus each view once."""
    del scratch
    pair, points, epochs = (PAIRS[0], 8 * BATCH, 4) if quick else (PAIRS[1], 16 * BATCH, 12)
    recipe = Recipe(epochs=epochs, augment={'seed': 1})  # its views are no other row's
    taught, alone, rows = [], [], 0
    for policy, keywords in POLICIES.items():
        for seed in range(SEEDS):
            for method, found in (('kd', taught), ('none', alone)):
                run = run_of(pair, random_data(points), method, policy, recipe, {}, **keywords).with_seed(seed)
                timed = TimedRun(run)
                found.append(_train(timed))
                if method == 'kd':
                    rows += timed.trainer.teacher_rows['computed']
    once = rows * row_seconds(run_of(pair, random_data(points), 'kd', 'none', recipe, {}))
    ratio = sum(taught) / (sum(alone) + once)
    yield Row(
        f'{SEEDS} seeds of {len(POLICIES)} policies with one cache over students alone plus each view once, {pair}',
        f'{ratio:.2f} ({sum(taught):.1f} / {sum(alone):.1f} + {once:.1f} s)',
        'at most 1.1',
        ratio <= 1.1,
        {'taught': taught, 'alone': alone, 'rows': rows, 'views': once},
    )


def _train(run: TimedRun) -> float:
    """Seconds of all epochs and condensations, without compiling."""
    ignore = lambda *values, **named: None  # noqa: E731
    for epoch in range(len(run.run.epochs)):
        run.state = run.trainer.condense(run.state, epoch)
        run.state, _ = run.trainer.train_epoch(run.state, epoch, ignore, ignore)
    return run.trainer.seconds['train'] + run.trainer.seconds['condense']
