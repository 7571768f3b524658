"""One file per distillation method; the file's name is the config name. `_template.py` shows how to add one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kcd_jax import plugins
from kcd_jax.contracts import NEEDS, Method, Setup, Weights

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


# How a network that was built in Python is told what a method reads (networks.from_linen, ...).
_BY = {
    'feats': "taps=('stem', 'block3'), the modules whose outputs are feature maps, the stem's first",
    'preacts': "preacts=('block3', ...), the same stages before their activation",
    'embed': "embed='pool', the module that returns the pooled vector, or a function of the taps",
}


def refuse_missing_outputs(method: Method, setup: Setup) -> None:
    """Raises ValueError if one of the networks does not return what the method declares to read (`Method.needs`)."""
    if set(method.needs) == set(NEEDS):  # the default: nothing was declared
        return
    of_student = {'feats' if need == 'preacts' else need for need in method.needs}
    sides = {
        'student': (setup.student_network, setup.student, of_student),
        'teacher': (setup.teacher_network, setup.teacher, method.needs),
    }
    for side, (network, outputs, needs) in sides.items():
        for need in (need for need in _BY if need in needs and network is not None):
            found = getattr(outputs, need)
            if found is None or (need == 'feats' and len(found) < 2) or (need == 'preacts' and not found):
                what = f'{len(found)} of them' if found else 'none'
                raise ValueError(
                    f'method {method.name or "custom"} reads the {need} of the {side}, and {network.name} returns '
                    f'{what}; name them: {_BY[need]}'
                )
