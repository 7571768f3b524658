"""Networks by their config name: one file per family, found by listing the folder.

A family's file has NAMES and `make(name, num_classes, *, dtype, normalization) -> Network` (docs/adding_a_network.md).
Models of other frameworks become networks by `from_linen`, `from_nnx`, `from_equinox`, `from_keras` and
`from_functions` (docs/models.md); a framework is imported when one of its models is.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from kcd_jax import plugins
from kcd_jax.contracts import Network

__path__ += plugins.own_folders('networks')

_ADAPTERS = {
    'from_equinox': '_equinox',
    'from_functions': '_foreign',
    'from_keras': '_keras',
    'from_linen': '_linen',
    'from_nnx': '_nnx',
}

_making: contextvars.ContextVar[str] = contextvars.ContextVar('making', default='')  # the network that `get` builds


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return getattr(importlib.import_module(f'{__name__}.{_ADAPTERS[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_ADAPTERS})


def families() -> tuple[dict[str, list[ModuleType]], list[str]]:
    """({network's name: the modules that define it}, why files cannot be used), over the files as they are now.

    A broken file, usually a plug-in, must not stop a command that does not need it. A file without NAMES is no family.
    """
    package, found, failed = sys.modules[__name__], {}, []
    for name in plugins.names(package):
        try:
            module = plugins.load(package, name, 'network file')
            members = [str(member) for member in getattr(module, 'NAMES', ())]
            if members and not callable(getattr(module, 'make', None)):
                raise ValueError('it has NAMES, but no function make')
        except (ValueError, TypeError) as error:
            reason = str(error)
            failed.append(reason if 'cannot be loaded' in reason else f'network file {name!r} cannot be used: {reason}')
            continue
        for member in members:
            found.setdefault(member, []).append(module)
    return found, failed


def names() -> list[str]:
    """Every known name, sorted."""
    return sorted(families()[0])


def unusable() -> list[str]:
    """A line for each file that cannot be used."""
    return families()[1]


def get(name: str) -> Callable[..., Network]:
    """The constructor `(num_classes, *, dtype=jnp.float32, normalization=...) -> Network` of a network.

    `normalization` is a name in `layers.NORMALIZATIONS`, a pair (mean, std) of the channels in [0, 1], or its six
    numbers as text.

    Raises:
      ValueError: an unknown name, with the nearest and the known ones and any file that cannot be used; or a name that
        two files define.

    >>> import jax
    >>> student = get('resnet8')(100)
    >>> shapes = student.variable_shapes((32, 32, 3))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    83892
    """
    return functools.partial(_made, file_of(name), name)


def file_of(name: str) -> ModuleType:
    """The module that defines a network. Raises what `get` does."""
    known, failed = families()
    if name not in known:
        raise ValueError('; '.join([plugins.unknown('network', name, sorted(known)), *failed]))
    if len(known[name]) > 1:
        files = ' and '.join(str(module.__file__) for module in known[name])
        raise ValueError(f'the network {name!r} is defined in {files}; give one of them another name')
    return known[name][0]


def refuse_name(name: str) -> None:
    """ValueError for the name of a file's network: a file of weights with that name is read as that one."""
    if name in names() and name != _making.get():
        raise ValueError(
            f'{name} is the name of another network (kcd_jax.networks.names()); give another name, or build that one '
            f'by kcd_jax.networks.get({name!r})'
        )


def _made(module: ModuleType, name: str, /, *arguments: Any, **keywords: Any) -> Network:
    """One object for equal arguments: what is traced of a network is traced once."""
    build = _one
    try:
        hash((*arguments, *keywords.values()))
    except TypeError:  # a normalization in lists
        build = _one.__wrapped__
    token = _making.set(name)
    try:
        network = build(module.make, name, *arguments, **keywords)
    finally:
        _making.reset(token)
    if getattr(network, 'name', None) != name:
        found = f'a network named {network.name!r}' if isinstance(network, Network) else f'a {type(network).__name__}'
        raise ValueError(f'make({name!r}, ...) of {module.__file__} returns {found}, not a network named {name!r}')
    return network


@functools.lru_cache(maxsize=64)
def _one(make: Callable[..., Network], /, *arguments: Any, **keywords: Any) -> Network:
    with jax.ensure_compile_time_eval():  # it may be asked for first inside of a trace
        return make(*arguments, **keywords)
