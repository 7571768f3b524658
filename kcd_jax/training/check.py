"""The doctor: everything that can be known before the first step, checked and told.

`resolve` turns a config into the parts of a run, and raises a one-line ValueError for whatever is wrong with it, before
anything is compiled. `describe` prints what it found: it is what `--check` shows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kcd_jax import methods, networks, objective, policies
from kcd_jax.contracts import (
    Batch,
    Clock,
    Method,
    Network,
    Optimiser,
    Phase,
    Policy,
    PyTree,
    Setup,
    Weights,
    default_phases,
    table_rows,
)
from kcd_jax.data import Dataset
from kcd_jax.policies import reuse
from kcd_jax.runtime import sharding
from kcd_jax.training import optim, state, step

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      sizes: points of each epoch over all phases, as scheduled. steps: full batches in each of them.
      rows: rows of each step that teacher and student train on. setup: what the method saw.
      area: of the random resized crop on the devices; () where whoever reads the images cuts, or nothing is cut.
    """

    student: Network
    teacher: Network | None
    method: Method
    policy: Policy
    weights: Weights
    phases: tuple[Phase, ...]
    setup: Setup
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    rows: int
    area: tuple[float, ...] = ()


def epochs_of(phases: tuple[Phase, ...]) -> list[tuple[Phase, int]]:
    """(phase, epoch within it) of each epoch of the run."""
    return [(phase, epoch) for phase in phases for epoch in range(phase.epochs)]


def _keywords(section: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != 'name'}


def main_optimiser(config: ConfigDict, epochs: int) -> Optimiser:
    """SGD as PyTorch's, with the learning rate dropped at fractions of the epochs."""
    settings = config.optim
    drops = tuple(round(fraction * epochs) for fraction in settings.drops)
    transform = optim.sgd(settings.momentum, settings.weight_decay, settings.nesterov)
    return Optimiser(transform, optim.step_drops(settings.lr, drops, settings.factor))


def phases_of(config: ConfigDict, method: Method, student: Network, epochs: int) -> tuple[Phase, ...]:
    """The method's phases where its main one, or its only one, takes `epochs`."""
    main = main_optimiser(config, epochs)
    if method.phases is None:
        return default_phases(method, epochs, main)
    return tuple(method.phases(epochs, main, student))


def step_spec_of(
    run: Run, config: ConfigDict, constrain: Callable[[PyTree], PyTree] = lambda tree: tree
) -> step.StepSpec:
    """What is static in the run's steps. constrain: pins an array's rows to a mesh."""
    return step.StepSpec(
        student=run.student,
        teacher=run.teacher,
        method=run.method,
        policy=run.policy,
        weights=run.weights,
        batch=config.batch,
        crop=config.augment.crop,
        flip=config.augment.flip,
        area=run.area,
        logits=config.logits,
        constrain=constrain,
    )


@functools.lru_cache(maxsize=16)
def _network(name: str, num_classes: int, dtype: Any, normalization: Any) -> Network:
    """One object for equal arguments: what is known of it (`state.output_shapes`) is found out once."""
    return networks.get(name)(num_classes, dtype=dtype, normalization=normalization)


def resolve(
    config: ConfigDict,
    dataset: Dataset,
    *,
    device_count: int,
    teacher: Network | None = None,
    teacher_variables: PyTree | None = None,
) -> Run:
    """Builds every part of the run that `config` describes.

    Args:
      config: of one run. dataset: loaded. device_count: devices of the mesh.
      teacher, teacher_variables: the restored teacher; without it, the network that `config.teacher.name` names.

    Raises:
      ValueError: one line: what was found, and what to do.
    """
    if config.epochs < 1:
        raise ValueError(f'epochs is {config.epochs}; a run needs at least 1')
    if config.logits not in objective.LOGITS:
        raise ValueError(f'logits is {config.logits!r}; known: {", ".join(objective.LOGITS)}')
    if config.dtype not in DTYPES:
        raise ValueError(f'dtype is {config.dtype!r}; known: {", ".join(DTYPES)}')
    for fraction in config.optim.drops:
        if not 0 < fraction <= 1:
            raise ValueError(f'optim.drops holds {fraction}; drops are fractions of the epochs, above 0 and at most 1')
    area = tuple(config.augment.area)
    if area and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
        raise ValueError(f'augment.area is {area}; use () or two shares of the image, as (0.08, 1.0)')
    sharding.check(config.batch, device_count)

    dtype = DTYPES[config.dtype]
    method = methods.get(config.method.name).make(**_keywords(config.method))
    policy = policies.get(config.policy.name).make(**_keywords(config.policy))
    if config.policy.name == 'reuse':
        reuse.refuse_other_data(config.policy.run, config.data)
    weights = Weights(**config.weights.to_dict())
    _refuse_an_idle_term(config, weights)
    of_data = (dataset.num_classes, dtype, dataset.normalization)
    student = _network(config.student.name, *of_data)
    uses_teacher = method.needs_teacher or weights.alpha > 0
    if uses_teacher and teacher is None:
        teacher = _network(config.teacher.name, *of_data)
    if not uses_teacher:
        teacher = None

    num_points = len(dataset.train.labels)
    epochs = policy.epochs(config.epochs)
    if dataset.train.streamed:
        jax.eval_shape(lambda: policy.init(num_points, table_rows(num_points), None))
    counts = policy.keep_counts(num_points, epochs)
    if min(counts) < config.batch:
        raise ValueError(
            f'{min(counts)} kept points are fewer than one batch of {config.batch}; raise policy.ratio or lower batch'
        )
    rows = policy.rows(config.batch)
    if policy.in_batch is not None:
        if method.num_views > 1:
            raise ValueError(
                f'method {config.method.name} shows {method.num_views} views of a point, and policy '
                f'{config.policy.name} chooses inside the batch; use a policy of the whole set (none, random, kcd)'
            )
        sharding.check(rows, device_count, f'policy {config.policy.name} with rows a step of')

    setup = _setup(config, dataset, student, teacher, teacher_variables)
    jax.eval_shape(lambda key: method.init(key, setup), jax.random.PRNGKey(0))

    phases = phases_of(config, method, student, epochs)
    recorded = sum(phase.epochs for phase in phases if phase.record)
    if recorded != len(counts):
        counts = policy.keep_counts(num_points, recorded)
    remaining = iter(counts)
    sizes = tuple(next(remaining) if phase.record else num_points for phase, _ in epochs_of(phases))
    return Run(
        student,
        teacher,
        method,
        policy,
        weights,
        phases,
        setup,
        sizes,
        tuple(size // config.batch for size in sizes),
        rows,
        () if dataset.train.draws_crops else area,
    )


def _refuse_an_idle_term(config: ConfigDict, weights: Weights) -> None:
    whose = getattr(methods.get(config.method.name), 'WEIGHTS_OF', '')
    own = methods.weights(config.method, {})['beta']
    if whose and own > 0 and weights.beta == 0:
        name = config.method[whose]
        raise ValueError(
            f'{whose} {name} counts with weights.beta, which is 0; give {whose}={name} in the words after the config '
            f'file, which sets the weights too, or --config.weights.beta={own:g}'
        )


def _setup(config, dataset, student, teacher, teacher_variables) -> Setup:
    labels = dataset.train.labels
    rows = table_rows(len(labels))
    all_labels = np.zeros(rows, np.int32)
    all_labels[: len(labels)] = labels
    student_shapes = state.output_shapes(student, dataset.image_shape, config.batch)
    teacher_shapes = (
        student_shapes if teacher is None else state.output_shapes(teacher, dataset.image_shape, config.batch)
    )
    return Setup(
        student=student_shapes,
        teacher=teacher_shapes,
        num_points=len(labels),
        rows=rows,
        num_classes=dataset.num_classes,
        batch=config.batch,
        image_shape=dataset.image_shape,
        labels=all_labels,
        student_network=student,
        teacher_network=teacher,
        teacher_variables=teacher_variables,
    )


def cost(run: Run, config: ConfigDict, num_points: int) -> dict[str, Any]:
    """Samples of the run against KD on all points for `config.epochs` epochs (KCD Eq. 16).

    'scheduled' counts the points of each epoch, 'processed' the full batches (the last partial batch is dropped).
    Only recording phases count: phases that a method puts in front are reported apart.
    """
    recording = [phase.record for phase, _ in epochs_of(run.phases)]
    share = run.rows / config.batch
    sizes = [size for size, record in zip(run.sizes, recording, strict=True) if record]
    scheduled, full = sum(sizes), num_points * config.epochs
    processed = sum(size // config.batch * config.batch for size in sizes)
    processed_full = num_points // config.batch * config.batch * config.epochs
    return {
        'scheduled_samples': round(scheduled * share),
        'scheduled_full': full,
        'processed_samples': round(processed * share),
        'processed_full': processed_full,
        'relative_scheduled': scheduled * share / full,
        'relative_processed': processed * share / processed_full,
        'steps': sum(run.steps),
        'samples_before': sum(size for size, record in zip(run.sizes, recording, strict=True) if not record),
    }


def cost_line(cost: dict[str, Any]) -> str:
    """'cost: scheduled 9,811,200 of 12,000,000 points (81.76 %), processed ...'."""
    return (
        f'cost: scheduled {cost["scheduled_samples"]:,} of {cost["scheduled_full"]:,} points '
        f'({100 * cost["relative_scheduled"]:.2f} %), processed {cost["processed_samples"]:,} of '
        f'{cost["processed_full"]:,} ({100 * cost["relative_processed"]:.2f} %) in {cost["steps"]:,} steps'
    )


def metric_names(run: Run) -> tuple[str, ...]:
    """The names of the method's own metrics, from its abstract outputs."""
    setup, rows = run.setup, run.rows
    seen = rows * run.method.num_views

    def abstract(rows: int, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    student, teacher = jax.tree.map(lambda x: abstract(seen, x.shape[1:], x.dtype), (setup.student, setup.teacher))
    index = abstract(rows, dtype=jnp.int32)
    batch = Batch(index, abstract(seen, setup.image_shape), index, index, abstract(rows), abstract(rows))
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    params, method_state = jax.eval_shape(lambda k: run.method.init(k, setup), key)
    found: list[str] = []
    for phase in run.phases:
        for update in phase.updates:
            clock = Clock(scalar, scalar, scalar)
            out = jax.eval_shape(update.loss, params, method_state, student, teacher, batch, clock, key)
            found += [name for name in out.metrics if name not in found and name not in state.METRICS]
    return tuple(found)


def describe(run: Run, config: ConfigDict, dataset: Dataset, *, device_count: int, teacher_line: str) -> list[str]:
    """The lines that `--check` prints."""
    num_points = len(dataset.train.labels)
    abstract = jax.eval_shape(lambda key: run.student.init(key, dataset.image_shape), jax.random.PRNGKey(0))
    parameters = state.parameter_count(abstract)
    main = run.phases[-1].optimisers['main']
    rates = [main.lr(epoch) for epoch in range(run.phases[-1].epochs)]
    steps_of_rate = [(epoch, rate) for epoch, rate in enumerate(rates) if epoch == 0 or rate != rates[epoch - 1]]
    images = sum(math.prod(x.images.shape) for x in (dataset.train, dataset.test) if not x.streamed)
    streamed = ''
    if dataset.train.streamed:
        size = config.batch * math.prod(dataset.image_shape) * (2 if run.policy.mixes else 1)
        readers = f'{config.data.workers} processes' if config.data.workers else 'threads, one a core'
        streamed = f'; the points are streamed by {readers}, up to {size / 2**20:,.1f} MiB a batch'
    schedule = ', '.join(f'{rate:g} from epoch {epoch + 1}' for epoch, rate in steps_of_rate)
    changes = [(e, n) for e, n in enumerate(run.sizes) if e == 0 or n != run.sizes[e - 1]]
    sizes = ', '.join(f'{size:,} from epoch {epoch + 1}' for epoch, size in changes[:8]) + (
        ' ...' if len(changes) > 8 else ''
    )
    weights = run.weights
    return [
        f'data       {dataset.description}; {num_points:,} training points, {dataset.num_classes} classes',
        f'student    {run.student.name}, {parameters:,} parameters',
        f'teacher    {teacher_line}',
        f'method     {config.method.name}: {weights.gamma:g} * CE + {weights.alpha:g} * KD(T={weights.temperature:g})'
        f' + {weights.beta:g} * extra',
        f'policy     {config.policy.name}: {sizes}',
        f'           {cost_line(cost(run, config, num_points))}',
        f'batch      {config.batch} over {device_count} device(s); the learning rate is not rescaled: {schedule}',
        f'phases     {", ".join(f"{phase.name} ({phase.epochs} epochs)" for phase in run.phases)}',
        f'memory     {images / 2**20:,.0f} MiB of images on each device, '
        f'{8 * run.setup.rows / 2**10:,.0f} KiB of value table in all{streamed}',
    ]
