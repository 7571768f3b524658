"""Runs an experiment: folders, resumption, several processes, a time limit, and published results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from kcd_jax.experiments.experiment import (
    Cell,
    Experiment,
    difference,
    digest,
    folder_name,
    of_config,
    public,
    same_run,
    without_content,
    without_places,
)
from kcd_jax.runtime import console, distributed, exitcodes, files, runlog, sharding
from kcd_jax.training.loop import Diverged, Result

POLL_SECONDS = 2.0

format_seconds = tqdm.format_interval


class OutOfTime(Exception):
    """The time limit was reached; the run in progress is saved."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One training: a cell with a seed.

    Attributes:
      cell: of the experiment.
      seed: of the run.
      folder: of the run.
      teacher: folder of the teacher, if it is trained first.
      result: the JSON file of the published result; None if results are only in `folder`.
    """

    cell: Cell
    seed: int
    folder: pathlib.Path
    teacher: pathlib.Path
    result: pathlib.Path | None = None

    @property
    def name(self) -> str:
        """'KC-KD on vgg13-vgg8, seed 2'."""
        return f'{self.cell.name}, seed {self.seed}'


def in_workdir(experiment: Experiment, workdir: str | os.PathLike[str]) -> list[Task]:
    """The trainings of a command: <workdir>/<name>/trial_<i>, seed by seed, and <workdir>/teacher."""
    root = pathlib.Path(workdir)
    folders: dict[tuple[str, int], pathlib.Path] = {}
    tasks = []
    for trial, seed in enumerate(experiment.seeds):
        for cell in experiment.cells:
            taught_by = cell.describe()['teacher']
            teacher = root / 'teacher'
            if taught_by and 'run' in taught_by:  # variants may have different teachers
                key = digest(taught_by['run']), taught_by['run']['seed']
                teacher = folders.setdefault(key, root / ('teacher' if not folders else f'teacher_{len(folders)}'))
            tasks.append(Task(cell, seed, root / cell.label / f'trial_{trial}', teacher))
    return tasks


def by_content(experiment: Experiment, workdir: str | os.PathLike[str], results: str | os.PathLike[str]) -> list[Task]:
    """The trainings of a sweep, seed by seed, in folders named after the runs, so that equal runs are shared."""
    root, published = pathlib.Path(workdir), pathlib.Path(results) / experiment.name
    folders: dict[tuple[str, str], str] = {}
    teachers: dict[Cell, pathlib.Path] = {}
    for cell in experiment.cells:
        description = cell.describe()
        if cell.reuse is not None:
            description['policy']['run'] = folders[cell.reuse.label, cell.reuse.column]
        folders[cell.label, cell.column] = folder_name(description)
        taught_by = (description['teacher'] or {}).get('run')
        teachers[cell] = root / 'teachers'
        if taught_by:
            teachers[cell] /= pathlib.Path(folder_name(taught_by)) / f'seed_{taught_by["seed"]}'
    return [
        Task(
            cell,
            seed,
            root / folders[cell.label, cell.column] / f'seed_{seed}',
            teachers[cell],
            published / f'{cell.slug}_{seed}.json',
        )
        for seed in experiment.seeds
        for cell in experiment.cells
    ]


class Runner:
    """Trains the runs of an experiment that have not finished, and collects their results."""

    def __init__(
        self,
        experiment: Experiment,
        tasks: list[Task],
        *,
        start: float | None = None,
        minutes: float = 0.0,
        jobs: int = 1,
        shared: bool = False,
        dry: bool = False,
    ):
        """Stores the arguments and runs nothing.

        Args:
          experiment: to run.
          tasks: its trainings, from `in_workdir` or `by_content`.
          start: when the command started, by `time.monotonic`; None: now.
          minutes: time limit; 0: none.
          jobs: processes that share the trainings.
          shared: whether other processes may use the same folders, so that trainings in progress are skipped.
          dry: whether to write nothing.
        """
        self.experiment, self.tasks, self.jobs, self.shared, self.dry = experiment, tasks, jobs, shared, dry
        self.start = time.monotonic() if start is None else start
        self.deadline = self.start + 60 * minutes if minutes else None
        self.stopped = 0  # the signal received between two runs
        self.done: dict[Task, dict[str, Any]] = {}
        self.results: list[Result] = []
        self.failures: list[str] = []
        self._took: dict[str, list[float]] = {}
        self._others: list[dict[str, Any]] | None = None
        self._descriptions: dict[Cell, dict[str, Any]] = {}

    # -- results --------------------------------------------------------------------------------------------------

    def missing(self) -> list[Task]:
        """The trainings that have not finished. Publishes finished ones that were not published."""
        found = []
        for task in self.tasks:
            if task not in self.done:
                summary = None if task.result is None else self._stored(task)
                if summary is None:
                    found.append(task)
                else:
                    self.done[task] = summary
        return found

    def _describe(self, cell: Cell) -> dict[str, Any]:
        if cell not in self._descriptions:
            described = cell.describe()
            self._descriptions[cell] = without_content(described) if self.dry else described
        return self._descriptions[cell]

    def _stored(self, task: Task) -> dict[str, Any] | None:
        """The result of a training: the published one, else that of its folder or of an equal run elsewhere.

        Raises:
          ValueError: the file holds another run.
        """
        summary = files.read_json(task.result)
        wanted, card = self._describe(task.cell), self.experiment.card(task.cell)
        if summary is not None:
            if how := difference(summary['run'], wanted):
                raise ValueError(
                    f'{task.result} holds a run that differs from {task.name}: {how}; move it, or use another --results'
                )
            if summary['cell'] != card:  # the table was renamed, or its references changed
                summary['cell'] = card
                self._write(task.result, summary)
            return summary
        summary = runlog.read_summary(task.folder)
        if summary is not None and (how := difference(summary['run'], wanted)):
            raise ValueError(f'{task.folder} holds a run that differs from {task.name}: {how}; use another --workdir')
        summary = summary or self._elsewhere(task)
        return None if summary is None else self._publish(task, summary)

    def _elsewhere(self, task: Task) -> dict[str, Any] | None:
        """The same run among the results of other experiments; runs with `reuse` are not shared."""
        if task.cell.reuse is not None:
            return None
        if self._others is None:
            here = task.result.parent
            paths = [path for path in sorted(here.parent.glob('*/*.json')) if path.parent != here]
            self._others = [found for found in map(files.read_json, paths) if isinstance(found, dict)]
        wanted = self._describe(task.cell)
        for summary in self._others:
            run = summary.get('run')
            if summary.get('seed') == task.seed and isinstance(run, dict) and same_run(run, wanted):
                return summary
        return None

    def _publish(self, task: Task, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the results of a training and of its teacher, without paths of this machine."""
        reuse = task.cell.reuse
        source = reuse and (f'<{reuse.label}@{reuse.column}>' if reuse.column else f'<{reuse.label}>')
        words = f'{task.cell.words}{"," if ":" in task.cell.words else ":"}seed={task.seed}'
        words += f',policy=reuse,run={source},mode={reuse.mode}' if reuse else ''
        result = public(summary) | {
            'cell': self.experiment.card(task.cell),
            'command': without_places(shlex.join(['python', '-m', 'kcd_jax.main', f'--config={words}'])),
        }
        if reuse is not None:
            result['run']['policy']['run'] = source
        self._write(task.result, result)
        taught = runlog.read_summary(task.teacher) if result['teacher'] else None
        if taught is not None:
            card = {**result['cell'], 'label': 'Teacher', 'place': -1}
            path = task.result.with_name(f'teacher_{taught["student"]}_{taught["seed"]}.json')
            self._write(path, {**public(taught), 'cell': card})
        return result

    def _write(self, path: pathlib.Path, summary: Mapping[str, Any]) -> None:
        if not self.dry:
            files.write_text(path, files.dumps(summary, indent=1) + '\n')

    # -- work -----------------------------------------------------------------------------------------------------

    def work(self, mesh: sharding.Mesh) -> int:
        """Trains the missing runs one after the other; returns the exit code.

        If a run diverges, the others are still trained, and the exit code is `DIVERGED`.

        Args:
          mesh: of the devices.

        Raises:
          OutOfTime: the time limit was reached.
          distributed.Stopped: a signal was received; the state is saved.
          ValueError: bad input.
        """
        with self._listening():
            waiting = self._waiting()
            while waiting:
                ran = False
                for task in waiting:
                    if task.result is not None and runlog.read_summary(task.folder) is not None:
                        continue  # another process trained it
                    if self._source(task) is not None and runlog.read_summary(self._source(task).folder) is None:
                        continue
                    self._refuse_to_start()
                    try:
                        self._run(task, mesh)
                        ran = True
                    except runlog.Busy:
                        if not self.shared:
                            raise
                waiting = self._waiting()
                if waiting and not ran:
                    self._refuse_to_start()
                    time.sleep(POLL_SECONDS)
        return exitcodes.DIVERGED if self.failures else exitcodes.OK

    def _waiting(self) -> list[Task]:
        """The missing trainings that have not failed, after the trainings whose sets they use."""
        missing = [task for task in self.missing() if task.name not in self.failures]
        sources = [self._source(task) for task in missing]
        first = [source for source in sources if source and runlog.read_summary(source.folder) is None]
        return [
            task for task in dict.fromkeys([*first, *missing]) if task.name not in self.failures and self._can(task)
        ]

    def _can(self, task: Task) -> bool:
        source = self._source(task)
        return source is None or source.name not in self.failures

    def _source(self, task: Task) -> Task | None:
        """The training whose set another one uses, or None."""
        reuse = task.cell.reuse
        if reuse is None:
            return None
        wanted = (reuse.label, reuse.column, task.seed)
        return next(other for other in self.tasks if (other.cell.label, other.cell.column, other.seed) == wanted)

    def _run(self, task: Task, mesh: sharding.Mesh) -> None:
        """Trains one run, publishes it and prints the progress of the experiment."""
        source = self._source(task)
        several = len(self.tasks) > 1
        if self.shared and self._held(task):
            raise runlog.Busy(f'another process is using {task.folder} or {task.teacher}')
        console.say(f'{task.cell.name}: {task.cell.line}, seed {task.seed}')
        try:
            run = task.cell.resolved(task.seed, source and source.folder)
            with console.quiet() if task.result is not None else contextlib.nullcontext():
                result = run.train(task.folder, teacher_dir=task.teacher, mesh=mesh)
        except Diverged as error:
            self.failures.append(task.name)
            if distributed.is_first():
                print(f'error: {task.name}: {error}' if several else f'error: {error}', file=sys.stderr, flush=True)
            return
        except distributed.Stopped:
            if self._out_of_time():
                raise OutOfTime from None
            raise
        except (runlog.Busy, distributed.Agreed):
            raise
        except ValueError as error:
            raise ValueError(f'{task.cell.name}: {error}' if several else str(error)) from error
        self.results.append(result)
        self.done[task] = result.summary if task.result is None else self._publish(task, result.summary)
        took = result.summary['seconds']['total']
        self._took.setdefault(task.cell.name, []).append(took)
        if task.result is not None:
            console.say(f'{self.standing()}: {task.name}, {result.headline} in {took:.1f} s')

    def _held(self, task: Task) -> bool:
        """Whether another process is using the folder of a run or of the teacher that it would train.

        Each waiting process asks this about each missing run every few seconds, before it says that a run starts.
        """
        folders = [task.folder] if runlog.read_summary(task.teacher) else [task.folder, task.teacher]
        for folder in folders:
            try:
                if folder.is_dir():
                    runlog.lock(folder).close()
            except runlog.Busy:
                return True
            except OSError:
                pass  # the run itself says what is wrong with its folder
        return False

    def _out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _refuse_to_start(self) -> None:
        """Raises OutOfTime or Stopped if the time limit was reached or a signal received between two runs."""
        if self._out_of_time():
            raise OutOfTime
        if self.stopped:
            raise distributed.Stopped(self.stopped, 0)

    def standing(self) -> str:
        """'12 of 40 runs, 1:20 gone, 3:10 left'."""
        missing = self.missing()
        gone = time.monotonic() - self.start
        text = f'{len(self.tasks) - len(missing)} of {len(self.tasks)} runs, {format_seconds(gone)} gone'
        if not missing or not self._took:
            return text
        of_cell = {cell: sum(runs) / len(runs) for cell, runs in self._took.items()}
        usual = sum(of_cell.values()) / len(of_cell)
        left = sum(of_cell.get(task.cell.name, usual) for task in missing) / self.jobs
        return f'{text}, {format_seconds(left)} left'

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Stops on SIGTERM between two runs (a run in progress catches it), and sends one at the deadline.

        With connected processes, JAX's runtime handles SIGTERM and there is no deadline.
        """
        if distributed.is_connected() or (self.deadline is None and not self.shared):
            yield
            return

        def stop(number: int, frame: Any) -> None:
            del frame
            self.stopped = number

        previous = signal.signal(signal.SIGTERM, stop)
        ring = signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
        try:
            if self.deadline is not None:
                # Repeated, because the first one may arrive between two runs, before the next one catches signals.
                signal.setitimer(signal.ITIMER_REAL, max(self.deadline - time.monotonic(), 0.001), 1.0)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, ring)
            signal.signal(signal.SIGTERM, previous)


def run(config: ConfigDict, workdir: str | os.PathLike[str], *, mesh: sharding.Mesh | None = None) -> list[Result]:
    """Runs the experiment of a config and prints its table, as the command `train` does, for notebooks and tests.

    Args:
      config: from `config.load`.
      workdir: of the folders <name>/trial_<i> and teacher; finished runs in it are not repeated.
      mesh: of the devices; None: all of them.

    Returns:
      The finished runs, seed by seed.
    """
    mesh = mesh or sharding.make_mesh()
    experiment = of_config(config)
    for cell in experiment.cells:
        cell.run.check(mesh.size)
    runner = Runner(experiment, in_workdir(experiment, workdir))
    runner.work(mesh)
    finish(runner, pathlib.Path(workdir))
    return runner.results


def finish(runner: Runner, workdir: pathlib.Path) -> None:
    """Prints the table of the finished runs, and writes report.html for each run and for all together.

    The page of a run shows its own images; the common one shows images if all runs have the same.
    """
    if not runner.results:  # all of them diverged
        return
    from kcd_jax.report import page, tables  # matplotlib takes a second

    reference = runner.experiment.references[0]
    found = tables.tables(tables.collect([workdir]), reference)
    console.say('\n\n'.join(table.to_text() for table in found))
    datasets = {task.folder: task.cell.run.data for task in runner.tasks}
    first = datasets[runner.results[0].workdir]
    same = all(dataset.identity == first.identity for dataset in datasets.values())
    pictures = first.pictures() if same else {}
    try:
        for result in runner.results:
            if not (result.workdir / page.NAME).exists():
                page.write(result.workdir, **datasets[result.workdir].pictures())
        console.say(f'report: {page.write(workdir, **pictures, reference=reference)}')
    except OSError as error:
        raise OSError(
            f'the runs are finished, but their report under {workdir} cannot be written ({error.strerror or error}); '
            'make room and start the same command again'
        ) from error
