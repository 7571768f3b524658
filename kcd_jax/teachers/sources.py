"""A teacher from words: what `teacher.checkpoint` names."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp

from kcd_jax import paths
from kcd_jax.networks.layers import Normalization
from kcd_jax.runtime import distributed
from kcd_jax.teachers import outputs
from kcd_jax.teachers.sharing import on_all_processes
from kcd_jax.teachers.teacher import Teacher

JOINED = '+'  # between the files of an ensemble


def parts(source: str) -> list[str]:
    """The files that `source` names: several, joined by '+', are an ensemble.

    >>> parts('first.safetensors+outputs.npz')
    ['first.safetensors', 'outputs.npz']
    """
    return [source] if paths.expand(source).exists() else source.split(JOINED)


def teacher_of(
    source: str,
    network: str = '',
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    normalization: Normalization | None = None,
    dtype: str = 'float32',
) -> Teacher:
    """The teacher that `source` names: a file of weights, a run's folder, stored outputs, or an ensemble of these.

    With several processes only the first needs to see a file of weights; all of them read the others.

    Args:
      source: of `teacher.checkpoint`.
      network: of a file of weights, as for `Teacher.restore`; the members of an ensemble say theirs themselves.
      num_classes, image_shape, normalization: as for `Teacher.restore`.
      dtype: of the computation.

    Raises:
      ValueError: in one line, what cannot be read, or does not fit together.
    """
    named = distributed.first(lambda: parts(source))  # what a name means must not differ between processes
    if len(named) > 1:
        members = [teacher_of(part, '', num_classes, image_shape, normalization, dtype) for part in named]
        return dataclasses.replace(Teacher.ensemble(members), source=source)
    if distributed.first(lambda: outputs.is_outputs(source)):
        with distributed.together():
            found = Teacher.from_outputs(source)
        return found
    restore = functools.partial(Teacher.restore, source, network, num_classes, image_shape, normalization)
    return on_all_processes(functools.partial(restore, dtype=jnp.dtype(dtype)), jnp.dtype(dtype))
