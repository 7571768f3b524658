"""`python -m kcd_jax sweep NAME`: trains the missing runs of a table, and prints the table."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kcd_jax import paths
from kcd_jax.commands import launch

if TYPE_CHECKING:
    from kcd_jax.experiments.grid import Cost, Grid
    from kcd_jax.experiments.runner import Runner

DEFAULT_TRIALS = 3
POLL_SECONDS = 0.2

_EPILOG = """examples:
  python -m kcd_jax sweep                                        lists the sweeps
  python -m kcd_jax sweep kcd_table4 --dry                       the cells and what they cost; needs no data
  python -m kcd_jax sweep kcd_table4 --trials=4 --pairs=wrn_40_2-wrn_16_2,vgg13-vgg8
  python -m kcd_jax sweep digits_kcd_table4 --trials=5 --jobs=2

exit codes: 0 done, 2 bad input, 3 a run diverged (the others were trained), 74 disk full, 75 stopped by SIGTERM
  (saved), 76 out of time (saved), 130 by Ctrl-C. The same command resumes where it stopped."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = launch.Parser(prog='python -m kcd_jax sweep', description=__doc__.partition(': ')[2], epilog=_EPILOG)
    made.add_argument('name', nargs='?', help='name of the sweep; without it the sweeps are listed')
    made.add_argument('--trials', type=int, default=DEFAULT_TRIALS, help=f'seeds per cell (default {DEFAULT_TRIALS})')
    made.add_argument('--seed', type=int, default=0, help='the first seed (default 0)')
    made.add_argument('--pairs', default='', help='only these columns, TEACHER-STUDENT, separated by commas')
    made.add_argument('--words', default='', help='further words for every cell, as teacher.checkpoint=FILE')
    made.add_argument('--jobs', type=int, default=1, help='processes that share the work (default 1)')
    made.add_argument('--minutes', type=float, default=0.0, help='time limit: save and stop, with exit code 76')
    made.add_argument('--dry', action='store_true', help='list the cells and their cost; train nothing, load no data')
    made.add_argument('--results', default='results', help='folder of the results (default results)')
    made.add_argument('--workdir', default='runs/sweeps', help='folder of the runs (default runs/sweeps)')
    made.add_argument(
        '--devices', type=int, default=0, help='host devices on a CPU per process (default: as the sweep)'
    )
    made.add_argument('--file', help='file of sweeps (default configs/ablations.py here, else the shipped one)')
    made.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    # Seconds of --minutes that had passed before this process started.
    made.add_argument('--spent', type=float, default=0.0, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    start = time.monotonic()
    try:
        arguments = parser().parse_args(argv)
        if min(arguments.trials, arguments.jobs) < 1 or not 0 <= arguments.minutes < math.inf or arguments.seed < 0:
            raise ValueError('--trials and --jobs must be at least 1, --seed and --minutes 0 or more')
    except ValueError as error:
        return launch.complain(error)
    return launch.run(lambda: sweep(arguments, argv, start - arguments.spent))


def devices_of(grid: Grid, arguments: argparse.Namespace) -> int:
    """Host devices per process: from the command line, else from the sweep, else the cores divided by the jobs."""
    share = max(launch.cores() // arguments.jobs, 1)
    return arguments.devices or grid.devices or (0 if arguments.jobs == 1 else 1 << (share.bit_length() - 1))


def _usual_file() -> str:
    own = 'configs/ablations.py'
    return own if os.path.isfile(own) else 'ablations'


def sweep(arguments: argparse.Namespace, argv: Sequence[str], start: float) -> int:
    """Runs the command with parsed arguments; returns the exit code."""
    from kcd_jax.experiments import config as grammar
    from kcd_jax.experiments import grid as grids
    from kcd_jax.experiments import runner as runners
    from kcd_jax.runtime import canaries, exitcodes, sharding

    known, root = grids.read(arguments.file or _usual_file())
    if arguments.name is None:
        print('\n'.join(f'{name:22} {grid.title}' for name, grid in known.items()))
        return exitcodes.OK
    grid = grids.with_words(grids.find(known, arguments.name), arguments.words)
    if arguments.dry and not grids.expand(grid):
        print(grids.why_empty(arguments.name, grid))
        return exitcodes.OK
    devices = devices_of(grid, arguments)
    launch.prepare_jax(devices)
    if not arguments.dry:
        canaries.check()
    mesh = sharding.make_mesh()
    experiment = grids.build(
        arguments.name,
        grid,
        root,
        pairs=[pair for pair in arguments.pairs.split(',') if pair],
        trials=arguments.trials,
        seed=arguments.seed,
        device_count=mesh.size,
        load=grammar.shapes if arguments.dry else grammar.load_data,
    )
    for line in experiment.omitted:
        print(f'omitted: {line}', file=sys.stderr)
    if not arguments.dry and not arguments.worker:
        for cell in experiment.cells:
            try:
                cell.run.check(mesh.size)
            except ValueError as error:
                raise ValueError(f'{cell.name}: {error}') from error
    folders = (paths.output_folder(getattr(arguments, flag), f'--{flag}') for flag in ('workdir', 'results'))
    tasks = runners.by_content(experiment, *folders)
    shared = arguments.jobs > 1 and not arguments.worker
    runner = runners.Runner(
        experiment,
        tasks,
        start=start,
        minutes=arguments.minutes,
        jobs=arguments.jobs,
        shared=True,
        dry=arguments.dry,
    )
    if arguments.dry:
        print('\n'.join(describe(runner)))
        return exitcodes.OK
    code = supervise(arguments.jobs, argv, devices, start) if shared else _work(runner, mesh)
    if not arguments.worker:
        finish(runner)
    return code


def _work(runner: Runner, mesh: object) -> int:
    """Trains the missing runs in this process; returns the exit code."""
    from kcd_jax.experiments.runner import OutOfTime
    from kcd_jax.runtime import exitcodes

    try:
        return runner.work(mesh)
    except OutOfTime:
        print(f'out of time: {runner.standing()}; the same command resumes from here', file=sys.stderr)
        return exitcodes.OUT_OF_TIME


def supervise(jobs: int, argv: Sequence[str], devices: int, start: float) -> int:
    """Runs `jobs` worker processes, which share the time limit; returns the first exit code of an error, else not 0.

    A worker that ends with an error is reported at once, and the others go on.

    Args:
      jobs: number of workers.
      argv: arguments of the command.
      devices: host devices per worker.
      start: when the time limit began, by `time.monotonic`.
    """
    from kcd_jax.runtime import exitcodes

    usual = (exitcodes.OK, exitcodes.DIVERGED, exitcodes.PREEMPTED, exitcodes.OUT_OF_TIME)
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / jobs:.3f}', **os.environ}
    spent = f'--spent={time.monotonic() - start:.3f}'
    command = [sys.executable, '-m', 'kcd_jax', 'sweep', *argv, '--worker', f'--devices={devices}', spent]
    running = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
    previous = signal.signal(signal.SIGTERM, lambda number, frame: [worker.terminate() for worker in running])
    codes: list[int] = []
    try:
        while running:
            for worker in [worker for worker in running if worker.poll() is not None]:
                running.remove(worker)
                codes.append(_exit_code(worker.returncode))
                if codes[-1] not in usual:
                    others = f'; {len(running)} of {jobs} still run' if running else ''
                    print(f'error: a job ended with exit code {codes[-1]}{others}', file=sys.stderr, flush=True)
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for worker in running:  # after Ctrl-C, which a terminal has sent to the workers too
            try:
                worker.wait(timeout=2)
            except subprocess.TimeoutExpired:
                worker.terminate()
        for worker in running:
            worker.wait()
        signal.signal(signal.SIGTERM, previous)
    return next(iter(sorted(filter(None, codes), key=usual.__contains__)), exitcodes.OK)


def _exit_code(returned: int) -> int:
    """The exit code of an ended process as a shell has it; SIGTERM during its set-up is no error."""
    from kcd_jax.runtime import exitcodes

    if returned == -signal.SIGTERM:
        return exitcodes.PREEMPTED
    return returned if returned >= 0 else 128 - returned


def describe(runner: Runner) -> list[str]:
    """The lines of --dry: each cell with its cost and finished runs, and the words that train it alone."""
    from kcd_jax.experiments.grid import cost_of
    from kcd_jax.report import tables

    experiment, missing = runner.experiment, runner.missing()
    costs: dict[str, Cost | None] = {}
    rows, words = [], []
    for cell in experiment.cells:
        cost = costs[cell.name] = None if cell.reuse else cost_of(cell.run)
        trials = len(experiment.seeds)
        left = sum(task.cell is cell for task in missing)
        shown = ['', '', '', '']
        if cost is not None:
            shown = [tables.quantity(cost.samples), tables.quantity(cost.macs)]
            shown += [f'{100 * cost.relative:.2f}', f'{100 * cost.assumed:.2f}']
        rows.append([cell.name, f'{trials - left} of {trials}', *shown])
        reuse = cell.reuse
        start = f' (from the final set of {reuse.label} on {reuse.column or "the same pair"})' if reuse else ''
        words.append(f'{cell.name}: --config={shlex.quote(cell.words)}{start}')
    notes = [
        'MACs: multiply-accumulates of both networks, without layers of the method. cost %: MACs relative to the same '
        'method on all points; B = F: as counted by UNIX, with a backward pass as expensive as a forward pass.'
    ]
    table = tables.Table(
        experiment.title, ['cell', 'runs done', 'samples', 'MACs', 'cost %', 'B = F %'], rows, notes=notes
    )
    left = _left(runner, costs) if missing else f'all {len(runner.tasks)} runs are done'
    return [table.to_text(), '', left, '', *words]


def _left(runner: Runner, costs: dict[str, Cost | None]) -> str:
    """One line on the missing runs and their cost."""
    from kcd_jax.experiments.runner import format_seconds
    from kcd_jax.report import tables

    missing = runner.missing()
    found = [costs[task.cell.name] for task in missing if costs[task.cell.name]]
    macs, samples = sum(cost.macs for cost in found), sum(cost.samples for cost in found)
    line = f'{len(missing)} of {len(runner.tasks)} runs are missing: {tables.quantity(samples)} samples'
    line += f', {tables.quantity(macs)} multiply-accumulates'
    known = [
        (summary['seconds']['train'], costs[task.cell.name].macs)
        for task, summary in runner.done.items()
        if costs[task.cell.name] and summary['seconds'].get('train')
    ]
    if known:
        speed = sum(seconds for seconds, _ in known) / sum(counted for _, counted in known)
        line += f', about {format_seconds(macs * speed)} of training at the speed of the finished runs'
    return line


def finish(runner: Runner) -> None:
    """Prints the tables of the finished runs, and writes them next to the results."""
    from kcd_jax.report import paper_results, tables
    from kcd_jax.runtime import files

    runner.missing()
    experiment, folder = runner.experiment, runner.tasks[0].result.parent
    if experiment.paper:
        summaries = list(runner.done.values())
        found = [paper_results.paper_table(experiment.paper, summaries, only_ours=bool(summaries))]
    else:
        summaries = tables.collect([folder]) if folder.is_dir() else []
        found = tables.tables(summaries, expected=[experiment.card(cell) for cell in experiment.cells])
    print('\n' + '\n\n'.join(table.to_text() for table in found), flush=True)
    files.write_text(folder / 'table.md', '\n'.join(table.to_markdown() for table in found))
    files.write_text(folder / 'table.csv', '\n'.join(table.to_csv() for table in found))
    print(f'written to {folder}/table.md and table.csv', flush=True)
