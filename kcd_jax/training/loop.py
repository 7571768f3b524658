"""The one training loop: every run of every method and policy passes through `train`, from top to bottom."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kcd_jax import paths
from kcd_jax.contracts import Network, TrainState
from kcd_jax.runtime import checkpoint, console, descriptions, distributed, files, runlog, sharding
from kcd_jax.teachers import teacher as teachers
from kcd_jax.teachers.model import Model, load
from kcd_jax.teachers.sharing import on_all_processes
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import journal, ledger, serving, shared_teachers
from kcd_jax.training.journal import Journal
from kcd_jax.training.run import Run
from kcd_jax.training.trainer import Diverged, Trainer, student_variables

__all__ = ['Diverged', 'Preempted', 'Result', 'train']


Preempted = distributed.Stopped  # raised by `train` once its state is saved


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its name, its folder, the content of its summary.json, and a student that was built in Python."""

    name: str
    workdir: pathlib.Path
    summary: dict[str, Any]
    network: Network | None = None

    def __repr__(self) -> str:
        return f'Result({self.name}, {self.headline}, in {self.workdir})'

    @property
    def accuracy(self) -> float | None:
        """Of the last epoch, on the held-out images; None where they have no labels."""
        return self.summary['accuracy']

    @property
    def headline(self) -> str:
        """'accuracy 93.80 %', or what stands for it without labels: 'agreement 95.04 %', 'cosine 0.871'."""
        return journal.headline(self.summary)

    @functools.cached_property
    def model(self) -> Model:
        """The trained student, read from the run's folder."""
        return load(self.workdir, self.network)


def train(
    run: Run,
    workdir: str | pathlib.Path,
    *,
    teacher_dir: str | pathlib.Path | None = None,
    mesh: Mesh | None = None,
    shared: bool = False,
) -> Result:
    """Trains one student under one method and one policy.

    Args:
      run: what to train.
      workdir: folder of the run; an interrupted run resumes, a finished one is read back.
      teacher_dir: where a teacher that is trained first is kept; default: `workdir`/teacher.
      mesh: of devices; all of them by default.
      shared: whether the run is a teacher that is taken from, and left in, the cache of teachers.

    Returns:
      The finished run.

    Raises:
      ValueError: bad input, in one line, before the first step.
      Preempted: a signal came to any process; the state is saved.
      Diverged: the loss is not finite.
    """
    if run.data.shape_only:
        raise ValueError(f'the data {run.data.name} has shapes only; load it (kcd_jax.data.load) to train on it')
    workdir = paths.expand(workdir)
    mesh = mesh or sharding.make_mesh()
    start = time.perf_counter()

    # ---- everything that can be known before the first compilation ----
    with distributed.together():
        run.validate(mesh.size)
        if isinstance(run.teacher, Run) and run.uses_teacher:
            run.teacher.validate(mesh.size)
        description = json.loads(files.dumps(run.describe()))
    compare = functools.partial(descriptions.differences, at_once=True)
    distributed.refuse_difference('configuration', description, compare)

    with contextlib.ExitStack() as stack:
        with distributed.together():
            log = stack.enter_context(runlog.RunLog(workdir, description))
        finished = distributed.first(lambda: _finished(workdir) or (_shared(description, workdir) if shared else None))
        if finished is not None:
            return Result(run.name, workdir, finished, run.own_network)

        # ---- the teacher ----
        variables, card, taught_for = None, None, None
        if run.teacher_network is not None:
            if isinstance(run.teacher, Run):
                taught_for = sum(run.teacher.steps)
                folder = pathlib.Path(teacher_dir) if teacher_dir else workdir / 'teacher'
                train(run.teacher.replace(name='teacher'), folder, mesh=mesh, shared=run.teacher.own_network is None)
                start = time.perf_counter()  # the teacher's training is another run
                own, dtype = run.teacher.own_network, run.recipe.dtype
                restore = functools.partial(Teacher.restore, folder, own or '', dtype=dtype)
                run = run.replace(teacher=on_all_processes(restore, dtype, own))
            variables, card = run.teacher.variables, dict(run.teacher.card)
            run.validate(mesh.size)
            if run.host is not None:
                run.host.recheck()
                card['macs'] = ledger.teacher_macs(run.teacher, run.data.image_shape)
        trainer, notes = Trainer(run, variables, mesh), Journal(run, log)
        if card is not None:
            for line in run.teacher.fits(run.data):
                log.say(line)
            card['accuracy'] = trainer.evaluate_teacher()
            _judge(card, run, taught_for, trainer.evaluator.count, log)
            _judge_rows(run, log)

        # ---- start or go on ----
        log.say(f'{run.name}, seed {run.seed}: {ledger.samples_line(ledger.sample_counts(run))}')
        with distributed.together():
            keep = run.recipe.checkpoint.keep
            keeper = stack.enter_context(checkpoint.Checkpointer(workdir / 'checkpoints', keep=keep))
        saver = Saver(keeper, trainer, notes, description)
        fresh = trainer.initial_state()
        current = saver.resume(fresh, workdir)
        earlier = 0.0 if current is None else sum(trainer.seconds.values())
        if current is None:
            trainer.refuse_probabilities(fresh)
            current = _condense(trainer, notes, fresh, 0)
        del fresh
        notice = stack.enter_context(distributed.Notice())

        def between(current: TrainState) -> None:
            """Between two chunks of steps: saves when it is time, and stops when a signal came."""
            if notice.came():
                saver.save(current)
                saver.wait()
                raise notice.stopped(int(current.step))
            if saver.due():
                saver.save(current)

        # ---- train ----
        batch, last = run.recipe.batch, len(run.epochs)
        log.start_progress(sum(run.steps) * batch, done=int(current.step) * batch)
        for epoch in range(int(current.epoch), last):
            current, report = trainer.train_epoch(current, epoch, between, log.progress)
            notes.epoch(current, epoch + 1, report, trainer.visits_by_class(current))
            if (epoch + 1) % run.recipe.eval_every == 0 or epoch + 1 == last:
                notes.evaluation(current, epoch + 1, report, trainer.evaluate(current, final=epoch + 1 == last))
            current = _condense(trainer, notes, current, epoch + 1)
            between(current)
        saver.save(current)
        saver.wait()

        # ---- what it leaves ----
        trainer.split_scoring(current)
        held_out = {'class_accuracy': None, 'right': None}
        if run.recipe.survey:
            held_out = notes.points(current, trainer.read(current), trainer.evaluator.batches.split)
        summary = journal.summary(
            notes,
            trainer,
            current,
            description=description,
            teacher=card,
            held_out=held_out,
            seconds=earlier + time.perf_counter() - start,
        )
        if distributed.is_first():
            student = jax.device_get(student_variables(current))
            teachers.save(workdir / teachers.FILE, student, journal.card(summary, run))
        log.write_summary(summary)
        if shared and distributed.is_first():
            shared_teachers.publish(description, workdir)
        log.stop_progress()
        log.say(f'{run.name}, seed {run.seed}: finished, {journal.headline(summary)}, {_duration(summary["seconds"])}')
        return Result(run.name, workdir, summary, run.own_network)


def _finished(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a run that has finished in `workdir`; None while it has not, or its files are damaged."""
    return runlog.finished(workdir) if teachers.is_whole(workdir / teachers.FILE) else None


def _duration(seconds: Mapping[str, float]) -> str:
    """'12.3 s, 4.1 s of it compiling'."""
    return f'{seconds["total"]:,.1f} s, {seconds["compile"]:,.1f} s of it compiling'


def _shared(description: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a teacher that another run has trained, whose files are copied into `workdir`."""
    source = shared_teachers.fetch(description, workdir)
    if source is None:
        return None
    found = f'trained by an earlier run, found in {source} (KCD_JAX_TEACHERS=off trains it again)'
    console.say_of_run(f'teacher {description["student"]}: {found}')
    return _finished(workdir)


def _judge(card: Mapping[str, Any], run: Run, taught_for: int | None, count: int, log: runlog.RunLog) -> None:
    """Prints the teacher's accuracy; ValueError if it is no better than chance."""
    if card['accuracy'] is None:
        why = 'it has no outputs of the held-out images' if run.data.scored else 'the held-out images have no labels'
        why = why if run.predicts and run.teacher_predicts else 'only its embeddings are read'
        log.say(f'teacher {card["network"]}: {why}, so its accuracy is not known')
        return
    held_out = f'{count:,} {"validation" if run.data.validation else "test"} images'
    log.say(f'teacher {card["network"]}: {100 * card["accuracy"]:.2f} % on {held_out}')
    warning = teachers.refuse_near_chance(
        card['accuracy'], run.data.num_classes, taught_for, num_images=count, allow_weak=run.recipe.teaching.allow_weak
    )
    if warning:
        log.say(warning)


def _judge_rows(run: Run, log: runlog.RunLog) -> None:
    """ValueError where stored outputs of the training points do not know their labels: they may be of other points."""
    if not (run.data.labelled and run.predicts and run.teacher_predicts):
        return
    for outputs in serving.stored_outputs(run.teacher):
        logits = outputs.train if outputs.num_views is None else outputs.train.mean(axis=1, dtype=np.float32)
        hits = np.argmax(logits, axis=1)
        accuracy = float(np.mean(hits == run.data.train.labels))
        log.say(f'teacher {outputs.name}: {100 * accuracy:.2f} % on its rows of the training points')
        warning = teachers.refuse_near_chance(
            accuracy,
            run.data.num_classes,
            num_images=run.num_points,
            allow_weak=run.recipe.teaching.allow_weak,
            kind='training points, by its rows in the order of the data',
        )
        if warning:
            log.say(warning)


def _condense(trainer: Trainer, notes: Journal, current: TrainState, epoch: int) -> TrainState:
    """The state with a new plan before epoch `epoch` if the policy asks for one; logs it."""
    condensed = trainer.condense(current, epoch)
    if condensed is not current:
        notes.condensation(current.plan, condensed, epoch)
    return condensed


@dataclasses.dataclass
class Saver:
    """Saves a run with everything that belongs to its state, and resumes from it."""

    keeper: checkpoint.Checkpointer
    trainer: Trainer
    notes: Journal
    description: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._timer = distributed.Timer(self.notes.run.recipe.checkpoint.seconds)

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._timer.due()

    def save(self, current: TrainState) -> None:
        """Starts writing a checkpoint. No state is saved after a loss that was not finite."""
        self.trainer.refuse_divergence(current)
        meta = {
            'seconds': self.trainer.seconds,
            'tally': dataclasses.asdict(self.trainer.tally),
            'teacher_rows': distributed.summed(self.trainer.teacher_rows),
            'condensations': self.notes.condensations,
            'evaluations': self.notes.evaluations,
            'log': self.notes.log.lines,
            'run': self.description,
        }
        with distributed.together():
            self.notes.log.sync()
        self.keeper.save(int(current.step), current, json.loads(json.dumps(meta)))
        self._timer.restart()

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk."""
        with distributed.together():
            self.keeper.wait()

    def resume(self, fresh: TrainState, workdir: pathlib.Path) -> TrainState | None:
        """The state of the newest whole checkpoint, everything else set back to it; None where there is none."""
        trainer, notes = self.trainer, self.notes
        restored = self.keeper.restore_latest(
            fresh, lacks=lambda meta: journal.lost_stage(workdir, meta['condensations'])
        )
        if restored is None:
            with distributed.together():
                notes.log.rewind([], -1)
            return None
        current, meta = restored
        with distributed.together():
            descriptions.refuse_other(workdir, meta['run'], self.description)
            notes.log.rewind(meta['log'], int(current.step))
        trainer.seconds.update(meta['seconds'])
        trainer.tally = ledger.Tally(**meta['tally'])
        if distributed.is_first():  # they are those of all processes
            trainer.teacher_rows.update(meta['teacher_rows'])
        notes.condensations, notes.evaluations = meta['condensations'], meta['evaluations']
        epoch = int(current.epoch) + 1
        notes.log.say(f'going on from step {int(current.step):,}, epoch {epoch} of {len(notes.run.epochs)}')
        return current
