"""One file per distillation method; the file's name is the config name. `_template.py` shows how to add one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kcd_jax import plugins

__path__ += plugins.own_folders('methods')


def names() -> list[str]:
    """The config names of all methods."""
    return plugins.names(sys.modules[__name__])


def get(name: str) -> ModuleType:
    """The module of a method: `get(name).make(...)` builds it; ValueError names the known ones.

    >>> method = get('kd').make()
    >>> method.num_views, get('crd').WEIGHTS.beta
    (1, 0.8)
    """
    return plugins.get(sys.modules[__name__], name, 'method')


def weights(section: Mapping[str, Any], of_pair: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{'gamma', 'alpha', 'beta', 'temperature'} that a method takes unless it is told otherwise.

    They are its own, or where one of its keywords names another method (`WEIGHTS_OF`), that one's.

    Args:
      section: {'name': the method, and its keywords}. of_pair: {method: parts that a pair of networks has otherwise}.
    """
    name = section.get(getattr(get(section['name']), 'WEIGHTS_OF', ''), section['name'])
    return {**dataclasses.asdict(get(name).WEIGHTS), **of_pair.get(name, {})}
