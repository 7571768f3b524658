"""The work of a run in progress: its compiled programs, an epoch of training, condensation and evaluation.

`loop.train` decides when; here is what happens then, and how long it took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import Phase, Plan, PyTree, TrainState, full_plan, run_key, stream
from kcd_jax.runtime import sharding
from kcd_jax.teachers import host as hosts
from kcd_jax.training import feed, ledger, scoring, state, step
from kcd_jax.training.evaluate import Evaluator
from kcd_jax.training.probe import Probe
from kcd_jax.training.program import Program
from kcd_jax.training.run import Run
from kcd_jax.training.teacher_clean import CleanImages
from kcd_jax.training.teacher_pass import TeacherFeed, TeacherPass, no_rows

OF_TEACHER = ('agreement', 'teacher_kl', 'raw_agreement', 'raw_teacher_kl')  # what an evaluation says without labels
ACCELERATOR_CHUNK = 100  # steps per program: enough to hide the dispatch, few enough to react to SIGTERM


class Diverged(Exception):
    """The loss is not finite; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """What an epoch did: points of the plan and those trained on (full batches), rate of the 'main' update, means.

    `seconds` are without compilation and checkpoints.
    """

    phase: Phase
    kept: int
    samples: int
    lr: float
    means: dict[str, float]
    seconds: float


class Trainer:
    """The programs of one run on one mesh.

    Attributes:
      seconds: {'compile', 'train', 'score', 'condense', 'evaluate': seconds so far}.
      tally: what the run has spent so far.
      teacher_rows: {'computed', 'served', 'mixed', 'padding': rows so far} of a teacher that answers before the steps,
        or scores the points, in this process; else empty.
    """

    def __init__(self, run: Run, teacher_variables: PyTree | None, mesh: Mesh):
        self.run, self.mesh = run, mesh
        self.seconds = dict.fromkeys(('compile', 'train', 'score', 'condense', 'evaluate'), 0.0)
        self.tally = ledger.Tally()
        self._programs: dict[tuple[str, int], Program] = {}
        self._step_costs: dict[str, ledger.StepCost] = {}

        recipe, dataset, setup = run.recipe, run.data, run.setup
        replicated = sharding.replicated(mesh)
        if dataset.train.streamed:
            self.feed = feed.Streamed(
                dataset.train,
                setup.labels,
                recipe.batch,
                mesh,
                seed=run.view_seed,
                workers=recipe.workers,
                mixes=run.policy.mixes,
                fixed=recipe.augment.views,
                every=run.mixing is not None,
            )
        else:
            chunk = recipe.chunk or (1 if jax.default_backend() == 'cpu' else ACCELERATOR_CHUNK)
            self.feed = feed.Resident(dataset.train, setup.labels, chunk, mesh)
        uses_teacher = run.teacher_network is not None
        self.teacher_variables = sharding.put(teacher_variables, replicated) if uses_teacher else {}
        self._answers: TeacherFeed | None = None
        self._spec = run.step_spec(functools.partial(sharding.constrain_batch, mesh))
        before = bool(run.needs) and not run.teacher_in_step
        self.teacher_rows = no_rows() if before or run.scores_points else {}
        here = sharding.on_local(self.teacher_variables, mesh), sharding.local(mesh)
        self.clean = CleanImages(run, *here, self.seconds)
        if before:
            self._answers = TeacherFeed(TeacherPass(run, *here, self.teacher_rows, self.seconds), self.feed, mesh)
            self._spec = dataclasses.replace(self._spec, teacher=None)
        self._order = Program(step.epoch_order, self.seconds, out_shardings=replicated)
        partners = functools.partial(step.partners, spec=self._spec)
        self._partners = Program(partners, self.seconds, out_shardings=replicated)
        self.evaluator = Evaluator(dataset.held_out, recipe.eval_batch, mesh, recipe.workers, self.seconds)
        self._teacher_logits = None
        self._labels = sharding.put(setup.labels, replicated)
        num_classes = setup.num_classes
        self._by_class = jax.jit(lambda count, labels: jnp.zeros(num_classes, jnp.int32).at[labels].add(count))

    def initial_state(self) -> TrainState:
        """The state before the first step, on the mesh."""
        run = self.run
        fresh = state.create(
            run_key(run.seed),
            student=run.student_network,
            method=run.method,
            policy=run.policy,
            phases=run.phases,
            setup=run.setup,
            images=None if run.data.train.streamed else run.data.train.images,
            metric_names=state.metric_names(run),
            averaged=run.recipe.ema > 0,
        )
        return sharding.put(fresh, sharding.state_shardings(self.mesh, fresh))

    # -- training -------------------------------------------------------------------------------------------------

    def train_epoch(
        self, current: TrainState, epoch: int, between: Callable[[TrainState], None], progress: Callable[..., None]
    ) -> tuple[TrainState, EpochReport]:
        """The rest of epoch `epoch` (from 0), from step `current.done` on.

        Args:
          current: the state; it is donated.
          epoch: counted from 0.
          between: called with the state between two chunks of steps.
          progress: called with (images trained on, loss=...), one chunk late.

        Raises:
          Diverged: a loss is not finite.
        """
        run = self.run
        phase, phase_epoch = run.epochs[epoch]
        plan = current.plan if phase.record else self._full_plan
        num_keep, batch = int(plan.num_keep), run.recipe.batch
        steps, done = num_keep // batch, int(current.done)
        order = self._order(current.key, plan, jnp.int32(epoch))
        rates = self._rates(phase, phase_epoch)
        started, compiled, elsewhere = time.perf_counter(), self.seconds['compile'], 0.0
        losses: list[tuple[int, jax.Array]] = []
        shown = (
            plan if run.mixing is None else plan.replace(partner=self._partners(current.key, plan, jnp.int32(epoch)))
        )
        supplies = self.feed.epoch(order, shown, epoch, done, steps)
        if self._answers is None:
            taught = ((length, supply, None) for length, supply in supplies)
        else:
            taught = self._answers.epoch(supplies, current, order, shown, done, steps)
        with contextlib.closing(supplies):
            for length, supply, answers in taught:
                variables = self.teacher_variables if answers is None else {}
                program = self._program(phase, length, current)
                current, loss = program(current, order, rates, supply, variables, answers)
                done += length
                self.tally.add(self._step_costs[phase.name], length)
                losses.append((length, loss))
                if len(losses) > 1:  # one chunk late, so that the device never waits for the host
                    finished, late = losses.pop(0)
                    value = float(late)
                    progress(finished * batch, loss=value)
                    if not np.isfinite(value):
                        self.refuse_divergence(current)
                if done < steps:  # after the last step comes the evaluation first, then the condensation
                    pause = time.perf_counter()
                    between(current)
                    elsewhere += time.perf_counter() - pause
        for finished, late in losses:
            progress(finished * batch, loss=float(late))
        jax.block_until_ready(current.step)
        spent = time.perf_counter() - started - elsewhere - (self.seconds['compile'] - compiled)
        self.seconds['train'] += spent
        self.tally.sizes.append(num_keep)
        self.refuse_divergence(current)
        sums = jax.device_get(current.metrics) if steps else {}  # they are those of the last epoch that had a step
        means = {name: float(total / count) for name, (total, count) in sums.items() if count > 0}
        predicts = self.run.predicts
        known = {'accuracy': predicts and self.run.data.labelled, 'entropy': predicts}
        means = {name: mean for name, mean in means.items() if known.get(name, True)}
        counters = {'epoch': np.int32(epoch + 1), 'done': np.int32(0)}
        current = current.replace(**sharding.put(counters, sharding.replicated(self.mesh)))
        label = 'main' if 'main' in phase.optimisers else next(iter(phase.optimisers))
        rate = phase.optimisers[label].lr(phase_epoch)
        return current, EpochReport(phase, num_keep, steps * batch, rate, means, spent)

    def _program(self, phase: Phase, length: int, current: TrainState) -> Program:
        """`length` steps of a phase; compiled once for the whole run, however the set shrinks."""
        if (phase.name, length) not in self._programs:

            def count(jaxpr: Any) -> None:
                self._step_costs[phase.name] = ledger.step_cost(self.run, phase, jaxpr, length)

            self._programs[phase.name, length] = Program(
                functools.partial(step.run_chunk, spec=self._spec, phase=phase, length=length),
                self.seconds,
                count,
                donate_argnums=0,
                out_shardings=(sharding.state_shardings(self.mesh, current), sharding.replicated(self.mesh)),
            )
        return self._programs[phase.name, length]

    def _rates(self, phase: Phase, phase_epoch: int) -> dict[str, jax.Array]:
        """{label: learning rate} of an epoch, on the devices, and the epoch itself for the methods' clocks."""
        values = {label: np.float32(optimiser.lr(phase_epoch)) for label, optimiser in phase.optimisers.items()}
        return sharding.put({**values, 'phase_epoch': np.int32(phase_epoch)}, sharding.replicated(self.mesh))

    @functools.cached_property
    def _full_plan(self) -> Plan:
        """Every point, for phases that record nothing. Made on demand: a plan of many points is large."""
        setup = self.run.setup
        return sharding.put(full_plan(setup.num_points, setup.rows), sharding.replicated(self.mesh))

    def refuse_divergence(self, current: TrainState) -> None:
        """Raises Diverged, naming the step, once a loss was not finite."""
        bad = int(current.bad_step)
        if bad >= 0:
            raise Diverged(
                f'the loss of step {bad + 1} is not finite; the last good checkpoint is kept. Lower optim.lr, or train '
                'in float32'
            )

    def visits_by_class(self, current: TrainState) -> list[int]:
        """[K]: visits so far, summed over the points of each class (UNIX Fig. 5, 6); [] without labels."""
        if not self.run.data.labelled:
            return []
        return sharding.to_host(self._by_class(current.table.count, self._labels)).tolist()

    @property
    def taught_in_step(self) -> int:
        """Images that a teacher inside the steps has seen so far."""
        return 0 if self._answers is not None else self.tally.samples['teacher_forward']

    # -- condensation ---------------------------------------------------------------------------------------------

    def recorded(self, epoch: int) -> int:
        """Recording epochs among the first `epoch` ones."""
        return sum(phase.record for phase, _ in self.run.epochs[:epoch])

    def condense(self, current: TrainState, epoch: int) -> TrainState:
        """The state with a new plan before epoch `epoch` (from 0) if the policy asks for one; else `current` itself."""
        run = self.run
        if epoch >= len(run.epochs) or not run.epochs[epoch][0].record:
            return current
        recorded, total = self.recorded(epoch), run.recording
        if not run.policy.when(recorded, total):
            return current
        scores = {'teacher': self._teacher_scores} if run.policy.teacher_scores else {}
        start = time.perf_counter()
        table = sharding.replicate(self.mesh, current.table)
        key = stream(current.key, 'replan', recorded)
        more = {'labels': self._labels} if run.policy.reads_labels else {}
        plan, policy_state = run.policy.replan(
            key, table, current.plan, current.policy_state, recorded, total, **more, **scores
        )
        # New buffers: the state is donated, and a policy may return what lies in the table or in another leaf.
        fresh = state.strong({'plan': plan, 'policy_state': policy_state})
        current = current.replace(**state.copy_to(fresh, sharding.replicated(self.mesh)))
        jax.block_until_ready(current.plan)
        self.seconds['condense'] += time.perf_counter() - start
        return current

    @functools.cached_property
    def _teacher_scores(self) -> dict[str, jax.Array]:
        """{name: f32[N]} of the scores that the policy reads; once per run, and again after a restart."""
        start, compiled = time.perf_counter(), self.seconds['compile']
        found = self.clean.scores(self.run.policy.teacher_scores, self.teacher_rows)
        self.seconds['score'] += time.perf_counter() - start - (self.seconds['compile'] - compiled)
        return sharding.put(found, sharding.replicated(self.mesh))

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, current: TrainState, final: bool = False) -> dict[str, float]:
        """{'accuracy', 'loss', and with a teacher 'agreement', 'teacher_kl'} on the held-out images.

        With an average of the student these are the average's, and 'raw_accuracy', 'raw_loss', ... the student's own.
        A student that predicts nothing is judged by a `Probe`; `final`: after the last epoch.
        """
        with self._timed_evaluation():
            network, variables = self.run.student_network, student_variables(current)
            if not self.run.predicts:
                return self._probe(variables, current.params['method'], final)
            result, _ = self.evaluator('student', network, variables, self._teacher_logits)
            if current.ema:
                raw, _ = self.evaluator('student', network, _trained_variables(current), self._teacher_logits)
                result.update({f'raw_{name}': value for name, value in raw.items()})
        return result if self.run.data.scored else {name: result[name] for name in result if name in OF_TEACHER}

    def refuse_probabilities(self, current: TrainState) -> None:
        """ValueError for a student of the user's that returns probabilities: a loss would take them for logits."""
        network = self.run.own_network
        if network is None or not self.run.predicts:
            return
        with self._timed_evaluation():
            some = self.evaluator.first('student', network, student_variables(current), self._teacher_logits)
            hosts.refuse_probabilities(some, f'the student {network.name}, asked about held-out images')

    def evaluate_teacher(self) -> float | None:
        """The teacher's accuracy; its logits are kept, to compare the student's with. None where it cannot say."""
        if not (self.run.predicts and self.run.teacher_predicts):
            return None
        evaluator, split = self.evaluator, self.evaluator.batches.split
        with self._timed_evaluation():
            if self.run.host is not None:
                logits = self.clean.held_out(split)
            else:
                logits = self.clean.evaluated(evaluator, self.teacher_variables)
            if logits is None:
                return None
            size = evaluator.batches.index.shape[1] * jax.process_count()
            padded = np.pad(logits, ((0, -len(logits) % size), (0, 0))).reshape(-1, size, logits.shape[1])
            self._teacher_logits = [sharding.put(part, sharding.batch(self.mesh)) for part in padded]
        hits = np.argmax(logits, axis=1) == evaluator.labels
        return float(np.mean(hits)) if self.run.data.scored else None

    @functools.cached_property
    def _probe(self) -> Probe:
        """Evaluates the embeddings of a student without predictions, against the teacher's where they are known."""
        target = self.clean.held_out_embeddings(self.evaluator.batches.split) if 'embed' in self.run.needs else None
        return Probe(self.run, self.evaluator, self.mesh, target, self.seconds)

    def read(self, current: TrainState) -> dict[str, Any]:
        """What both networks say at the end: of the held-out images, and of every training point in eval mode.

        Returns:
          {'logits': f32[M, K], 'entropy': f32[N] in nats, 'teacher_entropy': f32[N] in nats or None}; each None for a
          student that predicts nothing.
        """
        if not self.run.predicts:
            return dict.fromkeys(('logits', 'entropy', 'teacher_entropy'))
        run, variables = self.run, student_variables(current)
        student, train = run.student_network, run.data.train
        with self._timed_evaluation():
            _, logits = self.evaluator('student', student, variables, self._teacher_logits)
            entropy, _ = self.evaluator.read('student', student, variables, train, self._teacher_logits)
            taught = None
            if run.host is not None and run.teacher_predicts:
                taught = self.clean.scores(('entropy',))['entropy'][: len(train)]
            elif run.teacher_predicts:
                taught, _ = self.evaluator.read('teacher', run.teacher_network, self.teacher_variables, train, None)
        return {'logits': self.evaluator.on_host(logits), 'entropy': entropy, 'teacher_entropy': taught}

    @contextlib.contextmanager
    def _timed_evaluation(self) -> Iterator[None]:
        """Counts the time inside as evaluation, less what compiling took."""
        start, compiled = time.perf_counter(), self.seconds['compile']
        yield
        self.seconds['evaluate'] += time.perf_counter() - start - (self.seconds['compile'] - compiled)

    def split_scoring(self, current: TrainState) -> None:
        """Moves the scoring passes' share of the training seconds to 'score', for policies that score."""
        batch = self.run.recipe.batch
        passes = self.tally.samples['scoring_forward'] // batch
        if not passes:
            return
        shape = (batch, *self.run.data.image_shape)
        variables = student_variables(current)
        alone = scoring.seconds(self.run.student_network, variables, shape, self.mesh, self.seconds)
        share = min(passes * alone, self.seconds['train'])
        self.seconds['score'] += share
        self.seconds['train'] -= share


def student_variables(current: TrainState) -> PyTree:
    """The student's variables, as its network takes them: their average (`Recipe.ema`) where there is one."""
    return current.ema or _trained_variables(current)


def _trained_variables(current: TrainState) -> PyTree:
    """The variables that the steps change."""
    return {'params': current.params['student'], **current.model_state}
