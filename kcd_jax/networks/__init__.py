"""Networks by their config name: one file a family, found by the folder's listing.

A family's file has NAMES and `make(name, num_classes, *, dtype, normalization) -> Network`.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from kcd_jax import plugins
from kcd_jax.contracts import Network

__path__ += plugins.own_folders('networks')


def families() -> dict[str, ModuleType]:
    """{network's name: its family's module}, over the files of the folder as they are now."""
    package = sys.modules[__name__]
    modules = [importlib.import_module(f'{__name__}.{name}') for name in plugins.names(package)]
    return {name: module for module in modules for name in getattr(module, 'NAMES', ())}


def names() -> list[str]:
    """Every known name, sorted."""
    return sorted(families())


def get(name: str) -> Callable[..., Network]:
    """The constructor `(num_classes, *, dtype=jnp.float32, normalization=...) -> Network` of a network.

    `normalization` is a name of `layers.NORMALIZATIONS` or a pair (mean, std) of the channels in [0, 1].

    Raises:
      ValueError: for an unknown name, naming the near and the known ones.

    >>> import jax
    >>> student = get('resnet8')(100)
    >>> variables = jax.eval_shape(lambda key: student.init(key, (32, 32, 3)), jax.random.PRNGKey(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    83892
    """
    known = families()
    if name not in known:
        raise ValueError(plugins.unknown('network', name, sorted(known)))
    return functools.partial(known[name].make, name)
