"""One file per method, policy, network and data set: found by the file's name, with no registry to edit.

The files lie in the package's own folders, and in the folders of the same names (methods, policies, networks, data)
under each folder that the environment variable KCD_JAX_PLUGINS lists, separated as in PATH.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import linecache
import os
import pathlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kcd_jax import paths

_loaded: dict[str, tuple[Any, str | None]] = {}  # {module: (its spec, its text when it was loaded)}


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
    full = f'{package.__name__}.{name}'
    try:
        known, module = full in sys.modules, importlib.import_module(full)
        if not known:
            _remember(package.__name__)
        return module
    except Exception as error:
        spec = importlib.util.find_spec(full)
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
        made = make(**keywords)
        _remember(make.__module__.rpartition('.')[0])  # it may import helpers
        return dataclasses.replace(made, name=name, keywords=dict(bound.arguments))

    described.described = True
    return described


def is_own(module: ModuleType) -> bool:
    """Whether a module is a user's own file and not one of the package."""
    return _is_own(module.__spec__)


def code(module: ModuleType) -> str:
    """A digest of the statements of a file, as it was loaded, and of its helpers; '' if it has no text.

    Comments, docstrings and layout do not count. Helpers are modules that the file imports, at any place in it: of a
    user's own file those in the folders of KCD_JAX_PLUGINS, of one of the package those of the same folder.
    """
    own = is_own(module)
    root = 'kcd_jax.' if own else f'{module.__name__.rpartition(".")[0]}.'
    found: dict[str, str] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        spec = None if name in found else _spec(name)
        text = None if spec is None or _is_own(spec) != own else _text(name, spec)
        if text is not None:
            package = name if spec.submodule_search_locations is not None else spec.parent
            found[name], imported = _statements(text, package)
            waiting += [other for other in imported if other.startswith(root)]
    return _sha(repr(sorted(found.items()))) if module.__name__ in found else ''


class _Bare(ast.NodeTransformer):
    """Removes docstrings, and other statements that are only a text."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


@functools.lru_cache(maxsize=256)
def _statements(text: str, package: str) -> tuple[str, tuple[str, ...]]:
    """(a digest of what a file says, what it imports: absolute names; of `from a import b` also 'a.b')."""
    try:
        tree, imported = _Bare().visit(ast.parse(text)), []
    except (SyntaxError, ValueError):  # a helper that cannot be loaded
        return _sha(text), ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # beyond the outermost package
                origin = importlib.util.resolve_name('.' * node.level + (node.module or ''), package)
                imported += [origin, *(f'{origin}.{alias.name}' for alias in node.names)]
    return _sha(ast.dump(tree)), tuple(imported)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]


def _is_own(spec: Any) -> bool:
    return not pathlib.Path(spec.origin or '').is_relative_to(pathlib.Path(__file__).parent)


def _spec(name: str) -> Any:
    """The spec of a module, which is not loaded for it; None if there is no such module."""
    if name in sys.modules:
        return sys.modules[name].__spec__
    parent = name.rpartition('.')[0]
    outer = _spec(parent) if parent else None
    places = None if outer is None else getattr(sys.modules.get(parent), '__path__', outer.submodule_search_locations)
    try:
        return None if places is None else importlib.machinery.PathFinder.find_spec(name, list(places))
    except KeyError:  # in folders without __init__.py that are not loaded
        return None


def _text(name: str, spec: Any) -> str | None:
    """The text of a module when it was last loaded, or now if it is not loaded; None if it has none."""
    known, text = _loaded.get(name, (None, None))
    if known is spec:  # a reload sets another one
        return text
    if (spec.origin or '').endswith('.py'):
        linecache.checkcache(spec.origin)
        text = ''.join(linecache.getlines(spec.origin)) or None
    else:
        text = None  # a compiled one
    if name in sys.modules:
        _loaded[name] = (spec, text)
    return text


def _remember(package: str) -> None:
    """Keeps the texts of modules that were loaded since the last call: those of a package, and a user's own."""
    for name, module in list(sys.modules.items()):
        if name.startswith('kcd_jax.') and name not in _loaded:
            spec = getattr(module, '__spec__', None)
            if spec is not None and (name.startswith(f'{package}.') or _is_own(spec)):
                _text(name, spec)


def hyper_parameters(module: ModuleType) -> dict[str, Any]:
    """{keyword: default} of the module's `make(*, ...)`, its only hyper-parameters."""
    return {p.name: p.default for p in inspect.signature(module.make).parameters.values()}
