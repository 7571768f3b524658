"""One file per method, policy, network and data set: found by the file's name, with no registry to edit.

The files lie in the package's own folders, and in the folders of the same names (methods, policies, networks, data)
under each folder that the environment variable KCD_JAX_PLUGINS lists, separated as in PATH.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kcd_jax import paths

_sources: dict[str, tuple[Any, str]] = {}  # {module: (its spec, its text when it was loaded)}


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
        module = importlib.import_module(f'{package.__name__}.{name}')
        _source(module)
        return module
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
        module.make = _describing(kind, name, module.make)
    return module


def _describing(kind: str, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, whose result says how to make it again: fields `name` and `keywords`."""

    @functools.wraps(make)
    def described(**keywords: Any) -> Any:
        signature = inspect.signature(make)
        try:
            bound = signature.bind(**keywords)
        except TypeError as error:
            known = ', '.join(signature.parameters) or 'no keywords'
            raise TypeError(f'{kind} {name} {error}; it takes {known}') from None
        bound.apply_defaults()
        return dataclasses.replace(make(**keywords), name=name, keywords=dict(bound.arguments))

    described.described = True
    return described


def code(module: ModuleType) -> str:
    """A digest of the statements of a file, and of the files of its package that it imports, as they were loaded.

    Comments, docstrings and layout do not count. Helpers in other places are not seen.
    """
    package, found, waiting = module.__name__.rpartition('.')[0], {}, [module.__name__]
    while waiting:
        name = waiting.pop()
        if name in found or name not in sys.modules:
            continue
        found[name], imported = _statements(_source(sys.modules[name]), package)
        waiting += [other for other in imported if other.startswith(f'{package}.')]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:32]


class _Bare(ast.NodeTransformer):
    """Removes docstrings, and other statements that are only a text."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


@functools.lru_cache(maxsize=256)
def _statements(text: str, package: str) -> tuple[str, tuple[str, ...]]:
    """(what a file says, what it imports: absolute names; of `from a import b` also 'a.b', which may be a module)."""
    tree, imported = _Bare().visit(ast.parse(text)), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = '.'.join(filter(None, (package if node.level == 1 else '', node.module)))
            imported += [origin, *(f'{origin}.{alias.name}' for alias in node.names)]
    return ast.dump(tree), tuple(imported)


def _source(module: ModuleType) -> str:
    """The text of a module when it was last loaded, or at the first call."""
    spec, text = _sources.get(module.__name__, (None, ''))
    if spec is None or spec is not module.__spec__:  # a reload sets another one
        try:
            text = inspect.getsource(module)
        except (OSError, TypeError):  # no file, or an empty one
            text = ''
        _sources[module.__name__] = (module.__spec__, text)
    return text


def hyper_parameters(module: ModuleType) -> dict[str, Any]:
    """{keyword: default} of the module's `make(*, ...)`, its only hyper-parameters."""
    return {p.name: p.default for p in inspect.signature(module.make).parameters.values()}
