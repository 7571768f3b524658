"""A table by one command: python -m kcd_jax sweep NAME [--trials=n] [--pairs=A-B,...] [--jobs=k]
    [--together=s] [--minutes=m] [--dry].

Runs what is missing in results/NAME, seed by seed over all cells, so that a sweep that is cut has whole pairs; goes on
with runs that were cut; ends with the table. The sweeps are named in configs/ablations.py.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from kcd_jax import main
from kcd_jax.experiments import cells
from kcd_jax.experiments.cells import Sweep
from kcd_jax.experiments.sweeper import OutOfTime, Sweeper, format_seconds
from kcd_jax.experiments.tasks import Task, make_tasks, name_of, read_sweeps
from kcd_jax.report import tables
from kcd_jax.runtime import console, files, sharding
from kcd_jax.training import loop

EXIT_OUT_OF_TIME = 76  # --minutes are over; the same command goes on
DEFAULT_TRIALS = 3


def describe(sweeper: Sweeper) -> list[str]:
    """What --dry prints: each cell with its cost, and what is left of it."""
    missing = sweeper.collect()
    rows, words = [], []
    trials = len({task.seed for task in sweeper.tasks})
    for task in sweeper.tasks:
        if task.seed:
            continue
        cell, cost = task.cell, task.cost
        left = sum(other.cell == cell for other in missing)
        shown = [f'{trials - left} of {trials}']
        shown += ['', '', ''] if cost is None else [
            tables.quantity(cost.samples), tables.quantity(cost.macs), f'{100 * cost.relative:.2f}'
        ]  # fmt: skip
        rows.append([name_of(cell), *shown])
        words.append(f'{name_of(cell)}: --config={shlex.quote(cell.config)}')
    table = tables.Table(sweeper.sweep.title, ['cell', 'runs done', 'samples', 'MACs', 'cost %'], rows)
    left = _missing(sweeper, missing) if missing else f'all {len(sweeper.tasks)} runs are done'
    return [table.to_text(), '', left, '', *words]


def _missing(sweeper: Sweeper, missing: Sequence[Task]) -> str:
    """What is still to be run, in a line."""
    macs = sum(task.cost.macs for task in missing if task.cost)
    samples = sum(task.cost.samples for task in missing if task.cost)
    left = f'{len(missing)} of {len(sweeper.tasks)} runs are missing: {tables.quantity(samples)} samples'
    left += f', {tables.quantity(macs)} multiply-accumulates'
    known = [
        (summary['seconds']['train'], task.cost.macs)
        for task, summary in sweeper.done.items()
        if task.cost and summary['seconds'].get('train')
    ]
    if known:
        speed = sum(seconds for seconds, _ in known) / sum(counted for _, counted in known)
        left += f', about {format_seconds(macs * speed)} of training at the speed of the finished runs'
    return left


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f'{message}; see python -m kcd_jax sweep --help')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = _Parser(prog='python -m kcd_jax sweep', description='The runs of a table, and the table.')
    made.add_argument('name', nargs='?', help='of the sweep; without it they are listed')
    made.add_argument('--trials', type=int, default=DEFAULT_TRIALS, help=f'seeds a cell (default {DEFAULT_TRIALS})')
    made.add_argument('--pairs', default='', help='only these TEACHER-STUDENT columns, with commas between')
    made.add_argument('--jobs', type=int, default=1, help='processes (default 1)')
    made.add_argument('--together', type=int, default=1, help='seeds of a cell in one program (default 1)')
    made.add_argument('--minutes', type=float, default=0.0, help='save and stop after so many, with exit code 76')
    made.add_argument('--dry', action='store_true', help='list the cells and their cost, run nothing')
    made.add_argument('--results', default='results', help='folder of the results (default results)')
    made.add_argument('--workdir', default='runs/sweeps', help='folder of the runs (default runs/sweeps)')
    made.add_argument('--devices', type=int, default=0, help="of a CPU, for each process; default: the sweep's choice")
    made.add_argument('--file', default='configs/ablations.py', help='of the sweeps')
    made.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    return made


def devices_of(sweep: Sweep, arguments: argparse.Namespace) -> int:
    """Host devices of each process: what the command line says, else the sweep, else the cores divided by the jobs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    share = max(cores // arguments.jobs, 1)
    return arguments.devices or sweep.devices or (0 if arguments.jobs == 1 else 1 << (share.bit_length() - 1))


def supervise(sweeper: Sweeper, argv: Sequence[str], devices: int) -> int:
    """Lets `jobs` processes do the work; returns the first exit code that is not 0."""
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / sweeper.jobs:.3f}', **os.environ}
    command = [sys.executable, '-m', 'kcd_jax.sweep', *argv, '--worker', f'--devices={devices}']
    workers = [subprocess.Popen(command, env=environment) for _ in range(sweeper.jobs)]
    previous = signal.signal(signal.SIGTERM, lambda number, frame: [worker.terminate() for worker in workers])
    try:
        return next((code for code in [worker.wait() for worker in workers] if code), 0)
    finally:
        signal.signal(signal.SIGTERM, previous)


def finish(sweeper: Sweeper) -> None:
    """Prints the tables, and writes them beside the results."""
    found = sweeper.tables()
    console.say('\n' + '\n\n'.join(table.to_text() for table in found))
    folder = sweeper.tasks[0].result.parent
    files.write_text(folder / 'table.md', '\n'.join(table.to_markdown() for table in found))
    files.write_text(folder / 'table.csv', '\n'.join(table.to_csv() for table in found))
    console.say(f'written to {folder}/table.md and table.csv')


def run(argv: Sequence[str]) -> int:
    """The whole program; returns the exit code. Errors of the user are one line on stderr."""
    start = time.monotonic()
    try:
        arguments = parser().parse_args(argv)
        known, root = read_sweeps(arguments.file)
        if arguments.name is None:
            print('\n'.join(f'{name:22} {sweep.title}' for name, sweep in known.items()))
            return 0
        if min(arguments.trials, arguments.jobs, arguments.together) < 1 or arguments.minutes < 0:
            raise ValueError('--trials, --jobs and --together take at least 1, --minutes at least 0')
        sweep = cells.find(known, arguments.name)
        devices = devices_of(sweep, arguments)
        main.prepare_jax(devices, False)
        mesh = sharding.make_mesh()
        tasks = make_tasks(arguments.name, sweep, root, arguments, mesh.size)
        limits = {key: getattr(arguments, key) for key in ('minutes', 'jobs', 'together', 'dry')} | {'start': start}
        sweeper = Sweeper(arguments.name, sweep, tasks, **limits)
        if arguments.dry:
            print('\n'.join(describe(sweeper)))
            return 0
        shared = arguments.jobs > 1 and not arguments.worker
        code = supervise(sweeper, argv, devices) if shared else _work(sweeper, mesh)
        if not arguments.worker:
            finish(sweeper)
        return code
    except (ValueError, OSError) as error:
        if os.environ.get('KCD_JAX_TRACEBACK'):
            raise
        return main.complain(error)
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
        return 130


def _work(sweeper: Sweeper, mesh: sharding.Mesh) -> int:
    """Trains what is missing in this process; returns the exit code."""
    try:
        sweeper.work(mesh)
    except OutOfTime:
        print(f'out of time: {sweeper.standing()}; the same command goes on from here', file=sys.stderr)
        return EXIT_OUT_OF_TIME
    except loop.Preempted as notice:
        print(notice, file=sys.stderr)
        return main.EXIT_PREEMPTED
    return main.EXIT_DIVERGED if sweeper.failures else 0


if __name__ == '__main__':
    sys.exit(run(sys.argv[1:]))
