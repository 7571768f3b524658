"""Names of runs in tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kcd_jax.runtime import descriptions

# Spellings of the papers that are not the name in capitals. A method or policy that is not listed gets a name all the
# same, so adding one needs no edit here.
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
POLICIES = {'kcd': 'KC-', 'unix': 'UNIX-', 'infobatch': 'InfoBatch ', 'seta': 'SeTa '}
POLICIES |= {
    name: f'{name.capitalize()} ' for name in ('random', 'static', 'balanced', 'moderate', 'learnability', 'rounds')
}
# Parts of a run's description that make two runs different variants; folders and seeds do not.
_VARIANT = ('method.', 'policy.', 'weights.', 'recipe.logits', 'recipe.optim.', 'recipe.augment.')


def display_name(method: str, policy: str = 'none') -> str:
    """The label of a method with a policy.

    >>> display_name('crd', 'kcd'), display_name('kd', 'random'), display_name('none')
    ('KC-CRD', 'Random KD', 'Student alone')
    """
    prefix = '' if policy == 'none' else POLICIES.get(policy, f'{policy} ')
    if method == 'none':
        return f'{prefix}student alone' if prefix else 'Student alone'
    return f'{prefix}{METHODS.get(method, method.upper())}'


def variant(summary: Mapping[str, Any]) -> dict[str, str]:
    """The settings that distinguish a run from others with its method and policy, as text by dotted key."""
    run = summary.get('run')
    flat = descriptions.flatten(run) if isinstance(run, Mapping) else {}
    chosen = {key: value for key, value in flat.items() if key.startswith(_VARIANT)}
    return {key: json.dumps(value, sort_keys=True).strip('"') for key, value in chosen.items()}


def distinguish(names: Sequence[str], variants: Sequence[Mapping[str, str]]) -> list[str]:
    """Makes names unique: equal ones get the settings in which their variants differ.

    >>> distinguish(['KC-KD', 'KC-KD', 'KD'], [{'policy.ratio': '0.7'}, {'policy.ratio': '0.5'}, {}])
    ['KC-KD (ratio 0.7)', 'KC-KD (ratio 0.5)', 'KD']
    """
    unique = []
    for name, mine in zip(names, variants, strict=True):
        same = [other for other_name, other in zip(names, variants, strict=True) if other_name == name]
        keys = sorted(
            {key for other in same for key in other if any(key not in o or o[key] != other[key] for o in same)}
        )
        # Next to the run's name, 'ratio' says as much as 'policy.ratio'.
        words = [f'{key.split(".")[-1]} {mine.get(key, "-")}' for key in keys]
        unique.append(f'{name} ({", ".join(words)})' if words else name)
    return unique
