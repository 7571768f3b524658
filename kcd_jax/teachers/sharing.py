"""A teacher on several processes, of which only the first needs to see its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kcd_jax.runtime import distributed
from kcd_jax.teachers import teacher as teachers
from kcd_jax.teachers.teacher import Teacher


def on_all_processes(restore: Callable[[], Teacher], dtype: Any) -> Teacher:
    """The teacher that `restore` returns on the first process, on every process; collective.

    Args:
      restore: called on the first process only.
      dtype: of the computation, as `restore` uses it.

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
        network, variables = teachers.like(card, tuple(card['image_shape']), dtype)
    else:
        network, variables = found.network, found.variables
    return Teacher(network, distributed.arrays_from_first(variables), card, source, identity)
