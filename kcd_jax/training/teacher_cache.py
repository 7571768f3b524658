"""Keys of the caches of teachers' answers, shared by the runs of a process or a machine."""

from __future__ import annotations

import functools
import hashlib
import json
import re
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

_SHARED: dict[str, Cache] = {}  # the caches of this process


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
    if run.host is None:
        content['code'] = traced(run.teacher.network, run.data.image_shape)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=16)
def traced(network: Network, image_shape: tuple[int, int, int]) -> str:
    """A digest of a network's operations, which neither its name nor its weights tell: code changes."""
    variables = network.variable_shapes(image_shape)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def answer(variables: PyTree, image: jax.Array) -> Any:
        outputs, _ = network.apply(variables, image, False)
        return outputs.logits, outputs.embed

    closed = jax.make_jaxpr(answer)(variables, image)
    found = hashlib.sha256(re.sub('0x[0-9a-f]+', '', str(closed.jaxpr)).encode())  # without addresses of functions
    for constant in closed.consts:
        found.update(np.ascontiguousarray(constant).tobytes())
    return found.hexdigest()


def open_cache(run: Run, key: str, size: int, width: int) -> Cache | None:
    """The cache of `identity` `key` with `size` rows, where the run keeps answers; None where it keeps none."""
    teaching = run.recipe.teaching
    if teaching.cache == 'off' or not isinstance(run.teacher, Teacher):
        return None
    where = None if teaching.cache == 'memory' else teaching.cache
    name = f'{where} {key}'
    if name not in _SHARED:
        about = {'teacher': run.teacher_network.name, 'data': run.data.name}
        _SHARED[name] = Cache(where, key, size=size, width=width, dtype=teaching.cache_dtype, about=about)
    _SHARED[name].bound(teaching.cache_gb * 2**30)
    return _SHARED[name]
