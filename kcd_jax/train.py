"""The one loop: when to condense, evaluate, save and log. Every run of every method and policy passes through here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kcd_jax import check, checkpoint, cost, data, log, sharding, state, step, teacher
from kcd_jax.spec import Phase, Policy, PyTree, TrainState, full_plan, stream

ACCELERATOR_CHUNK = 100  # steps a program: enough to hide the dispatch, few enough for a responsive SIGTERM


class Preempted(Exception):
    """SIGTERM came: the state is saved, and the same command goes on from it."""


class Diverged(Exception):
    """The loss is not finite; the last good checkpoint is kept."""


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
        derived.logits = 'plain'
        derived.epochs, derived.batch, derived.optim.lr = from_teacher.epochs, from_teacher.batch, from_teacher.lr
        derived.seed, derived.data.num_points = from_teacher.seed, from_teacher.num_points
        derived.compare, derived.trials = (), 1
        derived.teacher = ConfigDict({'name': '', 'checkpoint': ''})
    return derived


def load_data(config: ConfigDict) -> data.Dataset:
    """The dataset of a config; the last ones stay loaded, so that the runs of an experiment share them."""
    settings = config.data
    return _load_data(settings.name, settings.dir or None, settings.validation, settings.seed, settings.num_points)


@functools.lru_cache(maxsize=2)
def _load_data(name: str, folder: str | None, validation: float, seed: int, num_points: int) -> data.Dataset:
    return data.load(name, folder, validation=validation, seed=seed, num_points=num_points)


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
            restore_teacher(config, dataset, source)
        else:
            first = teacher_config(config)
            check.resolve(first, load_data(first), device_count=mesh.size)
            teacher_line = f'{run.teacher.name}, trained first: {first.epochs} epochs on {len(load_data(first).train):,} points'
    return check.describe(run, config, dataset, device_count=mesh.size, teacher_line=teacher_line)


def restore_teacher(config: ConfigDict, dataset: data.Dataset, source: str | pathlib.Path) -> tuple[Any, PyTree, dict]:
    """(network, variables, card) of the teacher in a file or in a run's folder."""
    return teacher.restore(
        config.teacher.name,
        source,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        dtype=check.DTYPES[config.dtype],
    )


def obtain_teacher(config: ConfigDict, dataset: data.Dataset, folder: pathlib.Path, mesh: Mesh) -> tuple[Any, PyTree, dict]:
    """(network, variables, card) of the teacher: restored where there is one, else trained first into `folder`."""
    source = config.teacher.checkpoint
    if not source:
        train(teacher_config(config), folder, mesh=mesh, name='teacher')
        source = folder
    return restore_teacher(config, dataset, source)


# ------------------------------------------------------------------------------------------------------- evaluation


class Evaluator:
    """Accuracy of a network on the held-out images, every image counted once, in one compiled step."""

    def __init__(self, split: data.Split, batch: int, mesh: Mesh):
        batch = -(-batch // mesh.size) * mesh.size
        self.count = len(split.labels)
        self.batches = []
        for start in range(0, self.count, batch):
            images, labels = split.images[start : start + batch], split.labels[start : start + batch]
            valid = np.arange(batch) < len(labels)
            padding = batch - len(labels)
            arrays = (
                np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0))),
                np.pad(labels.astype(np.int32), (0, padding)),
                valid,
            )
            self.batches.append(sharding.put(arrays, sharding.batch(mesh)))
        self.compiled: dict[str, Any] = {}
        self.compile_seconds = 0.0

    def __call__(self, name: str, network, variables, teacher_logits=None) -> tuple[dict[str, float], list[jax.Array]]:
        """({'accuracy', 'loss', ...}, logits of each batch) of `network`; `name` keys the compiled program."""
        if name not in self.compiled:
            start = time.perf_counter()
            logits = None if teacher_logits is None else teacher_logits[0]
            jitted = jax.jit(functools.partial(step.eval_step, network=network))
            self.compiled[name] = jitted.lower(variables, *self.batches[0], logits).compile()
            self.compile_seconds += time.perf_counter() - start
        sums, all_logits = [], []
        for number, arrays in enumerate(self.batches):
            part, logits = self.compiled[name](variables, *arrays, None if teacher_logits is None else teacher_logits[number])
            sums.append(part)
            all_logits.append(logits)
        sums = jax.device_get(sums)
        means = {key: float(sum(float(part[key]) for part in sums) / self.count) for key in sums[0]}
        renamed = {'correct': 'accuracy', 'agree': 'agreement'}
        return {renamed.get(key, key): value for key, value in means.items()}, all_logits


# -------------------------------------------------------------------------------------------------------- the loop


class Loop:
    """A run in progress: its parts, its compiled programs, and what it has measured so far."""

    def __init__(self, config, run: check.Run, dataset, teacher_variables, workdir, mesh, run_log):
        self.config, self.run, self.mesh, self.log, self.workdir = config, run, mesh, run_log, workdir
        self.batch = config.batch
        self.epochs = check.epochs_of(run.phases)
        self.seconds = dict.fromkeys(('compile', 'train', 'condense', 'evaluate'), 0.0)
        self.condensations: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.programs: dict[tuple[str, int], Any] = {}
        on_cpu = jax.default_backend() == 'cpu'
        self.chunk = config.chunk or (1 if on_cpu else ACCELERATOR_CHUNK)

        rows = run.setup.rows
        images = np.zeros((rows, *dataset.image_shape), np.uint8)
        images[: run.setup.num_points] = dataset.train.images
        replicated = sharding.replicated(mesh)
        self.points = sharding.put(step.Points(images, run.setup.labels), replicated)
        self.teacher_variables = sharding.put(teacher_variables, replicated) if run.teacher is not None else {}
        self.recipe = step.Recipe(
            student=run.student,
            teacher=run.teacher,
            method=run.method,
            policy=run.policy,
            weights=run.weights,
            batch=config.batch,
            crop=config.augment.crop,
            flip=config.augment.flip,
            logits=config.logits,
            constrain=functools.partial(sharding.constrain_batch, mesh),
        )
        self.order = jax.jit(step.epoch_order, out_shardings=replicated)
        self.full = sharding.put(full_plan(run.setup.num_points, rows), replicated)
        self.evaluator = Evaluator(dataset.validation or dataset.test, config.eval_batch, mesh)
        self.teacher_logits = None

    # -- state ----------------------------------------------------------------------------------------------------

    def initial_state(self, images: np.ndarray) -> TrainState:
        key = jax.random.PRNGKey(self.config.seed)
        fresh = state.create(
            key,
            student=self.run.student,
            method=self.run.method,
            policy=self.run.policy,
            phases=self.run.phases,
            setup=self.run.setup,
            images=images,
            metric_names=self.metric_names(),
        )
        return sharding.put(fresh, sharding.state_shardings(self.mesh, fresh))

    def metric_names(self) -> tuple[str, ...]:
        """The names of the method's own metrics, from its abstract outputs."""
        setup = self.run.setup
        views = self.run.method.num_views

        def many(shape):
            return jax.ShapeDtypeStruct((shape.shape[0] * views, *shape.shape[1:]), shape.dtype)

        rows = self.run.rows
        student, teacher = jax.tree.map(many, setup.student), jax.tree.map(many, setup.teacher)
        if rows != setup.batch:
            student, teacher = (
                jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), tree) for tree in (student, teacher)
            )
        f32, i32 = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (jnp.float32, jnp.int32))
        image = jax.ShapeDtypeStruct((rows * views, *setup.image_shape), jnp.float32)
        batch = step.Batch(i32, image, i32, i32, f32, f32)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
        params, method_state = jax.eval_shape(lambda k: self.run.method.init(k, setup), key)
        found: list[str] = []
        for phase in self.run.phases:
            for update in phase.updates:
                out = jax.eval_shape(
                    update.loss, params, method_state, student, teacher, batch, step.Clock(scalar, scalar, scalar), key
                )
                found += [name for name in out.metrics if name not in found and name not in state.METRICS]
        return tuple(found)

    # -- programs -------------------------------------------------------------------------------------------------

    def program(self, current: TrainState, order, rates, phase: Phase, length: int):
        """The compiled `length` steps of a phase; one compilation for the whole run, however the set shrinks."""
        if (phase.name, length) not in self.programs:
            start = time.perf_counter()
            shardings = sharding.state_shardings(self.mesh, current)
            function = functools.partial(step.run_chunk, recipe=self.recipe, phase=phase, length=length)
            jitted = jax.jit(function, donate_argnums=0, out_shardings=(shardings, sharding.replicated(self.mesh)))
            lowered = jitted.lower(current, order, rates, self.points, self.teacher_variables)
            self.programs[phase.name, length] = lowered.compile()
            self.seconds['compile'] += time.perf_counter() - start
        return self.programs[phase.name, length]

    def rates(self, phase: Phase, phase_epoch: int) -> dict[str, jax.Array]:
        values = {label: np.float32(optimiser.lr(phase_epoch)) for label, optimiser in phase.optimisers.items()}
        return sharding.put({**values, 'phase_epoch': np.int32(phase_epoch)}, sharding.replicated(self.mesh))

    def end_epoch(self, current: TrainState) -> TrainState:
        """The state with one more epoch finished."""
        counters = {'epoch': np.int32(int(current.epoch) + 1), 'done': np.int32(0)}
        return current.replace(**sharding.put(counters, sharding.replicated(self.mesh)))

    # -- parts of an epoch ----------------------------------------------------------------------------------------

    def recorded(self, epoch: int) -> int:
        """Recording epochs among the first `epoch` ones."""
        return sum(phase.record for phase, _ in self.epochs[:epoch])

    def condense_before(self, current: TrainState, epoch: int) -> TrainState:
        """Replans before epoch `epoch` (from 0) when the policy asks for it."""
        policy: Policy = self.run.policy
        if epoch >= len(self.epochs) or not self.epochs[epoch][0].record:
            return current
        recorded, total = self.recorded(epoch), self.recorded(len(self.epochs))
        if not policy.when(recorded, total):
            return current
        start = time.perf_counter()
        before = current.plan
        was_kept = _kept(before)
        table = sharding.put_like(current.table, sharding.replicated(self.mesh))
        plan, policy_state = policy.replan(
            stream(current.key, 'replan', recorded), table, before, current.policy_state, recorded, total
        )
        fresh = state.strong(current.replace(plan=plan, policy_state=policy_state))
        current = sharding.put_like(fresh, sharding.state_shardings(self.mesh, fresh))
        jax.block_until_ready(current.plan)
        now_kept = _kept(current.plan)
        self.seconds['condense'] += time.perf_counter() - start
        self.tell_condensation(current, recorded, was_kept, now_kept)
        return current

    def tell_condensation(self, current: TrainState, recorded: int, was_kept: np.ndarray, now_kept: np.ndarray) -> None:
        plan, num_points = jax.device_get(current.plan), self.run.setup.num_points
        number = len(self.condensations) + 1
        total = sum(self.run.policy.when(e, self.recorded(len(self.epochs))) for e in range(self.recorded(len(self.epochs))))
        entry = {
            'number': number,
            'of': total,
            'epoch': recorded,
            'kept': int(plan.num_keep),
            'augmented': int(np.sum(plan.epsilon[:num_points] > 0)),
            'readmitted': int(np.sum(now_kept & ~was_kept)),
        }
        self.condensations.append(entry)
        self.log.record({'kind': 'condensation', 'step': int(current.step), **entry})
        folder = self.workdir / 'knowledge'
        table = jax.device_get(sharding.put_like(current.table, sharding.replicated(self.mesh)))
        log.write_npz(
            folder / f'stage_{number}.npz',
            order=plan.order, num_keep=plan.num_keep, partner=plan.partner, epsilon=plan.epsilon,
            value=table.value, count=table.count, num_points=np.int32(num_points),
        )
        if total <= 60 or number % 10 == 0:
            self.log.say(
                f'condensation {number}/{total} after epoch {recorded}: kept {entry["kept"]:,} of {num_points:,}, '
                f'{entry["augmented"]:,} augmented, {entry["readmitted"]:,} re-admitted'
            )

    def evaluate(self, current: TrainState, epoch: int) -> dict[str, float]:
        start, compiled = time.perf_counter(), self.evaluator.compile_seconds
        variables = {'params': current.params['student'], **current.model_state}
        result, _ = self.evaluator('student', self.run.student, variables, self.teacher_logits)
        compile_seconds = self.evaluator.compile_seconds - compiled
        self.seconds['compile'] += compile_seconds
        self.seconds['evaluate'] += time.perf_counter() - start - compile_seconds
        self.evaluations.append({'epoch': epoch, **result})
        self.log.record({'kind': 'eval', 'step': int(current.step), 'epoch': epoch, **result})
        return result

    def evaluate_teacher(self, network) -> float:
        start, compiled = time.perf_counter(), self.evaluator.compile_seconds
        result, self.teacher_logits = self.evaluator('teacher', network, self.teacher_variables)
        compile_seconds = self.evaluator.compile_seconds - compiled
        self.seconds['compile'] += compile_seconds
        self.seconds['evaluate'] += time.perf_counter() - start - compile_seconds
        return result['accuracy']

    def refuse_divergence(self, current: TrainState) -> None:
        bad = int(current.bad_step)
        if bad >= 0:
            raise Diverged(
                f'the loss of step {bad + 1} is not finite; the last good checkpoint under {self.workdir} is kept. '
                'Lower optim.lr, or train in float32'
            )

    def train_epoch(self, current: TrainState, epoch: int, between) -> TrainState:
        """The rest of epoch `epoch` (from 0), from step `done` on; `between(state)` is called after each chunk."""
        phase, phase_epoch = self.epochs[epoch]
        plan = current.plan if phase.record else self.full
        num_keep = int(plan.num_keep)
        steps, done = num_keep // self.batch, int(current.done)
        order = self.order(current.key, plan, jnp.int32(epoch))
        rates = self.rates(phase, phase_epoch)
        started, before = time.perf_counter(), self.seconds['compile']
        elsewhere = 0.0
        beats: list[jax.Array] = []
        while done < steps:
            length = self.chunk if steps - done >= self.chunk else 1
            program = self.program(current, order, rates, phase, length)
            current, loss = program(current, order, rates, self.points, self.teacher_variables)
            done += length
            beats.append(loss)
            if len(beats) > 1:  # one chunk late, so that the device never waits for the host
                value = float(beats.pop(0))
                self.log.progress(length * self.batch, loss=value)
                if not np.isfinite(value):
                    self.refuse_divergence(current)
            pause = time.perf_counter()
            between(current)
            elsewhere += time.perf_counter() - pause
        jax.block_until_ready(current.step)
        spent = time.perf_counter() - started - elsewhere - (self.seconds['compile'] - before)
        self.seconds['train'] += spent
        self.refuse_divergence(current)
        sums = jax.device_get(current.metrics)
        means = {name: float(total / count) for name, (total, count) in sums.items() if count > 0}
        self.log.record({
            'kind': 'train', 'step': int(current.step), 'epoch': epoch + 1, 'phase': phase.name,
            'lr': next(iter(self.rates_on_host(phase, phase_epoch).values())), 'samples': steps * self.batch,
            'kept': num_keep, **means, 'time': {'seconds': spent},
        })
        return current

    @staticmethod
    def rates_on_host(phase: Phase, phase_epoch: int) -> dict[str, float]:
        order = sorted(phase.optimisers, key=lambda label: label != 'main')
        return {label: phase.optimisers[label].lr(phase_epoch) for label in order}


def _kept(plan) -> np.ndarray:
    order, num_keep = jax.device_get((plan.order, plan.num_keep))
    kept = np.zeros(len(order), bool)
    kept[order[:num_keep]] = True
    return kept


@contextlib.contextmanager
def _listening_for_sigterm():
    """Yields a list that SIGTERM fills; the previous handler comes back afterwards. Only the main thread may listen."""
    heard: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    except ValueError:
        yield heard
        return
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, previous)


def train(config: ConfigDict, workdir: str | pathlib.Path, *, teacher_dir: str | pathlib.Path | None = None,
          mesh: Mesh | None = None, name: str = '') -> Result:
    """Trains one student under one method and one policy.

    Args:
      config: of one run (`config.compare` and `config.trials` are for `experiment.run`).
      workdir: folder of the run; a run that was cut goes on, a finished one is read back.
      teacher_dir: where a teacher is kept that has to be trained first (default: `workdir`/teacher).
      mesh: devices; all of them by default. name: of the run, for lines and tables; default `run_name`.

    Returns:
      The finished run.

    Raises:
      ValueError: bad input, in one line, before the first compilation.
      Preempted: SIGTERM; the state is saved. Diverged: the loss is not finite.
    """
    workdir = pathlib.Path(workdir)
    name = name or run_name(config)
    mesh = mesh or sharding.make_mesh()
    start_of_run = time.perf_counter()

    # ---- everything that can be known before the first compilation ----
    dataset = load_data(config)
    devices = mesh.size
    run = check.resolve(config, dataset, device_count=devices)

    with contextlib.ExitStack() as stack:
        run_log = stack.enter_context(log.RunLog(workdir, config.to_dict()))
        finished = log.read_summary(workdir)
        if finished is not None:
            return Result(name, workdir, finished)

        # ---- the teacher ----
        teacher_variables, card = None, None
        if run.teacher is not None:
            folder = pathlib.Path(teacher_dir) if teacher_dir else workdir / 'teacher'
            network, teacher_variables, card = obtain_teacher(config, dataset, folder, mesh)
            run = check.resolve(
                config, dataset, device_count=devices, teacher=network, teacher_variables=teacher_variables
            )
        loop = Loop(config, run, dataset, teacher_variables, workdir, mesh, run_log)
        if card is not None:
            card['accuracy'] = loop.evaluate_teacher(run.teacher)
            teacher.refuse_near_chance(card['accuracy'], dataset.num_classes)
            run_log.say(f'teacher {card["network"]}: {100 * card["accuracy"]:.2f} % on {len(dataset.test.labels):,} test images')

        # ---- start or go on ----
        total_cost = check.cost(run, config, run.setup.num_points)
        run_log.say(f'{name}, seed {config.seed}: {check.cost_line(total_cost)}')
        keeper = stack.enter_context(checkpoint.Checkpointer(workdir / 'checkpoints', keep=config.checkpoint.keep))
        current = loop.initial_state(dataset.train.images)
        restored = keeper.restore_latest(current)
        if restored is not None:
            current, meta = restored
            loop.seconds.update(meta['seconds'])
            loop.condensations, loop.evaluations = meta['condensations'], meta['evaluations']
            run_log.cut_after(int(current.step))
            run_log.say(f'going on from step {int(current.step):,}, epoch {int(current.epoch) + 1} of {len(loop.epochs)}')
        else:
            run_log.cut_after(-1)
            current = loop.condense_before(current, 0)
        heard = stack.enter_context(_listening_for_sigterm())
        last_save = time.monotonic()
        earlier_seconds = sum(loop.seconds.values()) if restored is not None else 0.0

        def save(current: TrainState) -> None:
            nonlocal last_save
            loop.refuse_divergence(current)
            meta = {'seconds': loop.seconds, 'condensations': loop.condensations, 'evaluations': loop.evaluations}
            keeper.save(int(current.step), current, json.loads(json.dumps(meta)))
            last_save = time.monotonic()

        def between(current: TrainState) -> None:
            if heard:
                save(current)
                keeper.wait()
                raise Preempted(f'SIGTERM: saved step {int(current.step):,}; the same command goes on from there')
            if time.monotonic() - last_save > config.checkpoint.seconds:
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
        keeper.wait()

        # ---- what it leaves ----
        last = loop.evaluations[-1]
        best = max(loop.evaluations, key=lambda entry: entry['accuracy'])
        variables = jax.device_get({'params': current.params['student'], **current.model_state})
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
            'loss': last['loss'],
            'agreement': last.get('agreement'),
            'teacher_kl': last.get('teacher_kl'),
            'best_accuracy': best['accuracy'],
            'best_epoch': best['epoch'],
            'teacher': card,
            'cost': total_cost,
            'seconds': {**loop.seconds, 'total': total},
            'condensations': loop.condensations,
            'config': config.to_dict(),
            'command': ' '.join(sys.argv),
            **log.environment(),
        }
        kept = ('dataset', 'accuracy', 'best_accuracy', 'num_classes', 'seed', 'epochs', 'method', 'policy', 'config', 'commit')
        card = {'network': run.student.name, 'image_shape': dataset.image_shape, **{key: summary[key] for key in kept}}
        teacher.save(workdir / teacher.FILE, variables, card)
        run_log.write_summary(summary)
        return Result(name, workdir, summary)
