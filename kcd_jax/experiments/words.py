"""Words of the config grammar: splits them, resolves each to a key, and sets the key according to its type."""

from __future__ import annotations

import ast
from typing import Any

from ml_collections import ConfigDict

from kcd_jax import methods, plugins, policies
from kcd_jax.experiments import schema

# Sections whose keys may be written without the section's name.
_BARE = ('policy', 'method', 'weights', 'optim', 'data', 'augment')


def split_words(arg: str) -> list[str]:
    """Splits at commas outside brackets, so that `compare=(kd,kcd)` and `drops=(0.6,0.75)` are single words."""
    words, depth, word = [], 0, ''
    for char in arg:
        depth += char in '([{'
        depth -= char in ')]}'
        if char == ',' and depth == 0:
            words.append(word.strip())
            word = ''
        else:
            word += char
    return [w for w in (*words, word.strip()) if w]


def place(config: ConfigDict, key: str) -> str:
    """The dotted key of a word: the word itself, or prefixed by the only section that has this key."""
    if key == 'dataset':
        return 'data.name'
    if '.' in key or key in config:
        return key
    places = [f'{section}.{key}' for section in _BARE if key in config[section] and key != 'name']
    if len(places) > 1:
        raise ValueError(f'{key} could mean {" or ".join(places)}; use the full key')
    if places:
        return places[0]
    owners = [
        f'{kind}={name}'
        for kind, package in (('policy', policies), ('method', methods))
        for name in package.names()
        if key in schema.keywords(kind, name)
    ]
    chosen = f'method={config.method.name},policy={config.policy.name}'
    if owners:
        raise ValueError(f'{key} is a keyword of {", ".join(owners)}, but this is {chosen}; add one of those words')
    known = sorted({*config, *(part for section in _BARE for part in config[section])} - {'name'})
    raise ValueError(plugins.unknown('config key', key, known))


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key to a value, or to a text parsed as the key's type."""
    *path, last = key.split('.')
    node = config
    for depth, part in enumerate((*path, last)):
        if not isinstance(node, ConfigDict) or part not in node:
            known = sorted(node) if isinstance(node, ConfigDict) else []
            raise ValueError(plugins.unknown('config key', '.'.join((*path, last)[: depth + 1]), known))
        if depth < len(path):
            node = node[part]
    present = node[last]
    if isinstance(present, ConfigDict):
        raise ValueError(f'{key} is a section of the config; set one of {", ".join(f"{key}.{k}" for k in present)}')
    if isinstance(value, str):
        value = _parsed(value, type(present))
    if isinstance(present, bool) != isinstance(value, bool) and isinstance(present, int | float):
        wanted = {bool: 'True or False', int: 'an integer', float: 'a number'}[type(present)]
        raise ValueError(f'{key} takes {wanted}, not {value!r}')
    try:
        node[last] = value
    except (TypeError, ValueError) as error:
        raise ValueError(f'{key} takes a value of type {type(present).__name__}, not {value!r}') from error


def _parsed(text: str, wanted: type) -> Any:
    """The value of a text for a key of type `wanted`."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if wanted is str:
        return value if isinstance(value, str) else text.lower() if isinstance(value, bool) else text
    if wanted is bool and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if wanted is float and isinstance(value, str):
        try:
            return float(value)  # nan and inf, which the range checks refuse
        except ValueError:
            return value
    if wanted is tuple:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.strip('()[]').split(',') if word.strip())
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    return value
