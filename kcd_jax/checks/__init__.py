"""What every method, policy, network and data set must do, checked on any file: `check_plugin('mine.py')`.

The package's own tests run the same functions. Each takes a case (the thing itself with synthetic inputs), has a
one-line docstring that says what holds, and raises `Failed` with a line that says what does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from kcd_jax import paths, plugins

# The kinds of files, with the package that finds them and the module here that checks them.
KINDS = {'methods': 'method', 'policies': 'policy', 'networks': 'network', 'data': 'dataset'}


class Failed(ValueError):
    """A check that does not hold: one line."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The outcome of one check.

    Attributes:
      check: what should hold.
      error: what does not; '' if it holds.
    """

    check: str
    error: str = ''


def require(condition: Any, line: str) -> None:
    """Raises `Failed(line)` unless the condition holds."""
    if not condition:
        raise Failed(line)


def check_plugin(path: str | os.PathLike[str], *, say: Callable[[str], None] = print) -> list[Found]:
    """Runs the common checks on a file of a method, a policy, networks or a data set; prints a line per check.

    Args:
      path: the file; its kind is that of its folder ('methods', 'policies', 'networks', 'data'), or of what it has:
        NAMES and `make`, `load`, or what `make()` returns.
      say: takes the lines.

    Returns:
      The checks in order; those with an `error` do not hold.

    Raises:
      ValueError: there is no such file, it cannot be loaded, it is none of these, or its name is taken.
    """
    file = paths.expand(path).resolve()
    if not file.is_file() or file.suffix != '.py':
        raise ValueError(f'{path} is no Python file; give the file of a method, a policy, networks or a data set')
    with _known(file) as (kind, module):
        name = file.stem
        checks = importlib.import_module(f'kcd_jax.checks.{KINDS[kind]}')
        found = []
        for title, case in checks.cases(module, name):
            for check in (_built, *checks.CHECKS):
                label = f'{title}: {check.__doc__.strip().rstrip(".")}'
                try:
                    check(case())
                except Exception as error:  # whatever a user's file raises is a line here
                    kind_of = '' if isinstance(error, Failed) else f'{type(error).__name__}: '
                    reason = ' '.join(str(error).split()) or 'no message'
                    found.append(Found(label, f'{kind_of}{reason[:500]}'))
                    say(f'FAILED {label} ({found[-1].error})')
                    if check is _built:
                        break
                else:
                    found.append(Found(label))
                    say(f'ok     {label}')
    failed = sum(bool(one.error) for one in found)
    say(f'{len(found) - failed} of {len(found)} checks of {file.name} hold')
    return found


def _built(case: Any) -> None:
    """It can be built and set up."""
    del case


@contextlib.contextmanager
def _known(file: pathlib.Path) -> Iterator[tuple[str, ModuleType]]:
    """(kind, module) of a file while its folder is one of the package's that look for such files."""
    kinds = [file.parent.name] if file.parent.name in KINDS else list(KINDS)
    tried = []
    for kind in kinds:
        package = importlib.import_module(f'kcd_jax.{kind}')
        full = f'kcd_jax.{kind}.{file.stem}'
        taken = importlib.util.find_spec(full)
        if taken is not None and pathlib.Path(taken.origin).resolve() != file:
            tried.append(f'{file.stem!r} is the name of {taken.origin}; give your file another name')
            continue
        package.__path__.append(str(file.parent))
        try:
            module = plugins.load(package, file.stem, 'file')
            if _is(kind, module):
                yield kind, module
                return
        finally:
            package.__path__.remove(str(file.parent))
            if taken is None:
                sys.modules.pop(full, None)
                vars(package).pop(file.stem, None)
    raise ValueError(
        tried[0]
        if tried
        else f'{file} is none of the package: a method or policy has make(*, ...), networks have NAMES and make(name, '
        'num_classes, ...), a data set load(request); put it into a folder methods, policies, networks or data'
    )


def _is(kind: str, module: ModuleType) -> bool:
    """Whether a module is of a kind."""
    from kcd_jax.contracts import Method, Policy

    if kind == 'networks':
        return hasattr(module, 'NAMES')
    if kind == 'data':
        return hasattr(module, 'load') or hasattr(module, 'SHAPES')
    if hasattr(module, 'NAMES') or not callable(getattr(module, 'make', None)):
        return False
    try:
        made = module.make()
    except Exception as error:
        raise ValueError(
            f'make() of {module.__file__} raises {type(error).__name__}: {error}; the arguments of '
            'a method or policy need defaults that work, and networks need NAMES'
        ) from error
    return isinstance(made, Method if kind == 'methods' else Policy)
