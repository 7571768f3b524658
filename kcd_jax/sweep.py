"""A table by one command: python -m kcd_jax.sweep NAME [--trials=n] [--pairs=A-B,...] [--jobs=k] [--minutes=m] [--dry].

Runs what is missing in results/NAME, seed by seed over all cells, so that a sweep that is cut has whole pairs; goes on
with runs that were cut; ends with the table. The sweeps are named in configs/ablations.py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from kcd_jax import budget, cells, check, experiment, ledger, log, main, sharding, train
from kcd_jax.analysis import comparison, sweeps, tables
from kcd_jax.cells import Cell, Sweep

EXIT_OUT_OF_TIME = 76  # --minutes are over; the same command goes on
DEFAULT_TRIALS = 3
POLL_SECONDS = 2.0

format_seconds = tqdm.format_interval


class OutOfTime(Exception):
    """The minutes are over; what was running is saved."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run of a cell is expected to take: samples, multiply-accumulates, and these relative to everything."""

    samples: float
    macs: float
    relative: float


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One run: a cell with a seed. `folder` is the run's, `result` the JSON file that says that it is done."""

    cell: Cell
    seed: int
    config: ConfigDict
    folder: pathlib.Path
    teacher: pathlib.Path
    result: pathlib.Path
    cost: Cost | None

    @property
    def title(self) -> str:
        """For lines: 'KC-KD on vgg13-vgg8, seed 2'."""
        return f'{_name(self.cell)}, seed {self.seed}'


def _name(cell: Cell) -> str:
    return f'{cell.label} on {cell.pair}' if cell.pair else cell.label


# ------------------------------------------------------------------------------------------------- what is to be run


def read_sweeps(file: str) -> tuple[Mapping[str, Sweep], pathlib.Path]:
    """({name: sweep}, the folder that their config files are relative to) of a file such as configs/ablations.py."""
    path = pathlib.Path(file)
    if not path.is_file():
        raise ValueError(f'there is no file of sweeps {file}; the shipped one is configs/ablations.py')
    experiment.add_config_root(file)
    spec = importlib.util.spec_from_file_location('sweeps', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SWEEPS, path.resolve().parent.parent


class Pricing:
    """Expected costs of configs; every mistake in a config is found on the way."""

    def __init__(self, device_count: int):
        self.device_count = device_count

    def __call__(self, config: ConfigDict) -> Cost:
        """What a run takes. ValueError: one line on what is wrong with the config, or with its data."""
        run = check.resolve(config, train.load_data(config), device_count=self.device_count)
        book = ledger.expected(run, config)
        return Cost(check.cost(run, config, run.setup.num_points)['processed_samples'], book.total, book.relative)

    def solve(self, cell: Cell, root: pathlib.Path) -> Cell:
        """The cell with its knob turned to where its run costs what its budget allows."""
        if cell.knob is None:
            return cell
        knob = cell.knob

        def relative(value: float) -> float | None:
            try:
                return self(cells.load(cells.with_words(cell, f'{knob.key}={value}'), root)).relative
            except ValueError:
                return None

        values = knob.values(cells.load(cell, root).batch)
        value, _ = budget.solve(relative, values, cell.budget, f'{knob.words} with its {knob.key}')
        return cells.with_words(cell, f'{knob.key}={value}')


@contextlib.contextmanager
def _told_of(cell: Cell) -> Iterator[None]:
    """Names the cell in a user's mistake."""
    try:
        yield
    except log.Busy:
        raise
    except ValueError as error:
        raise ValueError(f'{_name(cell)}: {error}') from error


def make_tasks(
    name: str, sweep: Sweep, root: pathlib.Path, arguments: argparse.Namespace, device_count: int
) -> list[Task]:
    """Every run of a sweep, seed by seed; nothing is trained, and every config is checked.

    Raises:
      ValueError: a pair that is not the sweep's, or whatever is wrong with a cell, in one line.
    """
    pairs = tuple(pair for pair in arguments.pairs.split(',') if pair)
    found = cells.expand(sweep, pairs)
    if not found:
        raise ValueError(f'no row of {name} can be run: its student is not among the networks of kcd_jax')
    workdir, results = pathlib.Path(arguments.workdir), pathlib.Path(arguments.results) / name
    price = Pricing(device_count)
    costs: list[Cost | None] = []
    solved: list[Cell] = []
    for cell in found:
        with _told_of(cell):
            cell = price.solve(cell, root)
            # A cell that starts from another run is checked when that run is there.
            costs.append(None if cell.sources else price(cells.load(cell, root)))
            solved.append(cell)
    tasks = []
    for seed in range(arguments.trials):
        folders: dict[tuple[str, str], pathlib.Path] = {}
        for cell, cost in zip(solved, costs, strict=True):
            for label, pair in cell.sources:
                if (label, pair) not in folders:
                    raise ValueError(f'{_name(cell)} starts from {label} on {pair}; add that pair before it to --pairs')
            config = cells.load(cell, root, folders)
            config.seed = seed
            teacher = workdir / 'teachers' / cells.folder_name(train.teacher_config(config))
            folder = workdir / cells.folder_name(config) / f'seed_{seed}'
            folders[cell.label, cell.pair] = folder
            result = results / f'{cell.slug}_{seed}.json'
            tasks.append(Task(cell, seed, config, folder, teacher / f'seed_{config.teacher.seed}', result, cost))
    return tasks


# ------------------------------------------------------------------------------------------------------- the running


class Sweeper:
    """A sweep in progress."""

    def __init__(self, name: str, sweep: Sweep, tasks: Sequence[Task], minutes: float = 0.0, jobs: int = 1):
        """`minutes`: 0 is no limit. `jobs`: processes that share the work, this one included."""
        self.name, self.sweep, self.tasks, self.jobs = name, sweep, tasks, jobs
        self.start = time.monotonic()
        self.deadline = self.start + 60 * minutes if minutes else None
        self.stopped = False
        self.done: dict[Task, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] | None = None
        self.trained_seconds = self.trained_macs = 0.0
        self.failures: list[str] = []

    # -- results --------------------------------------------------------------------------------------------------

    def collect(self) -> list[Task]:
        """The runs that are still missing; finished ones that were not published yet are published."""
        missing = []
        for task in self.tasks:
            if task not in self.done:
                summary = self.stored(task)
                if summary is None:
                    missing.append(task)
                else:
                    self.done[task] = summary
        return missing

    def stored(self, task: Task) -> dict[str, Any] | None:
        """The published result of a run: its own, that of its folder, or that of another sweep with the same run."""
        summary = log.read_json(task.result)
        if summary is not None and cells.same_run(summary['config'], task.config.to_dict()):
            return summary
        summary = log.read_summary(task.folder) or self.elsewhere(task)
        return None if summary is None else self.publish(task, summary)

    def elsewhere(self, task: Task) -> dict[str, Any] | None:
        """The same run among the results of the other sweeps. What starts from another run is nobody else's."""
        if task.cell.sources:
            return None
        if self.others is None:
            results = task.result.parent.parent
            found = tables.collect([results], []) if results.is_dir() else []
            here = task.result.parent.name
            self.others = [summary for summary in found if summary.get('cell', {}).get('sweep', here) != here]
        keys = {'seed': task.seed, 'method': task.config.method.name, 'policy': task.config.policy.name}
        for summary in self.others:
            alike = all(summary[key] == value for key, value in keys.items())
            if alike and cells.same_run(summary['config'], task.config.to_dict()):
                return {key: value for key, value in summary.items() if not key.startswith('_')}
        return None

    def publish(self, task: Task, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a run's result, and its teacher's; neither names a place of this machine."""
        words = f'{task.cell.config}{"," if ":" in task.cell.config else ":"}seed={task.seed}'
        public = experiment.public(summary) | {
            'cell': task.cell.card(self.name, self.sweep),
            'command': shlex.join(['python', '-m', 'kcd_jax.main', f'--config={words}']),
        }
        if task.cell.sources:
            public['config']['policy']['run'] = f'<{task.cell.sources[0][0]}@{task.cell.sources[0][1]}>'
        log.write_text(task.result, log.dumps(public, indent=1) + '\n')
        taught = log.read_summary(task.teacher) if public['teacher'] else None
        if taught is not None:
            card = {**public['cell'], 'label': 'Teacher', 'place': -1}
            path = task.result.with_name(f'teacher_{taught["student"]}_{taught["seed"]}.json')
            log.write_text(path, log.dumps({**experiment.public(taught), 'cell': card}, indent=1) + '\n')
        return public

    # -- one process ----------------------------------------------------------------------------------------------

    def work(self, mesh: sharding.Mesh) -> None:
        """Trains what is missing, one run after the other, beside other processes that do the same.

        Raises:
          OutOfTime: the minutes are over. train.Preempted: SIGTERM. ValueError: bad input.
        """
        with self._listening():
            waiting = self.needed()
            while waiting:
                ran = False
                for task in waiting:
                    if log.read_summary(task.folder) is not None:  # another process was faster
                        continue
                    self.refuse_to_start()
                    with contextlib.suppress(log.Busy):  # another process has it, or its teacher
                        self.run(task, mesh)
                        ran = True
                waiting = self.needed()
                if waiting and not ran:
                    self.refuse_to_start()
                    time.sleep(POLL_SECONDS)

    def needed(self) -> list[Task]:
        """The missing runs that have not failed, and before them the runs that they start from."""
        missing = [task for task in self.collect() if task.title not in self.failures]
        by_cell = {(task.cell.label, task.cell.pair, task.seed): task for task in self.tasks}
        first = [by_cell[(*source, task.seed)] for task in missing for source in task.cell.sources]
        first = [task for task in first if log.read_summary(task.folder) is None]
        return list(dict.fromkeys([*first, *missing]))

    def run(self, task: Task, mesh: sharding.Mesh) -> None:
        """Trains one run, publishes it and says where the sweep stands; a loss that is not finite is a failure."""
        with _told_of(task.cell), log.quiet():
            try:
                result = train.train(task.config, task.folder, teacher_dir=task.teacher, mesh=mesh)
            except train.Diverged as error:
                self.failures.append(task.title)
                print(f'{task.title}: {error}', file=sys.stderr)
                return
            except train.Preempted:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    raise OutOfTime from None
                raise
        self.done[task] = self.publish(task, result.summary)
        self.trained_seconds += result.summary['seconds']['total']
        self.trained_macs += self.weight(task)
        took = result.summary['seconds']['total']
        log.say(f'{self.standing()}: {task.title}, {100 * result.summary["accuracy"]:.2f} % in {took:.1f} s')

    @staticmethod
    def weight(task: Task) -> float:
        """What a run counts in the time left: its multiply-accumulates."""
        return task.cost.macs if task.cost else 1.0

    def standing(self) -> str:
        """'12 of 40 runs, 1:20 gone, 3:10 left'."""
        missing = self.collect()
        gone = time.monotonic() - self.start
        text = f'{len(self.tasks) - len(missing)} of {len(self.tasks)} runs, {format_seconds(gone)} gone'
        if not missing or not self.trained_macs:
            return text
        left = sum(map(self.weight, missing)) * self.trained_seconds / self.trained_macs / self.jobs
        return f'{text}, {format_seconds(left)} left'

    def refuse_to_start(self) -> None:
        """Raises OutOfTime or train.Preempted when a signal came between two runs."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise OutOfTime
        if self.stopped:
            raise train.Preempted('SIGTERM: the same command goes on from here')

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM stops between two runs (a run in progress listens by itself), and comes by itself at the deadline."""

        def stop(number: int, frame: Any) -> None:
            del number, frame
            self.stopped = True

        previous = signal.signal(signal.SIGTERM, stop)
        ring = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
        try:
            if self.deadline is not None:
                # Again and again: it may ring between two runs, and the next one listens afresh.
                signal.setitimer(signal.ITIMER_REAL, max(self.deadline - time.monotonic(), 0.001), 1.0)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, ring)
            signal.signal(signal.SIGTERM, previous)

    # -- what it ends with ----------------------------------------------------------------------------------------

    def tables(self) -> list[tables.Table]:
        """The sweep's tables of what has finished; the other cells are empty."""
        self.collect()
        if self.sweep.paper:
            summaries = list(self.done.values())
            return [comparison.paper_table(self.sweep.paper, summaries, only_ours=bool(summaries))]
        folder = self.tasks[0].result.parent
        found = tables.collect([folder]) if folder.is_dir() else []
        cards = [task.cell.card(self.name, self.sweep) for task in self.tasks if task.seed == 0]
        return sweeps.sweep_tables(found, cards)


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
        rows.append([_name(cell), *shown])
        words.append(f'{_name(cell)}: --config={shlex.quote(cell.config)}')
    table = tables.Table(sweeper.sweep.title, ['cell', 'runs done', 'samples', 'MACs', 'cost %'], rows)
    macs = sum(task.cost.macs for task in missing if task.cost)
    samples = sum(task.cost.samples for task in missing if task.cost)
    left = f'{len(missing)} of {len(sweeper.tasks)} runs are missing: {tables.quantity(samples)} samples'
    left += f', {tables.quantity(macs)} multiply-accumulates'
    known = [
        (summary['seconds']['train'], task.cost.macs)
        for task, summary in sweeper.done.items()
        if task.cost and summary['seconds'].get('train')
    ]
    if known and missing:
        speed = sum(seconds for seconds, _ in known) / sum(counted for _, counted in known)
        left += f', about {format_seconds(macs * speed)} of training at the speed of the finished runs'
    return [table.to_text(), '', left, '', *words]


# ------------------------------------------------------------------------------------------------------- the program


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f'{message}; see python -m kcd_jax.sweep --help')


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = _Parser(prog='python -m kcd_jax.sweep', description='The runs of a table, and the table.')
    made.add_argument('name', nargs='?', help='of the sweep; without it they are listed')
    made.add_argument('--trials', type=int, default=DEFAULT_TRIALS, help=f'seeds a cell (default {DEFAULT_TRIALS})')
    made.add_argument('--pairs', default='', help='only these TEACHER-STUDENT columns, with commas between')
    made.add_argument('--jobs', type=int, default=1, help='processes (default 1)')
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
    log.say('\n' + '\n\n'.join(table.to_text() for table in found))
    folder = sweeper.tasks[0].result.parent
    log.write_text(folder / 'table.md', '\n'.join(table.to_markdown() for table in found))
    log.write_text(folder / 'table.csv', '\n'.join(table.to_csv() for table in found))
    log.say(f'written to {folder}/table.md and table.csv')


def run(argv: Sequence[str]) -> int:
    """The whole program; returns the exit code. Errors of the user are one line on stderr."""
    try:
        arguments = parser().parse_args(argv)
        known, root = read_sweeps(arguments.file)
        if arguments.name is None:
            print('\n'.join(f'{name:22} {sweep.title}' for name, sweep in known.items()))
            return 0
        if arguments.trials < 1 or arguments.jobs < 1 or arguments.minutes < 0:
            raise ValueError('--trials and --jobs take at least 1, --minutes at least 0')
        sweep = cells.find(known, arguments.name)
        devices = devices_of(sweep, arguments)
        main.prepare_jax(devices, False)
        mesh = sharding.make_mesh()
        tasks = make_tasks(arguments.name, sweep, root, arguments, mesh.size)
        sweeper = Sweeper(arguments.name, sweep, tasks, arguments.minutes, arguments.jobs)
        if arguments.dry:
            print('\n'.join(describe(sweeper)))
            return 0
        code = 0
        if arguments.jobs > 1 and not arguments.worker:
            code = supervise(sweeper, argv, devices)
        else:
            code = _work(sweeper, mesh)
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
    except train.Preempted as notice:
        print(notice, file=sys.stderr)
        return main.EXIT_PREEMPTED
    return main.EXIT_DIVERGED if sweeper.failures else 0


if __name__ == '__main__':
    sys.exit(run(sys.argv[1:]))
