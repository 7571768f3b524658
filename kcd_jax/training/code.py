"""Digests of what functions compute, which neither their names nor any weights tell.

Those of networks built in Python are taken of the program that JAX traces and of the arrays in it; the backward rule of
a `custom_vjp` is not seen. Those of methods, policies and networks with a config name are taken of their files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kcd_jax
from kcd_jax import networks, plugins
from kcd_jax.contracts import Network, PyTree
from kcd_jax.runtime import environment
from kcd_jax.teachers.teacher import Teacher

_WRITERS = ('jax', 'flax', 'equinox', 'keras')  # packages whose versions may write the same code otherwise
_PYTHON = ('pure_callback', 'io_callback')  # calls of Python, whose code no program holds
_PLACES = re.compile(r'0x[0-9a-f]+|\w*Device\(id=\d+[^)]*\)')  # what a program names of a process or a machine


def of_student(network: Network, image_shape: tuple[int, int, int], batch: int) -> str:
    """'VERSIONS:DIGEST' of the program of a network, in training and not."""
    return _versioned([_program(network, image_shape, *mode)[0] for mode in ((batch, True), (1, False))])


@functools.lru_cache(maxsize=16)
def of_start(network: Network, image_shape: tuple[int, int, int]) -> str:
    """In the same way, of the weights that its training begins with, or of how they are drawn."""
    return _versioned(digest(lambda key: network.init(key, image_shape), jax.random.key(0)))


def of_file(module: ModuleType) -> str:
    """'ORIGIN:DIGEST' of the file of a method, a policy or a network; '' if it has no text.

    ORIGIN is equal for a user's own file, as long as Python's version is; for one of the package only within one commit
    of its checkout, or one release: other versions may compute the same.
    """
    origin = 'own file'
    if not plugins.is_own(module):
        commit = environment.commit() or kcd_jax.__version__
        origin = f'kcd_jax {commit.removesuffix("-dirty")}'
    digest = plugins.code(module)
    return digest and f'python {sys.version_info.major}.{sys.version_info.minor} {origin}:{digest}'


def of_networks(teacher: Teacher, image_shape: tuple[int, int, int]) -> str:
    """'ORIGIN:DIGEST' of a teacher's networks, by program or file; '' for functions and stored outputs."""
    if teacher.members:
        found = [one.rpartition(':') for member in teacher.members if (one := of_networks(member, image_shape))]
        origins = ' '.join(sorted({origin for origin, _, _ in found}))
        return f'{origins}:{short([digest for _, _, digest in found])}' if found else ''
    if teacher.host is not None:
        return ''
    if teacher.network.name in networks.names():
        return of_file(networks.file_of(teacher.network.name))
    return _versioned(of_teacher(teacher, image_shape))


def of_teacher(teacher: Teacher, image_shape: tuple[int, int, int]) -> str | list[Any]:
    """The digest of a teacher's network, or of those of its members; [] for functions and stored outputs."""
    if teacher.host is not None:
        return [of_teacher(member, image_shape) for member in teacher.members]
    return _program(teacher.network, image_shape)[0]


def calls_python(teacher: Teacher, image_shape: tuple[int, int, int]) -> bool:
    """Whether a network of the teacher calls Python: what it answers is then not known by its code."""
    if teacher.host is not None:
        return any(calls_python(member, image_shape) for member in teacher.members)
    return _program(teacher.network, image_shape)[1]


def digest(function: Callable[..., Any], *arguments: Any) -> str:
    """A digest of what a function computes of arguments of these shapes."""
    return _digest(_traced(function, *arguments))


@functools.lru_cache(maxsize=16)
def _program(
    network: Network, image_shape: tuple[int, int, int], batch: int = 1, train: bool = False
) -> tuple[str, bool]:
    """(a digest of a network's operations and of the arrays that its code holds, whether it calls Python)."""

    def answer(variables: PyTree, image: jax.Array) -> Any:
        outputs, _ = network.apply(variables, image, train)
        return outputs.logits, outputs.embed

    image = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    closed = _traced(answer, network.variable_shapes(image_shape), image)
    return _digest(closed), any(step.primitive.name in _PYTHON for part in _inside(closed) for step in part.eqns)


def _traced(function: Callable[..., Any], *arguments: Any) -> Any:
    """The program of a function, whatever the process's settings are: they are no part of its code."""
    with jax.disable_jit(False), jax.default_matmul_precision(None):
        return jax.make_jaxpr(function)(*arguments)


def _digest(closed: Any) -> str:
    found = hashlib.sha256(_PLACES.sub('', str(closed.jaxpr)).encode())
    for part in _inside(closed):
        for constant in getattr(part, 'consts', ()):
            key = jax.dtypes.issubdtype(getattr(constant, 'dtype', np.float32), jax.dtypes.prng_key)
            found.update(np.ascontiguousarray(jax.random.key_data(constant) if key else constant).tobytes())
    return found.hexdigest()


def _inside(jaxpr: Any) -> Iterator[Any]:
    """A program and those inside it (`jit`, `scan`, `cond`)."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(part, 'eqns'):
                    yield from _inside(part)


def _versioned(digests: Any) -> str:
    versions = [f'{name} {sys.modules[name].__version__}' for name in _WRITERS if name in sys.modules]
    versions.append(f'backend {jax.default_backend()}')  # layers of this package have variants for a CPU
    return f'{" ".join(versions)}:{short(digests)}'


def short(content: Any) -> str:
    """32 hexadecimal digits of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
