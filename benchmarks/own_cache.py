"""What each run of the benchmark of policies computes alone, with a teacher's cache of its own that starts empty.

  python -m benchmarks.own_cache benchmark_clean benchmark_long --json=own_cache.json

The runs of a sweep share a cache, so their results do not tell it. Every row is trained once more with one seed; the
file is continued row by row. `python -m kcd_jax report benchmark FOLDER... --own-cache=FILE` adds the column.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from kcd_jax.commands import launch
from kcd_jax.runtime import environment, files


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = launch.Parser(prog='python -m benchmarks.own_cache', description=__doc__)
    parser.add_argument('sweeps', nargs='+', metavar='SWEEP', help='of configs/benchmark.py, as benchmark_clean')
    parser.add_argument('--seed', type=int, default=100, help='default: 100')
    parser.add_argument('--words', default='', help='further config words, as for sweep')
    parser.add_argument('--json', required=True, metavar='FILE', help='written, or continued')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and writes what was counted; returns the exit code."""

    def body() -> int:
        options = parse(sys.argv[1:] if argv is None else argv)
        launch.prepare_jax(devices=1)  # as the sweeps
        for sweep in options.sweeps:
            count(sweep, options.seed, options.words, pathlib.Path(options.json))
        return 0

    return launch.run(body)


def count(sweep: str, seed: int, words: str, output: pathlib.Path) -> None:
    """Adds the rows of a sweep to the file: {'sweeps': {sweep: {row: the teacher's answers by origin}}}."""
    from kcd_jax.experiments import grid

    known, root = grid.read('configs/benchmark.py')
    experiment = grid.build(sweep, grid.with_words(grid.find(known, sweep), words), root, seed=seed)
    found = continued(output, {'seed': seed, 'words': words, **environment.describe()})
    rows = found['sweeps'].setdefault(sweep, {})
    for cell in experiment.cells:
        if cell.label in rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            teaching = dataclasses.replace(cell.run.recipe.teaching, cache=f'{folder}/cache')
            run = cell.run.replace(recipe=dataclasses.replace(cell.run.recipe, teaching=teaching))
            summary = run.train(f'{folder}/run').summary
        rows[cell.label] = {
            **(summary['computed']['teacher_rows'] or {}),
            'asked': summary['cost']['samples']['teacher_forward'],
            'accuracy': summary['accuracy'],
        }
        files.write_text(output, files.dumps(found, indent=1) + '\n')
        print(f'{sweep}, {cell.label}: {rows[cell.label]}', flush=True)


def continued(output: pathlib.Path, header: dict[str, Any]) -> dict[str, Any]:
    """The content of the file so far; ValueError if it is of other runs, or damaged."""
    found = files.read_json(output)
    if found is None and output.exists():
        raise ValueError(f'{output} is damaged; remove it, or use another --json')
    if found is None:
        return {**header, 'sweeps': {}}
    for key in ('seed', 'words'):
        if found.get(key) != header[key]:
            raise ValueError(f'{output} was counted with --{key}={found.get(key)}; use that, or another --json')
    return found


if __name__ == '__main__':
    sys.exit(main())
