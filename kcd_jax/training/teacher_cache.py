"""Keys of the caches of teachers' answers, shared by the runs of a process or a machine."""

from __future__ import annotations

import os
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax.sharding import Mesh

import kcd_jax
from kcd_jax.teachers.cache import Cache
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import code
from kcd_jax.training.run import Run

_SHARED: dict[str, Cache] = {}  # the caches in this process's memory, the one opened last at the end
_NOT_NUMBERS = ('device_count', 'timeout', 'xla_dump')  # in the names of flags of XLA that change no answer


def identity(run: Run, mesh: Mesh, points: int, views: Any, embed: bool) -> str:
    """32 hexadecimal digits that name all that decides a row: teacher, data, views, program and devices.

    Args:
      run: any.
      mesh: of the devices that compute it.
      points: per call of the compiled program.
      views: JSON values that tell which views the rows answer.
      embed: whether rows hold embeddings.
    """
    device = mesh.devices.flat[0]
    content = {
        'teacher': run.teacher.identity,
        'data': run.data.identity,
        'views': views,
        'embed': embed,
        'dtype': run.recipe.dtype,
        'deterministic': run.recipe.deterministic,
        'stored': run.recipe.teaching.cache_dtype,
        'program': [
            kcd_jax.__version__,
            jax.__version__,
            jaxlib.__version__,
            jax.default_backend(),
            device.device_kind,
            points,
            mesh.size,
            *_flags(),
        ],
        'precision': str(jax.config.jax_default_matmul_precision),
        'code': code.of_teacher(run.teacher, run.data.image_shape),
    }
    return code.short(content)


def _flags() -> list[str]:
    given = (flag.partition('=') for flag in os.environ.get('XLA_FLAGS', '').split())
    last = {name: value for name, _, value in given if not any(part in name for part in _NOT_NUMBERS)}
    return sorted(f'{name}={value}' for name, value in last.items())


def views_of(run: Run) -> list[Any]:
    """JSON values that tell which views of a point a run's method makes of what the recipe's augmentation shows."""
    if run.method.views is None:
        return [run.method.num_views]
    image = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    return [run.method.num_views, run.method.name, code.digest(run.method.views, image)]


def open_cache(run: Run, key: str, size: int, width: int) -> Cache | None:
    """The cache of `identity` `key` with `size` rows, where the run keeps answers; None where it keeps none."""
    teaching = run.recipe.teaching
    if teaching.cache == 'off' or not isinstance(run.teacher, Teacher):
        return None
    if code.calls_python(run.teacher, run.data.image_shape):
        return None
    limit = teaching.cache_gb * 2**30
    sizes = {'size': size, 'width': width, 'dtype': teaching.cache_dtype, 'limit_bytes': limit}
    if teaching.folder:
        about = {'teacher': run.teacher_network.name, 'data': run.data.name}
        cache = Cache(teaching.folder, key, **sizes, about=about)
        if not cache.in_memory:
            return cache
    cache = _SHARED.pop(key, None) or Cache(None, key, **sizes, room=_room)
    cache.bound(limit)
    cache.user = weakref.ref(run)
    _SHARED[key] = cache
    return cache


def _room(cache: Cache) -> bool:
    """Whether the caches in memory may hold another row of this one; those of other runs go, the oldest first."""
    run = cache.user()
    while sum(one.memory for one in {*_SHARED.values(), cache}) + cache.row_bytes + 4 > cache.limit_bytes:
        oldest = next((key for key, one in _SHARED.items() if one is not cache and one.user() is not run), None)
        if oldest is None:
            return False
        del _SHARED[oldest]  # a run that uses it keeps it
    return True
