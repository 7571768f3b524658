"""One file per selection policy; the file's name is the config name. `_template.py` shows how to add one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kcd_jax import plugins
from kcd_jax.contracts import Policy

__path__ += plugins.own_folders('policies')


def names() -> list[str]:
    """The config names of all policies."""
    return plugins.names(sys.modules[__name__])


def get(name: str) -> ModuleType:
    """The module of a policy: `get(name).make(...)` builds it; ValueError names the known ones.

    >>> policy = get('kcd').make(ratio=0.5, stages=2)
    >>> policy.keep_counts(num_points=1000, epochs=6)
    [1000, 707, 707, 707, 500, 500]
    """
    return plugins.get(sys.modules[__name__], name, 'policy')


def refuse_other_data(policy: Policy, source: Mapping[str, Any]) -> None:
    """Raises ValueError if a policy takes its set from a run on other data (`reuse`).

    Args:
      policy: of a run.
      source: `Dataset.source` of that run.
    """
    if policy.name == 'reuse':
        get('reuse').refuse_other_data(policy.keywords['run'], source)
