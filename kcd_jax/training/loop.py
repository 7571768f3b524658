"""A run in progress: its compiled programs, an epoch of training, condensation, evaluation, and what each took.

`train.py` says when; here is what happens then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kcd_jax import data
from kcd_jax.contracts import Network, Phase, Plan, PyTree, TrainState, full_plan, stream
from kcd_jax.knowledge import large
from kcd_jax.runtime import files, runlog, sharding
from kcd_jax.training import check, feed, ledger, scoring, state, step, survey
from kcd_jax.training.evaluate import Evaluator

ACCELERATOR_CHUNK = 100  # steps a program: enough to hide the dispatch, few enough for a responsive SIGTERM


class Diverged(Exception):
    """The loss is not finite; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """`length` steps of a phase that are to be taken: from which state, over which points, at which learning rates."""

    current: TrainState
    order: jax.Array
    rates: dict[str, jax.Array]
    supply: step.Points | step.RawBatch
    phase: Phase
    length: int


class Loop:
    """A run in progress: its parts, its compiled programs, and what it has measured so far."""

    def __init__(
        self,
        config: ConfigDict,
        run: check.Run,
        dataset: data.Dataset,
        teacher_variables: PyTree | None,
        workdir: pathlib.Path,
        mesh: Mesh,
        run_log: runlog.RunLog,
    ):
        self.config, self.run, self.mesh, self.log, self.workdir = config, run, mesh, run_log, workdir
        self.batch = config.batch
        self.epochs = check.epochs_of(run.phases)
        self.seconds = dict.fromkeys(('compile', 'train', 'score', 'condense', 'evaluate'), 0.0)
        self.tally = ledger.Tally()
        self.condensations: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.programs: dict[tuple[str, int], Any] = {}
        self.step_costs: dict[str, ledger.StepCost] = {}

        replicated = sharding.replicated(mesh)
        if dataset.train.streamed:
            self.feed = feed.Streamed(
                dataset.train,
                run.setup.labels,
                config.batch,
                mesh,
                seed=config.seed,
                workers=config.data.workers,
                mixes=run.policy.mixes,
            )
        else:
            chunk = config.chunk or (1 if jax.default_backend() == 'cpu' else ACCELERATOR_CHUNK)
            self.feed = feed.Resident(dataset.train, run.setup.labels, chunk, mesh)
        self.teacher_variables = sharding.put(teacher_variables, replicated) if run.teacher is not None else {}
        self.spec = check.step_spec_of(run, config, functools.partial(sharding.constrain_batch, mesh))
        self.order_on_devices = jax.jit(step.epoch_order, out_shardings=replicated)
        self.evaluator = Evaluator(dataset.validation or dataset.test, config.eval_batch, mesh, config.data.workers)
        self.teacher_logits = None
        self.labels = sharding.put(run.setup.labels, replicated)
        num_classes = run.setup.num_classes
        self.by_class = jax.jit(lambda count, labels: jnp.zeros(num_classes, jnp.int32).at[labels].add(count))

    # -- state ----------------------------------------------------------------------------------------------------

    def initial_state(self, images: np.ndarray | None) -> TrainState:
        """The state before the first step, on the mesh.

        images: u8[num_points, H, W, 3], of which a policy may copy; None where they are streamed.
        """
        key = jax.random.PRNGKey(self.config.seed)
        fresh = state.create(
            key,
            student=self.run.student,
            method=self.run.method,
            policy=self.run.policy,
            phases=self.run.phases,
            setup=self.run.setup,
            images=images,
            metric_names=check.metric_names(self.run),
        )
        return sharding.put(fresh, sharding.state_shardings(self.mesh, fresh))

    # -- programs -------------------------------------------------------------------------------------------------

    def program(
        self,
        current: TrainState,
        order: jax.Array,
        rates: dict[str, jax.Array],
        supply: step.Points | step.RawBatch,
        phase: Phase,
        length: int,
    ) -> Callable[..., tuple[TrainState, jax.Array]]:
        """The compiled `length` steps of a phase; one compilation for the whole run, however the set shrinks."""
        if (phase.name, length) not in self.programs:
            start = time.perf_counter()
            traced = self.traced(Steps(current, order, rates, supply, phase, length))
            self.programs[phase.name, length] = traced.lower().compile()
            self.seconds['compile'] += time.perf_counter() - start
        return self.programs[phase.name, length]

    def traced(self, steps: Steps) -> jax.stages.Traced:
        """The program of `steps`, traced; what a step costs is known from then on."""
        phase, length = steps.phase, steps.length
        shardings = sharding.state_shardings(self.mesh, steps.current)
        function = functools.partial(step.run_chunk, spec=self.spec, phase=phase, length=length)
        jitted = jax.jit(function, donate_argnums=0, out_shardings=(shardings, sharding.replicated(self.mesh)))
        traced = jitted.trace(steps.current, steps.order, steps.rates, steps.supply, self.teacher_variables)
        self.step_costs[phase.name] = ledger.step_cost(self.run, self.config, phase, traced.jaxpr, length)
        return traced

    def take(self, steps: Steps) -> tuple[TrainState, jax.Array]:
        """The state after the steps and the last one's loss, by a program of this run alone; donates the old state."""
        program = self.program(steps.current, steps.order, steps.rates, steps.supply, steps.phase, steps.length)
        return program(steps.current, steps.order, steps.rates, steps.supply, self.teacher_variables)

    def rates(self, phase: Phase, phase_epoch: int) -> dict[str, jax.Array]:
        """{label: learning rate} of an epoch, on the devices, and the epoch itself for the methods' clocks."""
        values = {label: np.float32(optimiser.lr(phase_epoch)) for label, optimiser in phase.optimisers.items()}
        return sharding.put({**values, 'phase_epoch': np.int32(phase_epoch)}, sharding.replicated(self.mesh))

    def end_epoch(self, current: TrainState) -> TrainState:
        """The state with one more epoch finished."""
        counters = {'epoch': np.int32(int(current.epoch) + 1), 'done': np.int32(0)}
        return current.replace(**sharding.put(counters, sharding.replicated(self.mesh)))

    def split_scoring(self, current: TrainState) -> None:
        """Moves the scoring passes' share of the training seconds to 'score', for policies that score."""
        passes = self.tally.samples['scoring_forward'] // self.batch
        if not passes:
            return
        image_shape = self.run.setup.image_shape
        compiling, alone = scoring.seconds(
            self.run.student, student_variables(current), (self.batch, *image_shape), self.mesh
        )
        self.seconds['compile'] += compiling
        share = min(passes * alone, self.seconds['train'])
        self.seconds['score'], self.seconds['train'] = share, self.seconds['train'] - share

    # -- parts of an epoch ----------------------------------------------------------------------------------------

    @functools.cached_property
    def full(self) -> Plan:
        """Every point, for phases that record nothing; few runs have one, and a plan of many points is large."""
        return sharding.put(full_plan(self.run.setup.num_points, self.run.setup.rows), sharding.replicated(self.mesh))

    def order(self, key: jax.Array, plan: Plan, epoch: jax.Array) -> jax.Array:
        """`step.epoch_order` on every device."""
        if large.suits(plan):
            return sharding.put(step.epoch_order_on_host(key, plan, epoch), sharding.replicated(self.mesh))
        return self.order_on_devices(key, plan, epoch)

    def recorded(self, epoch: int) -> int:
        """Recording epochs among the first `epoch` ones."""
        return sum(phase.record for phase, _ in self.epochs[:epoch])

    def condense_before(self, current: TrainState, epoch: int) -> TrainState:
        """Replans before epoch `epoch` (from 0) when the policy asks for it."""
        policy = self.run.policy
        if epoch >= len(self.epochs) or not self.epochs[epoch][0].record:
            return current
        recorded, total = self.recorded(epoch), self.recorded(len(self.epochs))
        if not policy.when(recorded, total):
            return current
        start = time.perf_counter()
        before = current.plan
        was_kept = _kept(before)
        table = current.table if large.suits(before) else sharding.replicate(self.mesh, current.table)
        plan, policy_state = policy.replan(
            stream(current.key, 'replan', recorded), table, before, current.policy_state, recorded, total
        )
        # New buffers: the state is donated, and a policy may return what lies in the table or in another leaf.
        fresh = state.strong({'plan': plan, 'policy_state': policy_state})
        current = current.replace(**sharding.put(fresh, sharding.replicated(self.mesh)))
        del plan, policy_state, fresh  # a host's plan of 100 million points is 1.6 GB
        jax.block_until_ready(current.plan)
        now_kept = _kept(current.plan)
        self.seconds['condense'] += time.perf_counter() - start
        self.tell_condensation(current, epoch, was_kept, now_kept)
        return current

    def tell_condensation(self, current: TrainState, epoch: int, was_kept: np.ndarray, now_kept: np.ndarray) -> None:
        """Logs a condensation, writes its stage file, and says it in one line (when there are not too many)."""
        plan, num_points = jax.device_get(current.plan), self.run.setup.num_points
        number = len(self.condensations) + 1
        recording = self.recorded(len(self.epochs))
        total = sum(self.run.policy.when(finished, recording) for finished in range(recording))
        entry = {
            'number': number,
            'of': total,
            'epoch': epoch,
            'kept': int(plan.num_keep),
            'augmented': int(np.count_nonzero(plan.epsilon[:num_points])),
            'readmitted': int(np.count_nonzero(now_kept > was_kept)),
        }
        self.condensations.append(entry)
        self.log.record({'kind': 'condensation', 'step': int(current.step), **entry})
        table = sharding.to_host(current.table, copy=False)
        self.log.write_arrays(
            f'knowledge/stage_{number}.npz',
            order=plan.order,
            num_keep=plan.num_keep,
            partner=plan.partner,
            epsilon=plan.epsilon,
            value=table.value,
            count=table.count,
            num_points=np.int32(num_points),
        )
        if total <= 60 or number % 10 == 0:
            self.log.say(
                f'condensation {number}/{total} after epoch {epoch}: kept {entry["kept"]:,} of {num_points:,}, '
                f'{entry["augmented"]:,} augmented, {entry["readmitted"]:,} re-admitted'
            )

    def lost_stage(self, meta: Mapping[str, Any]) -> str:
        """The first stage file of a checkpoint's condensations that cannot be read, or ''."""
        paths = (self.workdir / 'knowledge' / f'stage_{entry["number"]}.npz' for entry in meta['condensations'])
        return next((f'{path.parent.name}/{path.name}' for path in paths if not files.is_whole_npz(path)), '')

    def evaluate(self, current: TrainState, epoch: int) -> dict[str, float]:
        """{'accuracy', 'loss', and with a teacher 'agreement', 'teacher_kl'} after `epoch` epochs."""
        with self.evaluating():
            result, _ = self.evaluator('student', self.run.student, student_variables(current), self.teacher_logits)
        self.evaluations.append({'epoch': epoch, **result})
        self.log.record({'kind': 'eval', 'step': int(current.step), 'epoch': epoch, **result})
        return result

    def evaluate_teacher(self, network: Network) -> float:
        """The teacher's accuracy; its logits are kept, to compare the student's with."""
        with self.evaluating():
            result, self.teacher_logits = self.evaluator('teacher', network, self.teacher_variables)
        return result['accuracy']

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Counts the time inside as evaluation, less what the evaluator's programs took to compile."""
        start, compiled = time.perf_counter(), self.evaluator.compile_seconds
        yield
        compile_seconds = self.evaluator.compile_seconds - compiled
        self.seconds['compile'] += compile_seconds
        self.seconds['evaluate'] += time.perf_counter() - start - compile_seconds

    def survey(self, current: TrainState, train: data.Split, num_classes: int) -> list[float | None]:
        """Writes knowledge/points.npz, what is known of every point at the end; returns the accuracy of each class.

        Both networks see the training images as they are, in eval mode, by the programs that evaluate them.
        """
        variables, network = student_variables(current), self.run.student
        with self.evaluating():
            _, logits = self.evaluator('student', network, variables, self.teacher_logits)
            entropy, embed = self.evaluator.read('student', network, variables, train, self.teacher_logits)
            of_teacher = None
            if self.run.teacher is not None:
                of_teacher, _ = self.evaluator.read('teacher', self.run.teacher, self.teacher_variables, train, None)
        arrays = survey.of_points(entropy, embed, of_teacher, train.labels, num_classes)
        logits = self.evaluator.on_host(logits)
        if self.teacher_logits is not None:
            wanted = survey.correlation(self.evaluator.on_host(self.teacher_logits))
            arrays['correlation_difference'] = (wanted - survey.correlation(logits)).astype(np.float32)
        table = sharding.to_host(current.table)
        visits = {'value': table.value[: len(train)], 'count': table.count[: len(train)]}
        self.log.write_arrays('knowledge/points.npz', labels=train.labels, **visits, **arrays)
        return survey.class_accuracy(logits, self.evaluator.labels, num_classes)

    def refuse_divergence(self, current: TrainState) -> None:
        """Raises Diverged, naming the step, once a loss was not finite."""
        bad = int(current.bad_step)
        if bad >= 0:
            raise Diverged(
                f'the loss of step {bad + 1} is not finite; the last good checkpoint under {self.workdir} is kept. '
                'Lower optim.lr, or train in float32'
            )

    def train_epoch(self, current: TrainState, epoch: int, between: Callable[[TrainState], None]) -> TrainState:
        """The rest of epoch `epoch` (from 0), from step `done` on; `between(state)` is called between chunks."""
        phase, phase_epoch = self.epochs[epoch]
        plan = current.plan if phase.record else self.full
        num_keep = int(plan.num_keep)
        steps, done = num_keep // self.batch, int(current.done)
        order = self.order(current.key, plan, jnp.int32(epoch))
        rates = self.rates(phase, phase_epoch)
        started, before = time.perf_counter(), self.seconds['compile']
        elsewhere = 0.0
        beats: list[jax.Array] = []
        with contextlib.closing(self.feed.epoch(order, plan, epoch, done, steps)) as supplies:
            for length, supply in supplies:
                wanted = Steps(current, order, rates, supply, phase, length)
                current, loss = self.take(wanted)
                done += length
                self.tally.add(self.step_costs[phase.name], length)
                beats.append(loss)
                if len(beats) > 1:  # one chunk late, so that the device never waits for the host
                    value = float(beats.pop(0))
                    self.log.progress(length * self.batch, loss=value)
                    if not np.isfinite(value):
                        self.refuse_divergence(current)
                if done < steps:  # what lies at the end of an epoch belongs after its evaluation and condensation
                    pause = time.perf_counter()
                    between(current)
                    elsewhere += time.perf_counter() - pause
        jax.block_until_ready(current.step)
        spent = time.perf_counter() - started - elsewhere - (self.seconds['compile'] - before)
        self.seconds['train'] += spent
        self.tally.sizes.append(num_keep)
        self.refuse_divergence(current)
        sums = jax.device_get(current.metrics)
        means = {name: float(total / count) for name, (total, count) in sums.items() if count > 0}
        self.log.record(
            {
                'kind': 'train',
                'step': int(current.step),
                'epoch': epoch + 1,
                'phase': phase.name,
                'lr': _main_rate(phase, phase_epoch),
                'samples': steps * self.batch,
                'kept': num_keep,
                **means,
                'time': {'seconds': spent},
            }
        )
        if phase.record:  # all visits so far, by class: what a policy chooses (UNIX Fig. 5, 6)
            visits = sharding.to_host(self.by_class(current.table.count, self.labels))
            self.log.record(
                {'kind': 'visits', 'step': int(current.step), 'epoch': epoch + 1, 'by_class': visits.tolist()}
            )
        return current


def student_variables(current: TrainState) -> PyTree:
    """The student's variables, as its network takes them."""
    return {'params': current.params['student'], **current.model_state}


def _main_rate(phase: Phase, phase_epoch: int) -> float:
    """The learning rate that is logged: the main optimiser's, or the first one's of a phase without it."""
    label = 'main' if 'main' in phase.optimisers else next(iter(phase.optimisers))
    return phase.optimisers[label].lr(phase_epoch)


def _kept(plan: Plan) -> np.ndarray:
    """bool[N] by point: whether it is trained on."""
    order, num_keep = jax.device_get((plan.order, plan.num_keep))
    kept = np.zeros(len(order), bool)
    kept[order[:num_keep]] = True
    return kept
