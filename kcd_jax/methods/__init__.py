"""One file per distillation method; the file's name is the config name. `_template.py` shows how to add one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kcd_jax import plugins
from kcd_jax.contracts import Method, Weights

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
    """The default loss weights of a method, {'gamma', 'alpha', 'beta', 'temperature'}.

    If one of its keywords names another method (`WEIGHTS_OF`), these are that method's weights.

    Args:
      section: {'name': the method, and its keywords}.
      of_pair: {method: weights that a pair of networks overrides}.
    """
    name = section.get(getattr(get(section['name']), 'WEIGHTS_OF', ''), section['name'])
    return {**dataclasses.asdict(get(name).WEIGHTS), **of_pair.get(name, {})}


def weights_of(method: Method) -> Weights:
    """The default weights of a method; for one without a name, the cross entropy plus its own term."""
    if not method.name:
        return Weights(beta=1.0)
    return Weights(**weights({'name': method.name, **method.keywords}, {}))


def refuse_idle_term(method: Method, chosen: Weights) -> None:
    """Raises ValueError if a keyword names a method whose own term would have weight 0 (KR's posterior)."""
    whose = getattr(get(method.name), 'WEIGHTS_OF', '') if method.name else ''
    own = weights_of(method).beta
    if whose and own > 0 and chosen.beta == 0:
        name = method.keywords[whose]
        raise ValueError(
            f'the term of {whose}={name} is weighted by weights.beta, which is 0; give {whose}={name} in the words '
            f'after the config file, which also sets the weights, or --config.weights.beta={own:g}'
        )
