"""What a run costs: samples and multiply-accumulates of every pass, from the jaxpr of the very step that it runs.

A step is traced once a phase; each convolution and matrix product is booked under the named scope that `train_step`
puts around the pass it belongs to. What a selection policy saves is therefore counted, not assumed: UNIX's scoring
pass, a method's own networks and a second forward in a step are in the sum, and what the compiler drops is not (as
the gradient of the images). Evaluation is not training and not in it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from ml_collections import ConfigDict

from kcd_jax import policies
from kcd_jax.contracts import Network, Phase, TrainState
from kcd_jax.training import check, macs, state, step
from kcd_jax.trees import leaf_paths, matches

PARTS = ('teacher_forward', 'student_forward', 'student_backward', 'scoring_forward', 'method')
PASSES = PARTS[:4]  # what images go through


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One step: {part: multiply-accumulates} of all `PARTS`, and {pass: images} of all `PASSES`."""

    macs: Mapping[str, int]
    samples: Mapping[str, int]

    @property
    def total(self) -> int:
        """Multiply-accumulates of the step."""
        return sum(self.macs.values())


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What a run costs.

    Attributes:
      steps: training steps of all phases.
      macs: {part: multiply-accumulates}, `PARTS`. samples: {pass: images}, `PASSES`.
      full_macs: {part: multiply-accumulates} of the same method on every point for `config.epochs` epochs.
      per_step: {phase's name: StepCost}.
    """

    steps: int
    macs: Mapping[str, int]
    samples: Mapping[str, int]
    full_macs: Mapping[str, int]
    per_step: Mapping[str, StepCost]

    @property
    def total(self) -> int:
        """Multiply-accumulates of the run."""
        return sum(self.macs.values())

    @property
    def relative(self) -> float:
        """Multiply-accumulates of the run over those of the same method on everything: the cost of a policy."""
        return self.total / sum(self.full_macs.values())


def expected(run: check.Run, config: ConfigDict) -> Ledger:
    """The ledger of a run before it starts: nothing is compiled or run, a step is traced once a phase.

    Sizes that depend on the data (InfoBatch's) are in expectation, as the policy's `keep_counts` gives them.

    Args:
      run: of `check.resolve`. config: the one that it was resolved from.
    """
    per_step = {phase.name: step_cost(run, config, phase) for phase in run.phases}
    macs, samples = totals(per_step, _steps_by_phase(run.phases, run.steps))
    return Ledger(sum(run.steps), macs, samples, full(run, config), per_step)


def full(run: check.Run, config: ConfigDict) -> dict[str, int]:
    """{part: multiply-accumulates} of the run's method with policy `none`: every point in each of `config.epochs`."""
    phases = check.phases_of(config, run.method, run.student, config.epochs)
    per_step = {phase.name: _full_step(run, config, phase) for phase in phases}
    steps = run.setup.num_points // config.batch
    return totals(per_step, {phase.name: steps * phase.epochs for phase in phases})[0]


def _full_step(run: check.Run, config: ConfigDict, phase: Phase) -> StepCost:
    """A step of the method on the whole batch, nothing scored."""
    if run.policy.in_batch is not None and phase.record:
        chosen = step_cost(run, config, phase)
        if not chosen.macs['method']:  # the networks' products are proportional to the rows: no second trace
            scaled = {part: chosen.macs[part] * config.batch // run.rows for part in PARTS}
            images = {part: chosen.samples[part] * config.batch // run.rows for part in PASSES}
            return StepCost({**scaled, 'scoring_forward': 0}, {**images, 'scoring_forward': 0})
    return step_cost(dataclasses.replace(run, policy=policies.get('none').make(), rows=config.batch), config, phase)


def totals(per_step: Mapping[str, StepCost], steps: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """({part: multiply-accumulates}, {pass: images}) of so many steps of each phase."""
    macs, samples = dict.fromkeys(PARTS, 0), dict.fromkeys(PASSES, 0)
    for name, number in steps.items():
        for part in PARTS:
            macs[part] += number * per_step[name].macs[part]
        for part in PASSES:
            samples[part] += number * per_step[name].samples[part]
    return macs, samples


def _steps_by_phase(phases: tuple[Phase, ...], steps: tuple[int, ...]) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for (phase, _), number in zip(check.epochs_of(phases), steps, strict=True):
        counts[phase.name] += number
    return counts


# ------------------------------------------------------------------------------------------------------ what was spent


@dataclasses.dataclass
class Tally:
    """What a run has spent so far; it lies in the run's checkpoints, so that a cut run goes on counting.

    Attributes:
      macs, samples: as in `Ledger`, of the steps that were run. sizes: points in the plan of each finished epoch.
    """

    macs: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    samples: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(PASSES, 0))
    sizes: list[int] = dataclasses.field(default_factory=list)

    def add(self, step: StepCost, steps: int) -> None:
        """Books so many steps."""
        for part in PARTS:
            self.macs[part] += steps * step.macs[part]
        for part in PASSES:
            self.samples[part] += steps * step.samples[part]


def summary(tally: Tally, run: check.Run, config: ConfigDict) -> dict[str, Any]:
    """The cost of a finished run, for its summary: what `check.cost` tells before it, as it came, and the passes.

    Returns:
      `check.cost` of the epochs as they were (C of KCD's Eq. 16 and C_a, scheduled and processed), and
      'macs': {part: multiply-accumulates}, 'samples': {pass: images}, 'macs_full': the same method on every point,
      'relative_macs': their ratio, and 'computation' of `computation`.
    """
    sizes = tuple(tally.sizes)
    ran = dataclasses.replace(run, sizes=sizes, steps=tuple(size // config.batch for size in sizes))
    everything = full(run, config)
    return {
        **check.cost(ran, config, run.setup.num_points),
        'macs': tally.macs,
        'samples': tally.samples,
        'macs_full': sum(everything.values()),
        'relative_macs': sum(tally.macs.values()) / sum(everything.values()),
        'computation': computation(tally.macs, everything),
    }


def computation(macs: Mapping[str, int], everything: Mapping[str, int]) -> dict[str, float]:
    """UNIX's Computation (Eq. 3 and 11): all passes of the networks over those of the method on everything.

    Args:
      macs, everything: {part: multiply-accumulates} of the run and of the same method without a policy.

    Returns:
      'assumed_backward' with B_s = F_s, as the paper reckons, and 'counted_backward' with the products of the backward
      pass; neither has the method's own part.
    """

    def assumed(parts: Mapping[str, int]) -> int:
        return parts['teacher_forward'] + 2 * parts['student_forward'] + parts['scoring_forward']

    def counted(parts: Mapping[str, int]) -> int:
        return sum(parts[name] for name in PASSES)

    return {
        'assumed_backward': assumed(macs) / assumed(everything),
        'counted_backward': counted(macs) / counted(everything),
    }


# -------------------------------------------------------------------------------------------------------------- a step

_CACHE: dict[str, dict[str, int]] = {}


def step_cost(
    run: check.Run, config: ConfigDict, phase: Phase, program: jex_core.ClosedJaxpr | None = None, steps: int = 1
) -> StepCost:
    """What one step of a phase costs.

    Args:
      run, config, phase: of a run. program: the jaxpr of `steps` of its steps, where they are traced already; else one
        step is traced, once for all runs of this process whose steps are the same.
    """
    key = _key(run, config, phase)
    if program is not None:
        _CACHE[key] = parts(program, steps)
    elif key not in _CACHE:
        _CACHE[key] = parts(trace(run, config, phase))
    return StepCost(_CACHE[key], samples(run, config, phase))


def parts(program: jex_core.ClosedJaxpr, steps: int = 1) -> dict[str, int]:
    """{part: multiply-accumulates of a step} of the jaxpr of a program of so many steps."""
    found = dict.fromkeys(PARTS, 0)
    for scope, count in macs.by_scope(program).items():
        found[_part(scope)] += count
    return {part: count // steps for part, count in found.items()}


def _part(scope: str) -> str:
    """The part that a scope of `step.train_step` belongs to; what stands in none of the passes is the method's own."""
    if 'transpose(jvp(student_forward))' in scope:
        return 'student_backward'
    return next((part for part in PASSES if part in scope), 'method')


def trace(run: check.Run, config: ConfigDict, phase: Phase) -> jex_core.ClosedJaxpr:
    """The jaxpr of one training step of a phase, from shapes alone."""
    spec = check.step_spec_of(run, config)
    images = jax.ShapeDtypeStruct((config.batch, *run.setup.image_shape), jnp.uint8)
    index = jax.ShapeDtypeStruct((config.batch,), jnp.int32)
    raw = step.RawBatch(index, images, images, index)
    rates = {label: jax.ShapeDtypeStruct((), jnp.float32) for label in phase.optimisers}
    rates['phase_epoch'] = jax.ShapeDtypeStruct((), jnp.int32)
    teacher = {} if run.teacher is None else abstract_variables(run.teacher, run.setup.image_shape)

    def one_step(current: TrainState, raw: step.RawBatch, rates: Any, teacher: Any) -> Any:
        return step.train_step(current, raw, rates, teacher, spec, phase)

    return jax.make_jaxpr(one_step)(abstract_state(run), raw, rates, teacher)


def samples(run: check.Run, config: ConfigDict, phase: Phase) -> dict[str, int]:
    """{pass: images that go through it} in one step of a phase."""
    chooses = phase.record and run.policy.in_batch is not None
    rows = (run.rows if chooses else config.batch) * run.method.num_views
    moving = [_moves_student(update.moves, run) for update in phase.updates]
    # One forward for each version of the student's parameters that an update reads.
    forwards = 1 + sum(moving[:-1])
    return {
        'teacher_forward': rows if run.teacher is not None else 0,
        'student_forward': forwards * rows,
        'student_backward': sum(moving) * rows,
        'scoring_forward': config.batch if chooses and run.policy.scores else 0,
    }


def _moves_student(patterns: tuple[str, ...], run: check.Run) -> bool:
    params = abstract_variables(run.student, run.setup.image_shape)['params']
    return any(matches(path, patterns) for path in leaf_paths({'student': params}))


@functools.lru_cache(maxsize=32)
def abstract_variables(network: Network, image_shape: tuple[int, int, int]) -> Any:
    """The network's variables as shapes."""
    return jax.eval_shape(lambda key: network.init(key, image_shape), jax.random.PRNGKey(0))


def abstract_state(run: check.Run) -> TrainState:
    """The run's state as shapes. What the policy keeps is left out: a step given its batch does not read it."""

    def create(key: jax.Array) -> TrainState:
        return state.create(
            key,
            student=run.student,
            method=run.method,
            policy=dataclasses.replace(run.policy, init=lambda *_: {}),
            phases=run.phases,
            setup=run.setup,
            images=None,
        )

    return jax.eval_shape(create, jax.random.PRNGKey(0))


def _key(run: check.Run, config: ConfigDict, phase: Phase) -> str:
    """Everything that the products of a step depend on, as text."""
    of_policy = run.policy.in_batch is not None or run.policy.observe is not None  # else the step knows none of it
    content = [
        config.method.to_dict(),
        config.policy.to_dict() if of_policy else None,
        dataclasses.asdict(run.weights),
        [run.student.name, None if run.teacher is None else run.teacher.name, config.dtype, config.logits],
        [config.batch, run.rows],
        [run.setup.image_shape, run.setup.num_points, run.setup.num_classes],
        [phase.name, phase.record, config.augment.to_dict(), jax.default_backend()],
    ]
    return json.dumps(content, default=str)


# ------------------------------------------------------------------------------------------------------------ in words


def lines(ledger: Ledger) -> list[str]:
    """A table of the run's passes, and its cost relative to the method on everything."""
    return list(_lines(ledger))


def _lines(ledger: Ledger) -> Iterator[str]:
    total = ledger.total
    yield f'{"pass":18s} {"samples":>15s} {"GMACs":>15s} {"share":>7s}'
    for part in PARTS:
        images = f'{ledger.samples[part]:,}' if part in PASSES else ''
        macs = ledger.macs[part]
        yield f'{part:18s} {images:>15s} {macs / 1e9:15,.3f} {100 * macs / total:6.2f} %'
    relative = f'{100 * ledger.relative:.2f} % of the method on every point'
    yield f'{"all":18s} {"":15s} {total / 1e9:15,.3f} 100.00 %   {relative}, {ledger.steps:,} steps'
