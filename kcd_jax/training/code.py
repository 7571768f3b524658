"""Digests of what functions compute, which neither their names nor any weights tell."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import networks
from kcd_jax.contracts import Network, PyTree
from kcd_jax.teachers.teacher import Teacher

_PYTHON = ('pure_callback', 'io_callback')  # calls of Python, whose code no program holds


def of_student(network: Network, image_shape: tuple[int, int, int]) -> str:
    """'VERSION of JAX:DIGEST' of a network, in training and not; another version may write the same code otherwise."""
    return _version([_program(network, image_shape, train)[0] for train in (True, False)])


def of_own(teacher: Teacher, image_shape: tuple[int, int, int]) -> str:
    """In the same way, of a teacher that holds a network that was built in Python; '' of all others."""
    own = teacher.host is None and teacher.network.name not in networks.names()
    if own or any(of_own(member, image_shape) for member in teacher.members):
        return _version(of_teacher(teacher, image_shape))
    return ''


def of_teacher(teacher: Teacher, image_shape: tuple[int, int, int]) -> str | list[Any]:
    """The digest of a teacher's network, or of those of its members; [] for functions and stored outputs.

    Raises:
      ValueError: a network calls Python.
    """
    if teacher.host is not None:
        return [of_teacher(member, image_shape) for member in teacher.members]
    found, calls = _program(teacher.network, image_shape)
    if calls:
        raise ValueError(
            f'the teacher {teacher.network.name} calls Python ({calls}), so that its answers cannot be known by its '
            'code; give the function itself: Teacher.from_callable(...)'
        )
    return found


def digest(function: Callable[..., Any], *arguments: Any) -> str:
    """A digest of what a function computes of arguments of these shapes."""
    return _digest(jax.make_jaxpr(function)(*arguments))


@functools.lru_cache(maxsize=16)
def _program(network: Network, image_shape: tuple[int, int, int], train: bool = False) -> tuple[str, str]:
    """(a digest of a network's operations and of the arrays that its code holds, the operation that calls Python)."""

    def answer(variables: PyTree, image: jax.Array) -> Any:
        outputs, _ = network.apply(variables, image, train)
        return outputs.logits, outputs.embed

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    closed = jax.make_jaxpr(answer)(network.variable_shapes(image_shape), image)
    names = (equation.primitive.name for jaxpr in _inside(closed) for equation in jaxpr.eqns)
    return _digest(closed), next((name for name in names if name in _PYTHON), '')


def _digest(closed: Any) -> str:
    found = hashlib.sha256(re.sub('0x[0-9a-f]+', '', str(closed.jaxpr)).encode())  # without addresses of functions
    for jaxpr in _inside(closed):
        for constant in getattr(jaxpr, 'consts', ()):
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


def _version(digests: Any) -> str:
    return f'{jax.__version__}:{hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32]}'
