"""A sweep in progress: what is missing is trained, seed by seed over all cells; finished runs are published."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from kcd_jax.experiments import bridge, cells, experiment
from kcd_jax.experiments.cells import Sweep
from kcd_jax.experiments.tasks import Task, name_of, told_of
from kcd_jax.report import paper_results, tables
from kcd_jax.runtime import console, files, runlog, sharding
from kcd_jax.training import loop

POLL_SECONDS = 2.0

format_seconds = tqdm.format_interval


class OutOfTime(Exception):
    """The minutes are over; what was running is saved."""


class Sweeper:
    """A sweep in progress."""

    def __init__(
        self,
        name: str,
        sweep: Sweep,
        tasks: Sequence[Task],
        *,
        start: float | None = None,
        minutes: float = 0.0,
        jobs: int = 1,
        together: int = 1,
        dry: bool = False,
    ):
        """`start`: of the clock (time.monotonic). `minutes`: 0 is no limit. `jobs`: processes that share the work.

        `together`: seeds of a cell that take their steps in one program (`lockstep`). `dry`: nothing is written.
        """
        self.dry, self.together = dry, together
        self.name, self.sweep, self.tasks, self.jobs = name, sweep, tasks, jobs
        self.start = time.monotonic() if start is None else start
        self.deadline = self.start + 60 * minutes if minutes else None
        self.stopped = False
        self.done: dict[Task, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] | None = None
        self.took: dict[str, list[float]] = {}
        self.failures: list[str] = []
        self.announced: set[pathlib.Path] = set()

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
        summary = files.read_json(task.result)
        if summary is not None and 'config' in summary and cells.same_run(summary['config'], task.config.to_dict()):
            card = task.cell.card(self.name, self.sweep)
            if summary['cell'] != card:  # the sweep was renamed, or compares with other rows now
                summary['cell'] = card
                self.write(task.result, summary)
            return summary
        summary = runlog.read_summary(task.folder) or self.elsewhere(task)
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
            if alike and 'config' in summary and cells.same_run(summary['config'], task.config.to_dict()):
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
            (label, pair), *_ = task.cell.sources
            public['config']['policy']['run'] = f'<{label}@{pair}>' if pair else f'<{label}>'
        self.write(task.result, public)
        taught = runlog.read_summary(task.teacher) if public['teacher'] else None
        if taught is not None:
            card = {**public['cell'], 'label': 'Teacher', 'place': -1}
            path = task.result.with_name(f'teacher_{taught["student"]}_{taught["seed"]}.json')
            self.write(path, {**experiment.public(taught), 'cell': card})
        return public

    def write(self, path: pathlib.Path, summary: Mapping[str, Any]) -> None:
        """Writes a result, whole or not at all."""
        if not self.dry:
            files.write_text(path, files.dumps(summary, indent=1) + '\n')

    # -- one process ----------------------------------------------------------------------------------------------

    def work(self, mesh: sharding.Mesh) -> None:
        """Trains what is missing, one run after the other, beside other processes that do the same.

        Raises:
          OutOfTime: the minutes are over. loop.Preempted: SIGTERM. ValueError: bad input.
        """
        with self._listening():
            waiting = self.needed()
            while waiting:
                ran = False
                for task in waiting:
                    if runlog.read_summary(task.folder) is not None or not self.ready(task):
                        continue  # another process was faster, or is not there yet
                    self.refuse_to_start()
                    with contextlib.suppress(runlog.Busy):  # another process has it, or its teacher
                        self.run(self.beside(task, waiting), mesh)
                        ran = True
                waiting = self.needed()
                if waiting and not ran:
                    self.refuse_to_start()
                    time.sleep(POLL_SECONDS)

    def needed(self) -> list[Task]:
        """The missing runs that have not failed, and before them the runs that they start from."""
        missing = [task for task in self.collect() if task.title not in self.failures]
        first = [
            source for task in missing for source in self.sources(task) if runlog.read_summary(source.folder) is None
        ]
        return list(dict.fromkeys([*first, *missing]))

    def sources(self, task: Task) -> list[Task]:
        """The runs that a run starts from."""
        wanted = {(label, pair, task.seed) for label, pair in task.cell.sources}
        return [other for other in self.tasks if (other.cell.label, other.cell.pair, other.seed) in wanted]

    def ready(self, task: Task) -> bool:
        """Whether the runs that it starts from have finished."""
        return all(runlog.read_summary(source.folder) is not None for source in self.sources(task))

    def beside(self, task: Task, waiting: Sequence[Task]) -> list[Task]:
        """The run and those of the cell's other seeds that are trained in one program with it.

        Seeds 0 to together - 1 belong together, and so on, whichever of them are finished.
        """
        block = task.seed // self.together
        alike = [other for other in waiting if other.cell == task.cell and other.seed // self.together == block]
        return [other for other in alike if runlog.read_summary(other.folder) is None and self.ready(other)]

    def run(self, group: Sequence[Task], mesh: sharding.Mesh) -> None:
        """Trains runs of one cell, publishes them and says where the sweep stands.

        A loss that is not finite is a failure of its run alone. What else ends a run is raised when all have ended.
        """
        task = group[0]
        taught = task.config.method.name != 'none' and not task.config.teacher.checkpoint
        if taught and task.teacher not in self.announced and runlog.read_summary(task.teacher) is None:
            self.announced.add(task.teacher)
            console.say(f'the teacher {task.config.teacher.name} comes first, for all runs that it teaches')

        with told_of(task.cell), console.quiet():
            job = functools.partial(bridge.run_of(task.config).train, task.folder, teacher_dir=task.teacher, mesh=mesh)
            outcomes = [_outcome(job)]
            errors = [self.take_in(task, outcome) for task, outcome in zip(group, outcomes, strict=True)]
            for error in filter(None, errors):
                if isinstance(error, loop.Preempted) and self.out_of_time():
                    raise OutOfTime from None
                raise error

    def take_in(self, task: Task, outcome: loop.Result | Exception) -> Exception | None:
        """Publishes a run that has finished; returns what else ended it, unless that concerns this run alone."""
        if isinstance(outcome, loop.Diverged):
            self.failures.append(task.title)
            print(f'{task.title}: {outcome}', file=sys.stderr)
            return None
        if isinstance(outcome, Exception):
            return outcome
        self.done[task] = self.publish(task, outcome.summary)
        took = outcome.summary['seconds']['total']
        self.took.setdefault(name_of(task.cell), []).append(took)
        console.say(f'{self.standing()}: {task.title}, {100 * outcome.summary["accuracy"]:.2f} % in {took:.1f} s')
        return None

    def out_of_time(self) -> bool:
        """Whether the minutes are over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def standing(self) -> str:
        """'12 of 40 runs, 1:20 gone, 3:10 left'."""
        missing = self.collect()
        gone = time.monotonic() - self.start
        text = f'{len(self.tasks) - len(missing)} of {len(self.tasks)} runs, {format_seconds(gone)} gone'
        if not missing or not self.took:
            return text
        of_cell = {cell: sum(runs) / len(runs) for cell, runs in self.took.items()}
        usual = sum(of_cell.values()) / len(of_cell)
        left = sum(of_cell.get(name_of(task.cell), usual) for task in missing) / self.jobs
        return f'{text}, {format_seconds(left)} left'

    def refuse_to_start(self) -> None:
        """Raises OutOfTime or loop.Preempted when a signal came between two runs."""
        if self.out_of_time():
            raise OutOfTime
        if self.stopped:
            raise loop.Preempted(signal.SIGTERM)

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
            return [paper_results.paper_table(self.sweep.paper, summaries, only_ours=bool(summaries))]
        folder = self.tasks[0].result.parent
        found = tables.collect([folder]) if folder.is_dir() else []
        cards = [task.cell.card(self.name, self.sweep) for task in self.tasks if task.seed == 0]
        return tables.tables(found, expected=cards)


def _outcome(job: Callable[[], loop.Result]) -> loop.Result | Exception:
    """What the job returned, or the exception that it raised."""
    try:
        return job()
    except Exception as error:
        return error
