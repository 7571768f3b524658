"""One file per method, policy and network: found by the file's name, with no registry to edit.

The files lie in the package's own folders, and in the folders of the same names (methods, policies, networks) under
each folder that the environment variable KCD_JAX_PLUGINS lists, as PATH does.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pathlib
import pkgutil
from types import ModuleType
from typing import Any


def own_folders(kind: str) -> list[str]:
    """The user's own folders of a kind of file ('methods', ...), for the package's `__path__`; its own come first."""
    roots = filter(None, os.environ.get('KCD_JAX_PLUGINS', '').split(os.pathsep))
    return [str(pathlib.Path(root, kind).resolve()) for root in roots]


def names(package: ModuleType) -> list[str]:
    """The config names in a package: its public modules, as they lie in its folders now."""
    return sorted({m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith('_')})


def unknown(kind: str, name: str, known: list[str]) -> str:
    """'unknown KIND ...': one line that names the near ones and all known ones."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    return f'unknown {kind} {name!r}{hint}; known: {", ".join(known)}'


def get(package: ModuleType, name: str, kind: str) -> ModuleType:
    """The module `name` of a package; ValueError with the known names otherwise."""
    known = names(package)
    if name not in known:
        raise ValueError(unknown(kind, name, known))
    return importlib.import_module(f'{package.__name__}.{name}')


def hyper_parameters(module: ModuleType) -> dict[str, Any]:
    """{keyword: default} of the module's `make(*, ...)`, its only hyper-parameters."""
    return {p.name: p.default for p in inspect.signature(module.make).parameters.values()}
