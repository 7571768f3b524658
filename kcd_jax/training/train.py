"""The one loop: when to condense, evaluate, save and log. Every run of every method and policy passes through here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
import time
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kcd_jax import data
from kcd_jax.contracts import Network, PyTree, TrainState
from kcd_jax.runtime import checkpoint, description, distributed, environment, files, runlog, sharding
from kcd_jax.teachers import teacher
from kcd_jax.training import check, ledger, state
from kcd_jax.training.loop import Diverged, Loop, student_variables

__all__ = ['Diverged', 'Preempted', 'Result', 'check_run', 'load_data', 'run_name', 'teacher_config', 'train']


Preempted = distributed.Stopped


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its name, its folder and the content of its summary.json."""

    name: str
    workdir: pathlib.Path
    summary: dict[str, Any]


def run_name(config: ConfigDict) -> str:
    """'student', 'kd', 'kcd', ...: the policy that a run stands for, or its method where there is none."""
    if config.policy.name != 'none':
        return config.policy.name
    return 'student' if config.method.name == 'none' else config.method.name


def teacher_config(config: ConfigDict) -> ConfigDict:
    """The config that trains the teacher: the student's recipe with the teacher's network, epochs and points."""
    from_teacher = config.teacher
    derived = config.copy_and_resolve_references()
    with derived.unlocked():
        derived.student.name = from_teacher.name
        derived.method, derived.policy = ConfigDict({'name': 'none'}), ConfigDict({'name': 'none'})
        derived.weights = ConfigDict({'gamma': 1.0, 'alpha': 0.0, 'beta': 0.0, 'temperature': 4.0})
        derived.logits, derived.survey = 'plain', False
        derived.epochs, derived.batch, derived.optim.lr = from_teacher.epochs, from_teacher.batch, from_teacher.lr
        derived.seed, derived.data.num_points = from_teacher.seed, from_teacher.num_points
        derived.compare, derived.trials = (), 1
        for key in ('variants', 'reference'):  # of an experiment, and nothing to a teacher
            if key in derived:
                del derived[key]
        derived.pair = ConfigDict({'methods': {}, 'weights': {}})  # one teacher serves many pairs
        derived.teacher = ConfigDict({'name': '', 'checkpoint': '', 'normalization': ''})
    return derived


def load_data(config: ConfigDict) -> data.Dataset:
    """The dataset of a config; the last ones stay loaded, so that the runs of an experiment share them."""
    settings = config.data
    if settings.stream.lower() not in data.STREAM:
        raise ValueError(f'data.stream is {settings.stream!r}; known: {", ".join(data.STREAM)}')
    loading = data.Loading(data.STREAM[settings.stream.lower()], sharding.device_memory(), tuple(config.augment.area))
    parts = (settings.validation, settings.seed, settings.num_points)
    return _load_data(settings.name, settings.dir or None, *parts, loading)


@functools.lru_cache(maxsize=2)
def _load_data(
    name: str, folder: str | None, validation: float, seed: int, num_points: int, loading: data.Loading
) -> data.Dataset:
    return data.load(name, folder, validation=validation, seed=seed, num_points=num_points, loading=loading)


def parts_of(config: ConfigDict, dataset: data.Dataset | None) -> data.Dataset:
    """The points of a config: those of `dataset`, if the caller brought one, else of the data set that it names."""
    if dataset is None:
        return load_data(config)
    return data.part(dataset, config.data.validation, config.data.seed, config.data.num_points)


def check_run(config: ConfigDict, mesh: Mesh) -> list[str]:
    """What `--check` prints of one run, and of its teacher's if that is to be trained; nothing is compiled.

    Raises:
      ValueError: one line: what was found, and what to do.
    """
    dataset = load_data(config)
    run = check.resolve(config, dataset, device_count=mesh.size)
    teacher_line = 'none'
    if run.teacher is not None:
        source = config.teacher.checkpoint
        teacher_line = f'{run.teacher.name}, from {source}'
        if source:
            if distributed.is_first():
                restore_teacher(config, dataset, source)
        else:
            first = teacher_config(config)
            check.resolve(first, load_data(first), device_count=mesh.size)
            teacher_line = (
                f'{run.teacher.name}, trained first: {first.epochs} epochs on {len(load_data(first).train):,} points'
            )
    return check.describe(run, config, dataset, device_count=mesh.size, teacher_line=teacher_line)


def restore_teacher(
    config: ConfigDict, dataset: data.Dataset, source: str | pathlib.Path
) -> tuple[Network, PyTree, dict]:
    """(network, variables, card) of the teacher in a file or in a run's folder."""
    return teacher.restore(
        config.teacher.name,
        source,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        dtype=check.DTYPES[config.dtype],
        normalization=config.teacher.normalization or None,
    )


def teacher_steps(config: ConfigDict, dataset: data.Dataset) -> int | None:
    """The steps that a run trains its teacher for; None where the teacher comes from a file."""
    if config.teacher.checkpoint:
        return None
    return config.teacher.epochs * ((config.teacher.num_points or len(dataset.train)) // config.teacher.batch)


def obtain_teacher(
    config: ConfigDict, dataset: data.Dataset, folder: pathlib.Path, mesh: Mesh, brought: data.Dataset | None = None
) -> tuple[Network, PyTree, dict]:
    """(network, variables, card) of the teacher: restored where there is one, else trained first into `folder`.

    It trains on the points of the caller's own data set, if there is one (`brought`). Of several processes only the
    first needs to see its file.
    """
    source = config.teacher.checkpoint
    if not source:
        train(teacher_config(config), folder, mesh=mesh, name='teacher', dataset=brought)
        source = folder
    network, variables, card = None, None, {}
    with distributed.together():
        if distributed.is_first():
            network, variables, card = restore_teacher(config, dataset, source)
    card = json.loads(distributed.from_first(json.dumps(card).encode()))
    if network is None:
        network, variables = teacher.like(card, dataset.image_shape, check.DTYPES[config.dtype])
    return network, distributed.arrays_from_first(variables), card


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    teacher_dir: str | pathlib.Path | None = None,
    mesh: Mesh | None = None,
    name: str = '',
    dataset: data.Dataset | None = None,
) -> Result:
    """Trains one student under one method and one policy.

    Args:
      config: of one run (`config.compare` and `config.trials` are for `experiment.run`).
      workdir: folder of the run; a run that was cut goes on, a finished one is read back.
      teacher_dir: where a teacher is kept that has to be trained first (default: `workdir`/teacher).
      mesh: devices; all of them by default. name: of the run, for lines and tables; default `run_name`.
      dataset: the caller's own (`data.from_objects`), of which the config's validation and num_points take their parts;
        default: the one that `config.data.name` names.

    Returns:
      The finished run.

    Raises:
      ValueError: bad input, in one line, before the first compilation.
      Preempted: SIGTERM on any process; the state is saved. Diverged: the loss is not finite.
    """
    workdir = pathlib.Path(workdir)
    name = name or run_name(config)
    mesh = mesh or sharding.make_mesh()
    start_of_run = time.perf_counter()

    # ---- everything that can be known before the first compilation ----
    devices = mesh.size
    with distributed.together():
        brought, dataset = dataset, parts_of(config, dataset)
        run = check.resolve(config, dataset, device_count=devices)
    points = {'points': zlib.crc32(np.ascontiguousarray(dataset.train.labels)), 'streamed': dataset.train.streamed}
    identity = {**config.to_dict(), **points}
    distributed.refuse_difference('configuration', json.loads(files.dumps(identity)), description.differences)

    with contextlib.ExitStack() as stack:
        with distributed.together():
            run_log = stack.enter_context(runlog.RunLog(workdir, config.to_dict()))

        def read_finished() -> dict[str, Any] | None:
            return runlog.finished(workdir) if teacher.is_whole(workdir / teacher.FILE) else None

        finished = distributed.first(read_finished)
        if finished is not None:
            return Result(name, workdir, finished)

        # ---- the teacher ----
        teacher_variables, card = None, None
        if run.teacher is not None:
            folder = pathlib.Path(teacher_dir) if teacher_dir else workdir / 'teacher'
            network, teacher_variables, card = obtain_teacher(config, dataset, folder, mesh, brought)
            start_of_run = time.perf_counter()  # the teacher's own training is another run
            run = check.resolve(
                config, dataset, device_count=devices, teacher=network, teacher_variables=teacher_variables
            )
        loop = Loop(config, run, dataset, teacher_variables, workdir, mesh, run_log)
        if card is not None:
            card['accuracy'] = loop.evaluate_teacher(run.teacher)
            warning = teacher.refuse_near_chance(card['accuracy'], dataset.num_classes, teacher_steps(config, dataset))
            held_out = f'{loop.evaluator.count:,} {"validation" if dataset.validation else "test"} images'
            run_log.say(f'teacher {card["network"]}: {100 * card["accuracy"]:.2f} % on {held_out}')
            if warning:
                run_log.say(warning)

        # ---- start or go on ----
        planned = check.cost(run, config, run.setup.num_points)
        run_log.say(f'{name}, seed {config.seed}: {check.cost_line(planned)}')
        with distributed.together():
            keeper = stack.enter_context(checkpoint.Checkpointer(workdir / 'checkpoints', keep=config.checkpoint.keep))
        current = loop.initial_state(None if dataset.train.streamed else dataset.train.images)
        restored = keeper.restore_latest(current, lacks=loop.lost_stage)
        if restored is not None:
            current, meta = restored
            with distributed.together():
                description.refuse_other(workdir, meta['run'], run_log.description)
                run_log.rewind(meta['log'], int(current.step))
            loop.seconds.update(meta['seconds'])
            loop.tally = ledger.Tally(**meta['tally'])
            loop.condensations, loop.evaluations = meta['condensations'], meta['evaluations']
            run_log.say(
                f'going on from step {int(current.step):,}, epoch {int(current.epoch) + 1} of {len(loop.epochs)}'
            )
        else:
            with distributed.together():
                run_log.rewind([], -1)
            current = loop.condense_before(current, 0)
        notice = stack.enter_context(distributed.Notice())
        timer = distributed.Timer(config.checkpoint.seconds)
        earlier_seconds = sum(loop.seconds.values()) if restored is not None else 0.0

        def save(current: TrainState) -> None:
            loop.refuse_divergence(current)
            meta = {
                'seconds': loop.seconds,
                'tally': dataclasses.asdict(loop.tally),
                'condensations': loop.condensations,
                'evaluations': loop.evaluations,
                'log': run_log.lines,
                'run': run_log.description,
            }
            with distributed.together():
                run_log.sync()
            keeper.save(int(current.step), current, json.loads(json.dumps(meta)))
            timer.restart()

        def between(current: TrainState) -> None:
            if notice.came():
                save(current)
                with distributed.together():
                    keeper.wait()
                raise notice.stopped(int(current.step))
            if timer.due():
                save(current)

        # ---- train ----
        remaining = sum(run.steps) * config.batch
        run_log.start_progress(remaining, done=int(current.step) * config.batch)
        for epoch in range(int(current.epoch), len(loop.epochs)):
            current = loop.train_epoch(current, epoch, between)
            current = loop.end_epoch(current)
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == len(loop.epochs):
                result = loop.evaluate(current, epoch + 1)
                run_log.note(f'epoch {epoch + 1}/{len(loop.epochs)}: accuracy {100 * result["accuracy"]:.2f} %')
            current = loop.condense_before(current, epoch + 1)
            between(current)
        save(current)
        with distributed.together():
            keeper.wait()

        # ---- what it leaves ----
        loop.split_scoring(current)
        last = loop.evaluations[-1]
        best = max(loop.evaluations, key=lambda entry: entry['accuracy'])
        by_class = loop.survey(current, dataset.train, dataset.num_classes) if config.survey else None
        variables = jax.device_get(student_variables(current))
        total = earlier_seconds + time.perf_counter() - start_of_run
        summary = {
            'name': name,
            'method': config.method.name,
            'policy': config.policy.name,
            'seed': config.seed,
            'dataset': dataset.name,
            'student': run.student.name,
            'num_points': run.setup.num_points,
            'num_classes': dataset.num_classes,
            'epochs': len(loop.epochs),
            'batch': config.batch,
            'parameters': state.parameter_count(variables),
            'evaluated_on': 'validation' if dataset.validation else 'test',
            'accuracy': last['accuracy'],
            'top5_accuracy': last.get('top5_accuracy'),
            'loss': last['loss'],
            'agreement': last.get('agreement'),
            'teacher_kl': last.get('teacher_kl'),
            'best_accuracy': best['accuracy'],
            'best_epoch': best['epoch'],
            'class_accuracy': by_class,
            'teacher': card,
            'cost': ledger.summary(loop.tally, run, config),
            'seconds': {**loop.seconds, 'total': total},
            'condensations': loop.condensations,
            'config': config.to_dict(),
            'command': environment.command(sys.argv),
            **environment.describe(),
        }
        kept = 'dataset accuracy best_accuracy num_classes seed epochs method policy config commit'.split()
        card = {'network': run.student.name, 'image_shape': dataset.image_shape, **{key: summary[key] for key in kept}}
        if distributed.is_first():
            teacher.save(workdir / teacher.FILE, variables, card)
        run_log.write_summary(summary)
        return Result(name, workdir, summary)
