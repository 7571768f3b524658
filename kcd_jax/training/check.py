"""What `--check` prints: everything about a run that is known before its first step, and its cost."""

from __future__ import annotations

import math
from typing import Any

from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import code, ledger, serving, state
from kcd_jax.training.run import Run


def lines(run: Run, device_count: int) -> list[str]:
    """The run, part by part, checked; the run that trains its teacher is checked too.

    Args:
      run: any.
      device_count: devices that the batch is split over.

    Raises:
      ValueError: what was found and what to do, in one line.
    """
    run.validate(device_count)
    if isinstance(run.teacher, Run) and run.uses_teacher:
        run.teacher.validate(device_count)
    weights, recipe, dataset = run.weights, run.recipe, run.data
    parameters = state.parameter_count(run.student_network.variable_shapes(dataset.image_shape))
    main = run.phases[-1].optimisers['main'] if 'main' in run.phases[-1].optimisers else None
    rates = [main.lr(epoch) for epoch in range(run.phases[-1].epochs)] if main is not None else []
    terms = f'{weights.gamma:g} * CE + {weights.alpha:g} * KD(T={weights.temperature:g}) + {weights.beta:g} * extra'
    schedule = _changes(rates, lambda rate: f'{rate:g}') or "the method's own"
    return [
        f'data       {dataset.description}; {run.num_points:,} training points, {dataset.num_classes} classes',
        *_label_lines(run),
        f'student    {run.student_network.name}, {parameters:,} parameters',
        f'teacher    {_teacher_line(run)}',
        f'method     {run.method.name or "custom"}: {terms}',
        f'policy     {run.policy.name or "custom"}: {_changes(run.sizes, lambda size: f"{size:,}")}',
        f'           {ledger.samples_line(ledger.sample_counts(run))}',
        f'batch      {recipe.batch} over {device_count} device(s); learning rate (never rescaled): {schedule}',
        *_recipe_lines(run),
        *_score_lines(run),
        *_view_lines(run),
        f'phases     {", ".join(f"{phase.name} ({phase.epochs} epochs)" for phase in run.phases)}',
        f'memory     {_memory_line(run)}',
        *_warnings(run),
    ]


def _teacher_line(run: Run) -> str:
    if run.teacher_network is None:
        return 'none'
    if run.host is not None:
        line = f'{run.teacher_network.name} ({run.host.kind})'
    elif isinstance(run.teacher, Run):
        trained = f'{run.teacher.recipe.epochs} epochs on {run.teacher.num_points:,} points'
        line = f'{run.teacher_network.name}, trained first: {trained}'
    else:
        line = f'{run.teacher_network.name}{run.teacher.source and f", from {run.teacher.source}"}'
    if not run.needs:
        return f'{line}; scores the training points'
    if run.teacher_in_step:
        return f'{line}; runs inside the step: {run.teacher_in_step}'
    if run.host is not None and not run.host.reads_images:
        return f'{line}; answers before the steps'
    cache = run.recipe.teaching.cache
    if serving.view_count(run) is None:
        named = run.recipe.augment.endless
        cache = f'none, since no view is shown twice{named and f" (augment.{named})"}'
        cache += '; augment.views=V gives each point V views' if named == 'area' else ''
    elif isinstance(run.teacher, Teacher) and code.calls_python(run.teacher, run.data.image_shape):
        cache = 'none, since the network calls Python and its code does not tell what it answers'
    return f'{line}; answers before the steps, cache: {cache}'


def _recipe_lines(run: Run) -> list[str]:
    """What is on of the settings that are off by default."""
    recipe = run.recipe
    optim = recipe.optim
    found = {
        f'optimiser {optim.name}': optim.name != 'sgd',
        f'gradient clipped to norm {optim.clip:g}': optim.clip,
        'weight decay of kernels alone': optim.decay == 'kernels' and optim.weight_decay,
        f'mixup of every point, Beta({recipe.augment.mixup:g})': recipe.augment.mixup,
        f'CutMix of every point, Beta({recipe.augment.cutmix:g})': recipe.augment.cutmix,
        'TrivialAugment': recipe.augment.trivial,
        f'random erasing with probability {recipe.augment.erase:g}': recipe.augment.erase,
        f'label smoothing {recipe.label_smoothing:g}': recipe.label_smoothing,
        f'{recipe.accumulate} micro-batches of {recipe.batch // recipe.accumulate} per update': recipe.accumulate > 1,
        f'average of the student with decay {recipe.ema:g}, evaluated and saved': recipe.ema,
    }
    on = ', '.join(text for text, used in found.items() if used)
    return [f'recipe     {on}'] if on else []


def _score_lines(run: Run) -> list[str]:
    """What the teacher's scores of the training points cost, if the policy reads them."""
    if not run.scores_points:
        return []
    names = ', '.join(name.replace('_', ' ') for name in run.policy.teacher_scores)
    return [f'scores     {names} of the teacher on {run.num_points:,} clean images, one forward pass']


def _label_lines(run: Run) -> list[str]:
    """What is done without labels, or without a prediction."""
    lines = []
    if not run.data.labelled:
        lines.append('labels     none: gamma is 0, and the teacher alone says what the images are')
    if not run.predicts:
        lines.append(
            'value      of a point: its own loss, as no logits are trained whose entropy could be taken; evaluated are '
            'the embeddings'
        )
    elif not run.data.scored:
        lines.append('evaluation by agreement with the teacher: the held-out images have no labels')
    return lines


def _view_lines(run: Run) -> list[str]:
    """What `augment.seed` and `augment.views` say, if they are set."""
    if count := run.recipe.augment.views:
        return [f'views      {count} fixed ones per point, the same for all seeds, not a new one in every epoch']
    if run.recipe.augment.seed < 0:
        return []
    return [f'views      drawn with seed {run.view_seed}, whatever the seed of the run: its seeds differ less']


def _memory_line(run: Run) -> str:
    dataset, recipe = run.data, run.recipe
    images = sum(math.prod(split.images.shape) for split in (dataset.train, dataset.test) if not split.streamed)
    line = (
        f'{images / 2**20:,.0f} MiB of images on each device, '
        f'{8 * run.setup.rows / 2**10:,.0f} KiB of value table in all'
    )
    if dataset.train.streamed:
        size = recipe.batch * math.prod(dataset.image_shape) * (2 if run.policy.mixes or run.mixing is not None else 1)
        readers = f'{recipe.workers} processes' if recipe.workers else 'threads, one per core'
        line += f'; points are streamed by {readers}, up to {size / 2**20:,.1f} MiB per batch'
    return line


def _warnings(run: Run) -> list[str]:
    found = []
    if run.uses_teacher and isinstance(run.teacher, Teacher):
        found += [f'note       {line}' for line in run.teacher.fits(run.data)]
    if run.policy.replan is not None and not run.condensations:
        found.append(
            f'warning    policy {run.policy.name} never selects within {run.recording} epochs: it trains on every point'
        )
    return found


def _changes(values: Any, text: Any) -> str:
    """'0.05 from epoch 1, 0.005 from epoch 151': where a value by epoch changes, the first eight."""
    changes = [(epoch, value) for epoch, value in enumerate(values) if epoch == 0 or value != values[epoch - 1]]
    shown = ', '.join(f'{text(value)} from epoch {epoch + 1}' for epoch, value in changes[:8])
    return shown + (' ...' if len(changes) > 8 else '')
