"""Keys of the caches of teachers' answers, shared by the runs of a process or a machine."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh

import kcd_jax
from kcd_jax.contracts import Network, PyTree
from kcd_jax.teachers.cache import Cache
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training.run import Run

_SHARED: dict[str, Cache] = {}  # the caches of this process, the one opened last at the end


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
        ],
        'precision': str(jax.config.jax_default_matmul_precision),
    }
    if code := _code(run.teacher, run.data.image_shape):
        content['code'] = code
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _code(teacher: Teacher, image_shape: tuple[int, int, int]) -> str | list[Any]:
    """Digests of the operations of a teacher's networks, which neither names nor weights tell; '' for functions."""
    if teacher.host is None:
        return traced(teacher.network, image_shape)
    return [_code(member, image_shape) for member in getattr(teacher.host, 'members', ())]


@functools.lru_cache(maxsize=16)
def traced(network: Network, image_shape: tuple[int, int, int]) -> str:
    """A digest of a network's operations and of the arrays that its code holds."""

    def answer(variables: PyTree, image: jax.Array) -> Any:
        outputs, _ = network.apply(variables, image, False)
        return outputs.logits, outputs.embed

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return _digest(answer, network.variable_shapes(image_shape), image)


def views_of(run: Run) -> list[Any]:
    """JSON values that tell which views of a point a run's method makes of what the recipe's augmentation shows."""
    if run.method.views is None:
        return [run.method.num_views]
    image = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    return [run.method.num_views, run.method.name, _digest(run.method.views, image)]


def _digest(function: Callable[..., Any], *arguments: Any) -> str:
    """A digest of what a function computes of arguments of these shapes."""
    closed = jax.make_jaxpr(function)(*arguments)
    found = hashlib.sha256(re.sub('0x[0-9a-f]+', '', str(closed.jaxpr)).encode())  # without addresses of functions
    for constant in _constants(closed):
        found.update(np.ascontiguousarray(constant).tobytes())
    return found.hexdigest()


def _constants(jaxpr: Any) -> Iterator[Any]:
    """Arrays that a program holds, and those of the programs inside it (`jit`, `scan`, `cond`)."""
    yield from getattr(jaxpr, 'consts', ())
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(part, 'eqns'):
                    yield from _constants(part)


def open_cache(run: Run, key: str, size: int, width: int) -> Cache | None:
    """The cache of `identity` `key` with `size` rows, where the run keeps answers; None where it keeps none."""
    teaching = run.recipe.teaching
    if teaching.cache == 'off' or not isinstance(run.teacher, Teacher):
        return None
    where = teaching.folder or None
    name, limit = f'{where} {key}', teaching.cache_gb * 2**30
    cache = _SHARED.pop(name, None)
    if cache is None:
        about = {'teacher': run.teacher_network.name, 'data': run.data.name}
        sizes = {'size': size, 'width': width, 'dtype': teaching.cache_dtype, 'limit_bytes': limit}
        cache = Cache(where, key, **sizes, about=about)
    else:
        cache.bound(limit)
    in_memory = [other for other in _SHARED if _SHARED[other].memory]
    while in_memory and cache.memory + sum(_SHARED[other].memory for other in in_memory) > limit:
        del _SHARED[in_memory.pop(0)]  # the one that was opened longest ago; a run that uses it keeps it
    _SHARED[name] = cache
    return cache
