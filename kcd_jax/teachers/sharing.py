"""A teacher on several processes, of which only the first needs to see its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kcd_jax import networks
from kcd_jax.contracts import Network, PyTree
from kcd_jax.runtime import distributed
from kcd_jax.teachers.teacher import Teacher


def on_all_processes(restore: Callable[[], Teacher], dtype: Any, network: Network | None = None) -> Teacher:
    """The teacher that `restore` returns on the first process, on every process; collective.

    Args:
      restore: called on the first process only.
      dtype: of the computation, as `restore` uses it.
      network: the teacher's, where it was built in Python; None: its card says it.

    Raises:
      ValueError: `restore` raised it; it is raised on every process.
    """
    found = None
    with distributed.together():
        if distributed.is_first():
            found = restore()
    about = None if found is None else [found.card, found.source, found.identity]
    card, source, identity = json.loads(distributed.from_first(json.dumps(about, default=str).encode()))
    if found is None:
        network, variables = _like(card, dtype, network)
    else:
        network, variables = found.network, found.variables
    return Teacher(network, distributed.arrays_from_first(variables), card, source, identity)


def _like(card: Mapping[str, Any], dtype: Any, network: Network | None) -> tuple[Network, PyTree]:
    """(network, variables of zeros) of the teacher that a card describes."""
    network = network or networks.get(card['network'])(card['num_classes'], dtype=dtype)
    shapes = network.variable_shapes(tuple(card['image_shape']))
    return network, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
