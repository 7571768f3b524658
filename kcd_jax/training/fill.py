"""Fills a teacher's cache on disk before any run: the views that runs will ask for in their first epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from kcd_jax.contracts import run_key
from kcd_jax.runtime import sharding
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import code, feed, serving, step
from kcd_jax.training.run import Run
from kcd_jax.training.teacher_cache import views_of
from kcd_jax.training.teacher_pass import ROWS, TeacherPass, TeacherQuery

_POINTS = 8 * ROWS  # looked up at once


def refuse(run: Run, device_count: int) -> None:
    """ValueError, in one line, for a run whose teacher has no cache on disk to fill."""
    run.validate(device_count)
    if not run.needs:
        raise ValueError(f'{run.name} reads nothing of a teacher; there is nothing to fill')
    if not isinstance(run.teacher, Teacher):
        raise ValueError(f'the teacher of {run.name} is not trained yet; name its file in teacher.checkpoint')
    if run.host is not None and not run.host.reads_images:
        raise ValueError(f'the teacher of {run.name} holds stored outputs; there is nothing to fill')
    if run.teacher_in_step:
        raise ValueError(f'the teacher of {run.name} runs inside the step and has no cache: {run.teacher_in_step}')
    if not run.recipe.teaching.folder:
        raise ValueError(f'teaching.cache is {run.recipe.teaching.cache!r}; name a folder: teaching.cache=DIR')
    if serving.view_count(run) is None:
        named = run.recipe.augment.endless
        if named in ('', 'area'):
            raise ValueError(
                f'{run.name} has random resized crops, whose views are not finite; '
                'set augment.views for a few per point'
            )
        raise ValueError(f'{run.name} has views by augment.{named}, which are not finite; they cannot be kept')
    if code.calls_python(run.teacher, run.data.image_shape):
        raise ValueError(f'the teacher {run.teacher_network.name} calls Python, so that its answers cannot be kept')
    if run.data.train.draws_crops:
        raise ValueError(f'{run.name} crops images while it reads them; run it once, which fills the cache')


def streams(runs: Sequence[Run], seeds: Sequence[int]) -> list[Run]:
    """The runs, once per seed, that ask for different rows: another teacher or method's views, or another seed."""
    found: dict[str, Run] = {}
    for run in runs:
        for seed in seeds:
            one = run.with_seed(seed)
            kept = one.recipe.teaching.folder, one.recipe.teaching.cache_dtype, one.recipe.dtype
            teacher = one.teacher.identity, code.of_teacher(one.teacher, one.data.image_shape)
            key = *teacher, one.data.identity, views_of(one), one.recipe.augment, one.view_seed
            found.setdefault(repr((*key, 'embed' in one.needs, *kept)), one)
    return list(found.values())


def images(run: Run, epochs: int) -> int:
    """Rows that `fill` looks at."""
    return epochs * run.num_points * run.method.num_views


def fill(run: Run, epochs: int, mesh: Mesh, told: Callable[[int], None]) -> dict[str, int]:
    """Stores the answers to every point's views in the first epochs, as far as they are not stored yet.

    Args:
      run: for which `refuse` found nothing.
      epochs: how many, from the first.
      mesh: of the devices that the runs will use: other ones have another cache.
      told: called with the number of rows looked at since the last call.

    Returns:
      {'computed', 'served', ...: rows}, as `TeacherPass.counts`.

    Raises:
      ValueError: the cache cannot be written, or took no more; what it holds stays.
    """
    asking = TeacherPass(run, sharding.put(run.teacher.variables, sharding.replicated(mesh)), mesh)
    if not asking.cache.on_disk:
        raise ValueError(f'nothing can be stored in {run.recipe.teaching.folder}; name another: teaching.cache=DIR')
    for points, pixels, slot in _points(run, mesh):
        share = np.zeros(len(points), np.float32)
        asked = TeacherQuery(points, pixels, pixels, slot, slot, share, np.ones(len(points), bool))
        for epoch in range(epochs):
            key = step.view_key(run_key(run.seed), np.int32(epoch), run.recipe.augment.seed)
            asking.rows(asked, key)
            if asking.cache.full and asking.counts['computed']:
                asking.cache.sync()
                there = f'{asking.cache.present:,} rows are in {asking.cache.folder}, which takes no more'
                raise ValueError(f'{there}; raise teaching.cache_gb, or make room')
            told(len(points) * run.method.num_views)
    asking.cache.sync()
    return asking.counts


def _points(run: Run, mesh: Mesh) -> Iterator[tuple[np.ndarray, object, np.ndarray]]:
    """(points i32[M], images u8[R, H, W, 3] on the devices, the row of each point i32[M]), all points in order."""
    train = run.data.train
    if not train.streamed:
        resident = feed.Resident(train, run.setup.labels, 1, mesh).points.images
        for start in range(0, len(train), _POINTS):
            points = np.arange(start, min(start + _POINTS, len(train)), dtype=np.int32)
            yield points, resident, points
        return
    batches = feed.HeldOut(train, _POINTS, mesh, run.recipe.workers, keep=False)
    for points, (pixels, _, valid) in zip(batches.index, batches, strict=True):
        points = points[np.asarray(valid)].astype(np.int32)
        yield points, pixels, np.arange(len(points), dtype=np.int32)
