"""Condensation: alone in jit, and in a run of very many points."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.results import Row
from benchmarks.timed_run import in_own_process
from kcd_jax.contracts import ValueTable, table_rows
from kcd_jax.knowledge import rank, summarize

RATIO, ALPHA, EPSILON_MAX = 0.7, 0.03, 0.3
# {points: (in words, target seconds)}
SIZES = {50_000: ('50 thousand', 0.005), 1_280_000: ('1.28 million', 0.1), 14_000_000: ('14 million', 1.1)}
LARGE_SIZES = {1_280_000: SIZES[1_280_000], 14_000_000: SIZES[14_000_000], 100_000_000: ('100 million', 6.0)}


def random_table(num_points: int) -> ValueTable:
    """A table of random entropies and up to 240 visits on the default device."""
    rng, rows = np.random.default_rng(0), table_rows(num_points)
    value, count = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
    value[:num_points] = rng.random(num_points, np.float32)
    count[:num_points] = rng.integers(1, 241, num_points, np.int32)
    return ValueTable(jnp.asarray(value), jnp.asarray(count), num_points)


def condensation_ms(num_points: int, repeats: int) -> float:
    """Median milliseconds of ranking and summary in jit, from the table to the plan, without compilation."""
    table, num_keep = random_table(num_points), round(RATIO * num_points)
    condense = jax.jit(lambda table, num_keep: summarize(rank(table, ALPHA), num_keep, EPSILON_MAX, num_points))
    return timing.alternate({'condense': lambda: condense(table, num_keep)}, repeats)['condense']


def in_jit(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """From the value table to the plan, in jit on the default device."""
    del scratch
    for num_points, (text, target) in list(SIZES.items())[: 2 if quick else 3]:
        ms = condensation_ms(num_points, 2 if quick else 3)
        yield Row(
            f'condensation in jit, {text} points',
            f'{ms:.1f} ms',
            f'{1e3 * target:g} ms',
            ms <= 1e3 * target,
            {'ms': ms},
        )


def measure_index_space(num_points: int, scratch: pathlib.Path) -> dict[str, float]:
    """What `benchmarks.index_space` measures, in a process of its own."""
    folder = scratch / f'index_space_{num_points}'
    return json.loads(in_own_process('-m', 'benchmarks.index_space', str(num_points), str(folder)))


def in_a_run(quick: bool, scratch: pathlib.Path) -> Iterator[Row]:
    """Recording, condensation, stage file and the order of an epoch in a run of up to 100 million points."""
    for num_points, (text, target) in list(LARGE_SIZES.items())[: 1 if quick else 3]:
        found = measure_index_space(num_points, scratch)
        in_place = found['record_copied'] < num_points and not found['record_moved']
        yield Row(
            f'recording a batch of 1,024, {text} points',
            f'{1e3 * found["record"]:.2f} ms; {"in place" if in_place else "THE TABLE IS COPIED"}',
            'no copy of the table',
            in_place,
            found,
        )
        yield Row(
            f'condensation in a run, {text} points',
            f'{found["condense"]:.2f} s; order {found["order"]:.2f} s; stage file {found["stage"]:.1f} s; '
            f'peak {found["stage_bytes"]:.0f} bytes per point',
            f'{target:g} s',
            found['condense'] <= target,
        )
