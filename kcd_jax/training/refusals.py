"""Checks of a run before anything is compiled; each failure is one line with the remedy."""

from __future__ import annotations

import jax

from kcd_jax import data, methods, paths, policies
from kcd_jax.contracts import Policy, table_rows
from kcd_jax.runtime import sharding
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import serving, unlabelled
from kcd_jax.training.run import Run


def refuse(run: Run, device_count: int) -> None:
    """Refuses a run that cannot work; traces shapes and computes nothing.

    Args:
      run: the run to check.
      device_count: devices that the batch will be split over.

    Raises:
      ValueError: what was found and what to do, in one line.
    """
    batch, shape = run.recipe.batch, run.data.image_shape
    sharding.check(batch, device_count)
    data.stream.check_workers(run.recipe.workers)
    if run.recipe.teaching.folder:
        paths.output_folder(run.recipe.teaching.folder, 'teaching.cache')
    crop = run.recipe.augment.crop
    if crop >= min(shape[:2]):
        raise ValueError(f'augment.crop is {crop} for images of {shape[0]}x{shape[1]}; use less than their size')
    _refuse_recipe(run, device_count)
    if run.teacher_network is not None and isinstance(run.teacher, Teacher):
        run.teacher.fits(run.data)
    unlabelled.refuse(run)
    serving.refuse_unserved(run)
    epochs = run.policy.epochs(run.recipe.epochs)
    if run.recipe.optim.warmup >= epochs:
        raise ValueError(
            f'optim.warmup is {run.recipe.optim.warmup} for {epochs} epochs: the rate never reaches optim.lr; '
            'use fewer than the epochs'
        )
    if run.data.train.streamed:  # a policy that keeps a copy of the images says so here
        jax.eval_shape(lambda: run.policy.init(run.num_points, table_rows(run.num_points), None))
    if run.num_points < batch:
        raise ValueError(f'the {run.num_points} training points are fewer than one batch of {batch}; lower batch')
    smallest = run.policy.min_keep or (lambda num_points, epochs: min(run.policy.keep_counts(num_points, epochs)))
    if (num_keep := smallest(run.num_points, epochs)) < batch:
        raise ValueError(
            f'policy {run.policy.name or "custom"} can leave an epoch {num_keep} of {run.num_points} points, fewer '
            f'than one batch of {batch}; {_more_points(run.policy)}'
        )
    if run.policy.in_batch is not None:
        if run.method.num_views > 1:
            raise ValueError(
                f'method {run.method.name} shows {run.method.num_views} views of a point, and policy '
                f'{run.policy.name} chooses inside the batch; use a policy of the whole set (none, random, kcd)'
            )
        sharding.check(run.rows, device_count, f'policy {run.policy.name} with rows per step of')
    names, records = [phase.name for phase in run.phases], [phase.record for phase in run.phases]
    if len({*names}) < len(names) or records != sorted(records):
        raise ValueError(
            f'method {run.method.name or "custom"} has the phases {", ".join(names)}; give each its own name, and let '
            'those that record come last'
        )
    methods.refuse_idle_term(run.method, run.weights)
    policies.refuse_other_data(run.policy, run.data.source)
    setup = run.setup  # outside of the trace, which it must not depend on
    if (classes := setup.student.logits.shape[-1]) != (wanted := run.data.num_classes):
        name = run.student_network.name
        raise ValueError(f'student {name} has {classes} classes and the data {wanted}; rebuild it for {wanted}')
    methods.refuse_missing_outputs(run.method, setup)
    jax.eval_shape(lambda key: run.method.init(key, setup), jax.random.PRNGKey(0))
    if sum(run.steps) == 0:
        raise ValueError('the run has no step; raise epochs or lower batch')


def _more_points(policy: Policy) -> str:
    """What makes an epoch hold a batch, in words."""
    higher = [f'policy.{key}' for key in ('ratio', 'window') if key in policy.keywords]
    lower = ['policy.fraction'] * ('fraction' in policy.keywords) + ['batch']
    return (f'raise {" or ".join(higher)}, or ' if higher else '') + f'lower {" or ".join(lower)}'


def _refuse_recipe(run: Run, device_count: int) -> None:
    """ValueError for settings of the recipe that do not go with the method or the policy."""
    recipe = run.recipe
    weights = [update.weights or run.weights for phase in run.phases for update in phase.updates]
    if recipe.label_smoothing and not any(one.gamma for one in weights):
        raise ValueError(
            f'label_smoothing is {recipe.label_smoothing:g}, and with weights.gamma=0 there is no cross entropy to '
            'smooth; use label_smoothing=0'
        )
    if recipe.accumulate > 1:
        _refuse_accumulation(run, device_count)
    if run.mixing is None:
        return
    named = 'mixup' if recipe.augment.mixup else 'cutmix'
    if run.policy.in_batch is not None:
        raise ValueError(
            f'augment.{named} and policy {run.policy.name}, which mixes inside the batch, cannot both mix the images; '
            f'use augment.{named}=0, or another policy'
        )
    if run.method.num_views > 1:
        raise ValueError(
            f'method {run.method.name} shows {run.method.num_views} views of one point, and augment.{named} mixes '
            f'points; use augment.{named}=0, or another method'
        )


def _refuse_accumulation(run: Run, device_count: int) -> None:
    """ValueError where a batch cannot be trained on in micro-batches."""
    batch, count = run.recipe.batch, run.recipe.accumulate
    if batch % count:
        near = [n for n in range(1, batch + 1) if batch % n == 0]
        near = sorted(near, key=lambda n: abs(n - count))[0]
        raise ValueError(f'accumulate is {count}, which does not divide batch {batch}; use e.g. {near}')
    sharding.check(batch // count, device_count, f'accumulate {count}: a micro-batch of')
    if run.policy.in_batch is not None:
        raise ValueError(
            f'policy {run.policy.name} chooses inside the whole batch, and accumulate={count} trains on parts of it; '
            'use accumulate=1, or a policy of the whole set (none, random, kcd)'
        )
    if busy := [phase for phase in run.phases if len(phase.updates) > 1]:
        raise ValueError(
            f'method {run.method.name or "custom"} makes {len(busy[0].updates)} updates per step, and '
            f'accumulate={count} works with one; use accumulate=1'
        )
