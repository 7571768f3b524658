"""One file per selection policy; the file's name is the config name. `_template.py` shows how to add one."""

from __future__ import annotations

import sys
from types import ModuleType

from kcd_jax import plugins

__path__ += plugins.own_folders('policies')


def names() -> list[str]:
    """The config names of all policies."""
    return plugins.names(sys.modules[__name__])


def get(name: str) -> ModuleType:
    """The module of a policy: `get(name).make(...)` builds it; ValueError names the known ones."""
    return plugins.get(sys.modules[__name__], name, 'policy')
