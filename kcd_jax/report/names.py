"""How runs are called in tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# The papers' spelling where it is not the config name in capitals. A method or policy that is not here still gets a
# name, so that adding one needs no edit.
METHODS = {
    'fitnet': 'FitNet',
    'reviewkd': 'ReviewKD',
    'wcord': 'WCoRD',
    'logitstd': 'LS',
    'infobatch': 'InfoBatch',
    # Variants of the shipped configs.
    'crd+kd': 'CRD+KD',
    'kd-standardised': 'KD, standardised logits',
}
POLICIES = {'kcd': 'KC-', 'unix': 'UNIX-', 'random': 'Random ', 'infobatch': 'InfoBatch '}
# Parts of a configuration that make two runs different variants; the rest (folders, seeds) does not.
_VARIANT = ('method', 'policy', 'weights', 'logits')


def method_name(method: str) -> str:
    """'kd' -> 'KD', 'fitnet' -> 'FitNet'."""
    return METHODS.get(method, method.upper())


def display_name(method: str, policy: str = 'none') -> str:
    """The table's name of method x policy.

    >>> display_name('crd', 'kcd'), display_name('kd', 'random'), display_name('none')
    ('KC-CRD', 'Random KD', 'Student alone')
    """
    prefix = '' if policy == 'none' else POLICIES.get(policy, f'{policy} ')
    if method == 'none':
        return f'{prefix}student alone' if prefix else 'Student alone'
    return f'{prefix}{method_name(method)}'


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'policy.ratio': 0.7}: a nested configuration by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def variant(summary: Mapping[str, Any]) -> dict[str, str]:
    """What of a run's configuration tells it from other runs of its method and policy, as text by dotted key."""
    config = summary.get('config')
    flat = flatten(config) if isinstance(config, Mapping) else {}
    return {
        key: json.dumps(value, sort_keys=True).strip('"')
        for key, value in flat.items()
        if key.split('.')[0] in _VARIANT
    }


def distinguish(names: Sequence[str], variants: Sequence[Mapping[str, str]]) -> list[str]:
    """Names made unique: to those that are equal, what differs between their variants is added.

    >>> distinguish(['KC-KD', 'KC-KD', 'KD'], [{'policy.ratio': '0.7'}, {'policy.ratio': '0.5'}, {}])
    ['KC-KD (ratio 0.7)', 'KC-KD (ratio 0.5)', 'KD']
    """
    unique = []
    for name, own in zip(names, variants, strict=True):
        same = [other for other_name, other in zip(names, variants, strict=True) if other_name == name]
        keys = sorted(
            {key for other in same for key in other if any(key not in o or o[key] != other[key] for o in same)}
        )
        # 'policy.ratio' needs no 'policy.' beside the run's name.
        words = [f'{key.split(".")[-1]} {own.get(key, "-")}' for key in keys]
        unique.append(f'{name} ({", ".join(words)})' if words else name)
    return unique
