"""One file per method, policy, network and data set: found by the file's name, with no registry to edit.

The files lie in the package's own folders, and in the folders of the same names (methods, policies, networks, data)
under each folder that the environment variable KCD_JAX_PLUGINS lists, separated as in PATH.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kcd_jax import paths


def own_folders(kind: str) -> list[str]:
    """The user's own folders of a kind of file ('methods', ...), to be appended to a package's `__path__`."""
    roots = filter(None, os.environ.get('KCD_JAX_PLUGINS', '').split(os.pathsep))
    return [str(paths.expand(pathlib.Path(root, kind)).resolve()) for root in roots]


def names(package: ModuleType) -> list[str]:
    """The config names in a package: its public modules, as they are in its folders now."""
    return sorted({m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith('_')})


def unknown(kind: str, name: str, known: list[str]) -> str:
    """'unknown KIND ...': one line that names the nearest name and all known ones."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    return f'unknown {kind} {name!r}{hint}; known: {", ".join(known)}'


def load(package: ModuleType, name: str, kind: str) -> ModuleType:
    """Imports the module `name` of a package.

    Raises:
      ValueError: the file cannot be imported: its place, the error and the line, in one line.
    """
    try:
        return importlib.import_module(f'{package.__name__}.{name}')
    except Exception as error:
        spec = importlib.util.find_spec(f'{package.__name__}.{name}')
        place = spec.origin if spec is not None else name
        line = next((f', line {entry.lineno}' for entry in reversed(inspect.trace()) if entry.filename == place), '')
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise ValueError(f'{kind} {name!r} cannot be loaded from {place}{line} ({reason}); fix that file') from error


def get(package: ModuleType, name: str, kind: str) -> ModuleType:
    """The module `name` of a package. What its `make` returns carries the name and the keywords it was made with.

    Raises:
      ValueError: no file has that name (the known ones are listed), or it cannot be imported.
    """
    known = names(package)
    if name not in known:
        raise ValueError(unknown(kind, name, known))
    module = load(package, name, kind)
    if not hasattr(module, 'make'):
        raise ValueError(f'{kind} {name!r} has no function make in {module.__file__}; see _template.py')
    if not getattr(module.make, 'described', False):
        module.make = _describing(name, module.make)
    return module


def _describing(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, whose result says how to make it again: fields `name` and `keywords`."""

    @functools.wraps(make)
    def described(**keywords: Any) -> Any:
        bound = inspect.signature(make).bind(**keywords)
        bound.apply_defaults()
        return dataclasses.replace(make(**keywords), name=name, keywords=dict(bound.arguments))

    described.described = True
    return described


def hyper_parameters(module: ModuleType) -> dict[str, Any]:
    """{keyword: default} of the module's `make(*, ...)`, its only hyper-parameters."""
    return {p.name: p.default for p in inspect.signature(module.make).parameters.values()}
