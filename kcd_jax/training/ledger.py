"""What a run costs: samples and multiply-accumulates of every pass, from the jaxpr of the very step that it runs.

A step is traced once per phase. Each convolution and matrix product is booked under the named scope that `train_step`
puts around the pass it belongs to. So what a selection policy saves is counted, not assumed: UNIX's scoring pass, a
method's own networks and a second forward pass are in the sum; what the compiler drops (the gradient of the images) is
not. Evaluation is not training and is left out.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from kcd_jax import policies
from kcd_jax.contracts import Network, Phase, TrainState
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import macs, state, step
from kcd_jax.training.run import Run
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
      macs: {part: multiply-accumulates} for `PARTS`.
      samples: {pass: images} for `PASSES`.
      full_macs: {part: multiply-accumulates} of the same method on every point for `recipe.epochs` epochs.
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


def expected(run: Run) -> Ledger:
    """The ledger of a run before it starts: nothing is compiled, one step is traced per phase.

    Epoch sizes that depend on the data (InfoBatch's) are expectations, as the policy's `keep_counts` gives them.
    """
    per_step = {phase.name: step_cost(run, phase) for phase in run.phases}
    found, samples = totals(per_step, phase_steps(run))
    add_scores(run, found, samples)
    return Ledger(sum(run.steps), found, samples, full(run), per_step)


def phase_steps(run: Run) -> dict[str, int]:
    """{phase's name: its steps}, as scheduled."""
    steps: collections.Counter[str] = collections.Counter()
    for (phase, _), number in zip(run.epochs, run.steps, strict=True):
        steps[phase.name] += number
    return steps


def add_scores(run: Run, spent: dict[str, int], samples: dict[str, int]) -> None:
    """Adds the pass of a teacher that scores every training point once, for policies that read that."""
    if run.scores_points:
        samples['teacher_forward'] += run.num_points
        spent['teacher_forward'] += (run_teacher_macs(run) or 0) * run.num_points


def run_teacher_macs(run: Run) -> int | None:
    """Multiply-accumulates of the run's teacher per image; None: not known."""
    if run.host is not None:
        return teacher_macs(run.teacher, run.setup.image_shape)
    return network_macs(run.teacher_network, run.setup.image_shape)


def full(run: Run) -> dict[str, int]:
    """{part: multiply-accumulates} of the run's method with policy `none`, every point in each of `recipe.epochs`."""
    phases = run.phases_for(run.recipe.epochs)
    per_step = {phase.name: _full_step(run, phase) for phase in phases}
    steps = run.num_points // run.recipe.batch
    return totals(per_step, {phase.name: steps * phase.epochs for phase in phases})[0]


def _full_step(run: Run, phase: Phase) -> StepCost:
    """A step of the method on the whole batch, without scoring."""
    if run.policy.in_batch is not None and phase.record:
        chosen = step_cost(run, phase)
        if not chosen.macs['method']:  # the networks' products are proportional to the rows: no second trace
            scaled = {part: chosen.macs[part] * run.recipe.batch // run.rows for part in PARTS}
            images = {part: chosen.samples[part] * run.recipe.batch // run.rows for part in PASSES}
            return StepCost({**scaled, 'scoring_forward': 0}, {**images, 'scoring_forward': 0})
    return step_cost(run.replace(policy=policies.get('none').make()), phase)


def totals(per_step: Mapping[str, StepCost], steps: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """({part: multiply-accumulates}, {pass: images}) of {phase's name: steps}."""
    found, samples = dict.fromkeys(PARTS, 0), dict.fromkeys(PASSES, 0)
    for name, number in steps.items():
        for part in PARTS:
            found[part] += number * per_step[name].macs[part]
        for part in PASSES:
            samples[part] += number * per_step[name].samples[part]
    return found, samples


def sample_counts(run: Run, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """Samples of the run against KD on all points for `recipe.epochs` epochs (KCD Eq. 16).

    'scheduled' counts the points of each epoch, 'processed' the full batches (a last partial batch is dropped). Only
    recording phases count; phases that a method puts in front of them are reported apart.

    Args:
      run: any.
      sizes: points of each epoch as they were trained on; default: as scheduled.
    """
    sizes = sizes or run.sizes
    batch, num_points = run.recipe.batch, run.num_points
    share = run.rows / batch
    recorded = [size for size, (phase, _) in zip(sizes, run.epochs, strict=True) if phase.record]
    scheduled, full = sum(recorded), num_points * run.recipe.epochs
    processed = sum(size // batch * batch for size in recorded)
    processed_full = num_points // batch * batch * run.recipe.epochs
    return {
        'scheduled_samples': round(scheduled * share),
        'scheduled_full': full,
        'processed_samples': round(processed * share),
        'processed_full': processed_full,
        'relative_scheduled': scheduled * share / full,
        'relative_processed': processed * share / processed_full,
        'steps': sum(size // batch for size in sizes),
        'samples_before': sum(sizes) - scheduled,
    }


# ------------------------------------------------------------------------------------------------------------- spending


@dataclasses.dataclass
class Tally:
    """What a run has spent so far. It is part of every checkpoint, so that a resumed run goes on counting.

    Attributes:
      macs, samples: as in `Ledger`, of the steps taken.
      sizes: points in the plan of each finished epoch.
    """

    macs: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    samples: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(PASSES, 0))
    sizes: list[int] = dataclasses.field(default_factory=list)

    def add(self, step: StepCost, steps: int) -> None:
        """Books `steps` steps."""
        for part in PARTS:
            self.macs[part] += steps * step.macs[part]
        for part in PASSES:
            self.samples[part] += steps * step.samples[part]


def summary(tally: Tally, run: Run) -> dict[str, Any]:
    """The cost of a finished run: of its steps, with a teacher that answers every row it is asked for.

    Returns:
      `sample_counts` of the epochs as they were (C of KCD's Eq. 16, scheduled and processed), and
      'macs': {part: multiply-accumulates}, 'samples': {pass: images}, 'macs_full': of the same method on every point,
      'relative_macs': their ratio, and 'computation': see `computation`.
    """
    everything = full(run)
    spent, images = dict(tally.macs), dict(tally.samples)
    add_scores(run, spent, images)
    return {
        **sample_counts(run, tally.sizes),
        'macs': spent,
        'samples': images,
        'macs_full': sum(everything.values()),
        'relative_macs': sum(spent.values()) / sum(everything.values()),
        'computation': computation(spent, everything),
    }


def computed(cost: Mapping[str, Any], teacher_rows: Mapping[str, int], in_step: int = 0) -> dict[str, Any]:
    """What was computed for a run on this machine: it depends on what a cache of the teacher's answers held.

    Args:
      cost: of `summary`.
      teacher_rows: `Trainer.teacher_rows`; empty if the teacher answered nothing before the steps.
      in_step: images that a teacher inside the steps saw.

    Returns:
      {'teacher_rows', 'macs', 'relative_macs'}: the teacher's rows with the padding of its calls and without those that
      a cache served; multiply-accumulates of all passes, and their ratio to the same method on every point.
    """
    spent, images = dict(cost['macs']), cost['samples']['teacher_forward']
    if teacher_rows and images:
        passed = teacher_rows['computed'] + teacher_rows['padding'] + in_step
        spent['teacher_forward'] = passed * spent['teacher_forward'] // images
    total = sum(spent.values())
    return {'teacher_rows': dict(teacher_rows), 'macs': total, 'relative_macs': total / cost['macs_full']}


def computation(spent: Mapping[str, int], everything: Mapping[str, int]) -> dict[str, float]:
    """UNIX's Computation (Eq. 3 and 11): all passes of the networks over those of the method on everything.

    Args:
      spent: {part: multiply-accumulates} of the run.
      everything: the same of its method without a policy.

    Returns:
      'assumed_backward' with B_s = F_s, the paper's assumption, and 'counted_backward' with the products of the
      backward pass; neither includes the method's own part.
    """

    def assumed(parts: Mapping[str, int]) -> int:
        return parts['teacher_forward'] + 2 * parts['student_forward'] + parts['scoring_forward']

    def counted(parts: Mapping[str, int]) -> int:
        return sum(parts[name] for name in PASSES)

    return {
        'assumed_backward': assumed(spent) / assumed(everything),
        'counted_backward': counted(spent) / counted(everything),
    }


# ------------------------------------------------------------------------------------------------------------- one step

_TRACED: dict[str, dict[str, int]] = {}


def step_cost(run: Run, phase: Phase, program: jex_core.ClosedJaxpr | None = None, steps: int = 1) -> StepCost:
    """What one step of a phase costs.

    Args:
      run: any.
      phase: one of its phases.
      program: the jaxpr of `steps` of its steps, if they are traced already; otherwise one step is traced, once for
        all runs of this process whose steps are the same.
      steps: in `program`.
    """
    key = _key(run, phase)
    if program is not None:
        found = parts(program, steps)
    else:
        found = _TRACED.get(key) or parts(trace(run, phase))
    images = samples(run, phase)
    if images['teacher_forward'] and not found['teacher_forward']:  # it answers before the step, or on the host
        found = {**found, 'teacher_forward': (run_teacher_macs(run) or 0) * images['teacher_forward']}
    if key:
        _TRACED[key] = found
    return StepCost(found, images)


def teacher_macs(teacher: Teacher, image_shape: tuple[int, int, int]) -> int | None:
    """Multiply-accumulates per image; None where a teacher on the host does not say, or cannot know."""
    if teacher.host is None:
        return network_macs(teacher.network, image_shape)
    counts = [teacher_macs(member, image_shape) for member in teacher.members]
    if not counts:
        return teacher.host.macs
    return None if None in counts else sum(counts)


@functools.lru_cache(maxsize=64)
def network_macs(network: Network, image_shape: tuple[int, int, int], backward: bool = False) -> int:
    """Multiply-accumulates per image of a forward pass; with `backward`, also of the gradient of the parameters."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = network.variable_shapes(image_shape)
    if not backward:
        return macs.count(lambda v, x: network.apply(v, x, False)[0].logits, variables, image)
    params, rest = state.split_variables(variables)

    def total(params: Any, rest: Any, image: jax.Array) -> jax.Array:
        return jnp.sum(network.apply({'params': params, **rest}, image, True)[0].logits.astype(jnp.float32))

    return macs.count(jax.value_and_grad(total), params, rest, image)


def parts(program: jex_core.ClosedJaxpr, steps: int = 1) -> dict[str, int]:
    """{part: multiply-accumulates per step} of the jaxpr of a program of `steps` steps."""
    found = dict.fromkeys(PARTS, 0)
    for scope, count in macs.by_scope(program).items():
        found[_part(scope)] += count
    return {part: count // steps for part, count in found.items()}


def _part(scope: str) -> str:
    """The part that a scope of `step.train_step` belongs to; what lies in none of the passes is the method's own."""
    if 'transpose(jvp(student_forward))' in scope:
        return 'student_backward'
    return next((part for part in PASSES if part in scope), 'method')


def trace(run: Run, phase: Phase) -> jex_core.ClosedJaxpr:
    """The jaxpr of one training step of a phase, from shapes alone."""
    spec, batch = run.step_spec(), run.recipe.batch
    images = jax.ShapeDtypeStruct((batch, *run.setup.image_shape), jnp.uint8)
    index = jax.ShapeDtypeStruct((batch,), jnp.int32)
    raw = step.RawBatch(index, images, images, index, index)
    rates = {label: jax.ShapeDtypeStruct((), jnp.float32) for label in phase.optimisers}
    rates['phase_epoch'] = jax.ShapeDtypeStruct((), jnp.int32)
    teacher = {} if run.teacher_network is None else run.teacher_network.variable_shapes(run.setup.image_shape)

    def one_step(current: TrainState, raw: step.RawBatch, rates: Any, teacher: Any) -> Any:
        return step.train_step(current, raw, rates, teacher, spec, phase)

    return jax.make_jaxpr(one_step)(abstract_state(run), raw, rates, teacher)


def samples(run: Run, phase: Phase) -> dict[str, int]:
    """{pass: images that go through it} in one step of a phase."""
    chooses = phase.record and run.policy.in_batch is not None
    rows = (run.rows if chooses else run.recipe.batch) * run.method.num_views
    params = run.student_network.variable_shapes(run.setup.image_shape)['params']
    paths = list(leaf_paths({'student': params}))
    moving = [any(matches(path, update.moves) for path in paths) for update in phase.updates]
    # One forward for each version of the student's parameters that an update reads.
    forwards = 1 + sum(moving[:-1])
    return {
        'teacher_forward': rows if run.needs else 0,
        'student_forward': forwards * rows,
        'student_backward': sum(moving) * rows,
        'scoring_forward': run.recipe.batch if chooses and run.policy.scores else 0,
    }


def abstract_state(run: Run) -> TrainState:
    """The run's state as shapes. What the policy keeps is left out: a step given its batch does not read it."""

    def create(key: jax.Array) -> TrainState:
        return state.create(
            key,
            student=run.student_network,
            method=run.method,
            policy=dataclasses.replace(run.policy, init=lambda *_: {}),
            phases=run.phases,
            setup=run.setup,
            images=None,
            averaged=run.recipe.ema > 0,
        )

    return jax.eval_shape(create, jax.random.PRNGKey(0))


def _key(run: Run, phase: Phase) -> str:
    """Everything that the products of a step depend on, as text; '' if a part was built in Python and has no name."""
    # Other policies leave no trace in a step.
    of_policy = run.policy.in_batch is not None or run.policy.observe is not None
    built = [isinstance(run.student, Network)]
    if isinstance(run.teacher, Run):
        built.append(isinstance(run.teacher.student, Network))
    elif run.teacher is not None:
        built.append(not run.teacher.source)
    if any(built) or not run.method.name or (of_policy and not run.policy.name):
        return ''

    def of(network: Network | None) -> Any:
        if network is None:
            return None
        shapes = leaf_paths(network.variable_shapes(run.setup.image_shape))
        return [network.name, [(path, leaf.shape) for path, leaf in shapes.items()]]

    content = [
        [run.method.name, dict(run.method.keywords)],
        [run.policy.name, dict(run.policy.keywords)] if of_policy else None,
        dataclasses.asdict(run.weights),
        [of(run.student_network), of(run.teacher_network), run.recipe.dtype, run.recipe.logits],
        [run.recipe.batch, run.rows, run.setup.image_shape, run.num_points, run.setup.num_classes],
        [phase.name, phase.record, dataclasses.asdict(run.recipe.augment), jax.default_backend()],
    ]
    return json.dumps(content, default=str)


# ---------------------------------------------------------------------------------------------------------------- text


def samples_line(counts: Mapping[str, Any]) -> str:
    """'cost: scheduled 9,811,200 of 12,000,000 points (81.76 %), processed ...' of `sample_counts`."""
    return (
        f'cost: scheduled {counts["scheduled_samples"]:,} of {counts["scheduled_full"]:,} points '
        f'({100 * counts["relative_scheduled"]:.2f} %), processed {counts["processed_samples"]:,} of '
        f'{counts["processed_full"]:,} ({100 * counts["relative_processed"]:.2f} %) in {counts["steps"]:,} steps'
    )


def lines(ledger: Ledger) -> list[str]:
    """A table of the run's passes, and its cost relative to the method on everything."""
    return list(_lines(ledger))


def _lines(ledger: Ledger) -> Iterator[str]:
    total, known = ledger.total, 'all'
    yield f'{"pass":18s} {"samples":>15s} {"GMACs":>15s} {"share":>7s}'
    for part in PARTS:
        images = f'{ledger.samples[part]:,}' if part in PASSES else ''
        count = ledger.macs[part]
        if part == 'teacher_forward' and not count and ledger.samples[part]:
            yield f'{part:18s} {images:>15s} {"unknown":>15s}'  # a teacher on the host that does not say
            known = 'without teacher'
            continue
        yield f'{part:18s} {images:>15s} {count / 1e9:15,.3f} {100 * count / total:6.2f} %'
    relative = f'{100 * ledger.relative:.2f} % of the method on every point'
    yield f'{known:18s} {"":15s} {total / 1e9:15,.3f} 100.00 %   {relative}, {ledger.steps:,} steps'
