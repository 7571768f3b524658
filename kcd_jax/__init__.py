"""kcd_jax: Knowledge Condensation Distillation in JAX and Flax.

`Condenser`, `knowledge`, `methods`, `policies` and `networks` are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'

_MODULES = ('knowledge', 'methods', 'networks', 'policies')
__all__ = ['Condenser', '__version__', 'knowledge', 'methods', 'networks', 'policies']


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f'{__name__}.{name}')
    if name == 'Condenser':
        return importlib.import_module(f'{__name__}.knowledge').Condenser
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
