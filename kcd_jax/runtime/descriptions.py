"""Compares descriptions of runs: whether a folder holds the requested run, and how they differ.

A description is a tree of JSON values that decides every number of a run (`Run.describe`).
"""

from __future__ import annotations

import fnmatch
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from kcd_jax.runtime import files

# Keys that may change between a run and its continuation, because they do not affect its numbers.
FREE_KEYS = (
    'name', 'data.dir', 'recipe.workers', 'recipe.checkpoint.*', 'teacher.normalization*',
    'recipe.teaching.allow_weak', 'recipe.teaching.cache', 'recipe.teaching.cache_gb',
)  # fmt: skip
# Paths, which are ignored if the content has an identity.
PLACES = {'teacher.checkpoint': 'teacher.identity'}
# Keys that identify content instead of holding a setting: PREFIX.identity and PREFIX.digests.PART.
CONTENT = {
    'data': 'the data (points, labels or files)',
    'teacher': 'the teacher (its file)',
    'teacher.run.data': "the teacher's data (points, labels or files)",
}
# Keys that hold 'VERSIONS:DIGEST' of code; digests of other versions are not compared, since they may compute the same.
CODE = {
    'student_code': 'the code of the student',
    'method_code': 'the code of the method',
    'policy_code': 'the code of the policy',
    'teacher.code': 'the code of the teacher',
    'teacher.run.student_code': 'the code of the teacher',
    'teacher.run.method_code': "the code of the teacher's method",
    'teacher.run.policy_code': "the code of the teacher's policy",
    'student_start': 'what the student begins with',
    'teacher.run.student_start': 'what the teacher begins with',
}
_START = ('student_start', 'teacher.run.student_start')
_SHOWN = 4


def differences(there: Mapping[str, Any], here: Mapping[str, Any], *, at_once: bool = False) -> str:
    """How two descriptions differ.

    Args:
      there: of the run in a folder, or on another process.
      here: of the requested run.
      at_once: whether they are of processes of one run, so that code of other versions differs.

    Returns:
      'optim.lr is 0.1 there and 0.2 here, ...'; '' if both compute the same.
    """
    keys, content = _differing(there, here, at_once=at_once)
    old, new = flatten(_plain(there)), flatten(_plain(here))
    shown = [f'{key} is {old.get(key)!r} there and {new.get(key)!r} here' for key in keys[:_SHOWN]]
    more = f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''
    return ', '.join(shown) + more or content


def refuse_other(workdir: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Refuses the folder of another run.

    Another start is no other run: a model may draw its weights anew whenever a script is started.

    Args:
      workdir: folder of a run.
      there: description of the run in it.
      here: description of the requested run.

    Returns:
      A line that names another start; '' if it is the same.

    Raises:
      ValueError: they differ, in keys, which are listed, or only in the content of the data or of the teacher.
    """
    keys, content = _differing(there, here, free=_START)
    if keys:
        raise ValueError(
            f'{workdir} holds a run of another configuration: {differences(there, here)}; '
            'use another --workdir or that configuration'
        )
    if content:
        raise ValueError(
            f'{workdir} holds another run: {content}; use another --workdir, or restore what the run was started with'
        )
    if there.get(_START[0]) != here.get(_START[0]) and not _is_free(_START[0], there, here):
        return f'{workdir}: the run there began with other weights than those of the given network, and keeps its own'
    return ''


def other_code(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """'the code of the policy': in which code, that can be compared, two descriptions differ; '' if in none.

    Another start is no other run (`refuse_other`).
    """
    old, new = flatten(there), flatten(here)
    keys = (key for key in CODE if key not in _START and not _is_free(key, old, new))
    return next((CODE[key] for key in keys), '')


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{'optim.lr': 0.05, ...}: the leaves of nested mappings by their joined keys."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result.update(flatten(value, f'{prefix}{key}.'))
        else:
            result[f'{prefix}{key}'] = value
    return result


def _differing(
    there: Mapping[str, Any], here: Mapping[str, Any], free: tuple[str, ...] = (), at_once: bool = False
) -> tuple[list[str], str]:
    """(keys with different values, a phrase that names different content or '')."""
    old, new = flatten(_plain(there)), flatten(_plain(here))
    keys = [key for key in sorted({*old, *new}) if key not in free]
    keys = [key for key in keys if old.get(key) != new.get(key)]
    exact = CODE if at_once else ()
    keys = [key for key in keys if not (all(_compared(key, old, new)) if key in exact else _is_free(key, old, new))]
    settings, parts = [], {}
    for key in keys:
        if key in CODE:
            parts.setdefault(key, [])
            continue
        prefix = next((p for p in CONTENT if key == f'{p}.identity' or key.startswith(f'{p}.digests.')), None)
        if prefix is None:
            settings.append(key)
        else:
            parts.setdefault(prefix, []).extend([key.removeprefix(f'{prefix}.digests.')] if 'digests' in key else [])
    if not parts:
        return settings, ''
    prefix, changed = next(iter(parts.items()))  # the data first: the teacher's data is often the same
    details = f': {", ".join(changed)} differ' if changed else ''
    other = 'that of process 0' if at_once else 'that of the run in the folder'
    return settings, f'{(CONTENT | CODE)[prefix]} is not {other}{details}'


def _is_free(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    identity = PLACES.get(key)
    if identity is not None:
        return bool(old.get(identity) and new.get(identity))
    if key in CODE:
        same, comparable = _compared(key, old, new)
        return same or not comparable
    own = key.removeprefix('teacher.run.')
    return any(fnmatch.fnmatchcase(own, pattern) for pattern in FREE_KEYS)


def _compared(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[bool, bool]:
    """(whether code has one digest, whether its origins can be compared)."""
    (origin, _, digest), (other, _, other_digest) = (str(one.get(key, '')).rpartition(':') for one in (old, new))
    return digest == other_digest, _comparable(origin, other)


def _comparable(one: str, other: str) -> bool:
    """Whether code of two origins, 'jax 0.10.1 flax 0.12.8', can be compared: what both name has one version."""
    words = one.split(), other.split()
    versions = [dict(zip(found[::2], found[1::2], strict=False)) for found in words]
    shared = versions[0].keys() & versions[1].keys()
    return bool(shared) and all(versions[0][name] == versions[1][name] for name in shared)


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` as read from a JSON file: tuples are lists."""
    return json.loads(files.dumps(tree))
