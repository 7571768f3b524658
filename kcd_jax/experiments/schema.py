"""Type, range and meaning of every config key.

Keys of the recipe and the loss weights are declared where they are used (`training.recipe`, `contracts.Weights`); keys
that only configs have are declared here. Keywords of methods and policies come from the signature and the docstring of
their `make`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from kcd_jax import methods, plugins, policies
from kcd_jax.contracts import Weights
from kcd_jax.runtime import descriptions
from kcd_jax.settings import Setting, check, setting, settings_of
from kcd_jax.training.recipe import Recipe

MAX_SEED = 2**63 - 1
STREAM = ('auto', 'true', 'false')


@dataclasses.dataclass(frozen=True)
class Data:
    """The data set and the part of it that is used."""

    name: str = setting('cifar100', 'data set: a name that `python -m kcd_jax data --help` lists, or folder:SIZE')
    dir: str = setting('', "folder of the data; empty: $TFDS_DATA_DIR, or TFDS's own folder")
    validation: float = setting(
        0.0, 'fraction of the training points, drawn by data.seed, evaluated instead of the test set', low=0, below=1
    )
    seed: int = setting(0, 'seed of the validation split and of the choice of num_points', low=0, high=MAX_SEED)
    num_points: int = setting(0, 'training points of the student; 0: all', low=0)
    stream: str = setting('auto', 'read points while training; auto: if they do not fit in memory', choices=STREAM)
    workers: int = setting(0, 'processes that read streamed images; 0: threads, one per core', low=0, high=1024)


@dataclasses.dataclass(frozen=True)
class Student:
    """The student."""

    name: str = setting('wrn_16_2', 'network of the student')


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher: from a file, or trained first by the student's recipe with these settings."""

    name: str = setting('wrn_40_2', 'network of the teacher')
    checkpoint: str = setting(
        '',
        "weights file, folder of a run, stored outputs, or several joined by '+'; empty: the teacher is trained first",
    )
    normalization: str = setting('', "normalisation that a file's network expects, by name; empty: as the file says")
    epochs: int = setting(240, "epochs of the teacher's training", low=1, high=100_000)
    batch: int = setting(64, "batch of the teacher's training", low=1, high=2**20)
    lr: float = setting(0.05, "initial learning rate of the teacher's training", above=0, high=1000)
    num_points: int = setting(0, 'training points of the teacher; 0: all', low=0)
    seed: int = setting(1000, "seed of the teacher's training", low=0, high=MAX_SEED)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run: one run, or several with several seeds."""

    seed: int = setting(0, 'seed of the first run', low=0, high=MAX_SEED)
    trials: int = setting(1, 'number of seeds: seed, seed + 1, ...', low=1, high=10_000)
    reference: str = setting('kd', 'run of `compare` that the table compares the others with')


SECTIONS: Mapping[str, type] = {'data': Data, 'student': Student, 'teacher': Teacher}
# `compare` and `variants` hold names and mappings; config.py checks them when it builds the runs.
STRUCTURE = {
    'compare': ('()', 'names of runs: student, a method, a policy or a variant; empty: the one run of the config'),
    'variants': ('{}', "name -> {'run': one of these runs, and the parts of the config that it changes}"),
}


@functools.cache
def settings() -> dict[str, Setting]:
    """{dotted key: setting} of every key of a config, except the keywords of methods and policies."""
    found = dict(settings_of(Experiment))
    for section, declared in SECTIONS.items():
        found.update(settings_of(declared, f'{section}.'))
    found.update((key, value) for key, value in settings_of(Recipe) if key != 'workers')  # it is data.workers
    found.update(settings_of(Weights, 'weights.'))
    return found


def defaults() -> dict[str, Any]:
    """The defaults of `settings` as nested dictionaries, without the weights, which depend on the method."""
    nested: dict[str, Any] = {}
    for key, declared in settings().items():
        *path, last = key.split('.')
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = declared.default
    del nested['weights']
    return nested


def module_of(kind: str, name: str) -> ModuleType:
    """The file of a method or a policy; ValueError names the known ones."""
    return (methods if kind == 'method' else policies).get(name)


@functools.cache
def keywords(kind: str, name: str) -> dict[str, Setting]:
    """{keyword: setting} of a method or a policy, from the signature and the docstring of its `make`.

    Args:
      kind: 'method' or 'policy'.
      name: its name.
    """
    module = module_of(kind, name)
    found = plugins.hyper_parameters(module)
    meanings = _arguments(inspect.getdoc(module.make) or '', list(found))
    declared = getattr(module.make, 'settings', {})  # of a make with the decorator `settings.ranges`
    known = {key: declared.get(key, Setting(default, '')) for key, default in found.items()}
    return {key: dataclasses.replace(one, meaning=meanings.get(key, '')) for key, one in known.items()}


def _arguments(docstring: str, names: Sequence[str]) -> dict[str, str]:
    """{argument: its text} of the section Args of a docstring; several arguments may share a text."""
    section = re.search(r'^Args:\n(.*?)(?=^\S|\Z)', docstring, re.DOTALL | re.MULTILINE)
    lines = (f'\0 {line[2:]}' if line[:3].strip() else line for line in (section[1] if section else '').splitlines())
    text = ' '.join(' '.join(lines).split())
    one = f'(?:{"|".join(map(re.escape, names))})' if names else '(?!)'
    starts = list(re.finditer(rf'(?:(?<=\0 )|(?<=[.;] ))({one}(?:, {one})*): ', text))
    found: dict[str, str] = {}
    for place, start in enumerate(starts):
        end = starts[place + 1].start() if place + 1 < len(starts) else len(text)
        found.update(dict.fromkeys(start[1].split(', '), text[start.end() : end].strip(' \0')))
    return found


def check_config(config: Mapping[str, Any]) -> None:
    """Checks the values of a config against their settings.

    Args:
      config: nested mappings, `ConfigDict.to_dict()` of one run.

    Raises:
      ValueError: a value has another type, is not finite or is out of range; the message has key, value and range.
    """
    flat = descriptions.flatten(config)
    for key, declared in settings().items():
        if key in flat:
            check(key, flat[key], declared)
    for kind in ('method', 'policy'):
        section = dict(config[kind])
        name = section.pop('name')
        if not isinstance(name, str):
            raise ValueError(f'{kind} is {name!r}; use the name of a {kind}')
        known = keywords(kind, name)
        for key, value in section.items():
            if key not in known:
                raise ValueError(plugins.unknown(f'keyword of {kind} {name}', key, sorted(known)))
            check(f'{kind}.{key}', value, known[key])


# ------------------------------------------------------------------------------------------------------- the reference

_HEAD = """# Configuration

Generated by `python -m kcd_jax train --reference`; do not edit.

A command names a config file and settings: `--config=FILE:word,word,...` and `--config.KEY=VALUE`.

- `TEACHER-STUDENT` (two networks), or a single network for the student.
- `method=NAME` and `policy=NAME`. With a method but no policy, the run trains on all points (`policy=none`); with
  neither, the file's own choice holds.
- `KEY=VALUE` for any key below. The last part of a key is enough if it means one thing: `ratio=0.5`, `epochs=60`. If it
  could mean two things, it is refused with the full keys. Keys of the teacher and of the
  checkpoints are written in full (`teacher.epochs`, `checkpoint.keep`).
- `dataset=NAME` is short for `data.name=NAME`; `quicktest` shrinks the run to a few epochs, to see that it works.
"""


def reference_page() -> str:
    """docs/configuration.md: every key with its type, default, range and meaning."""
    found = settings()
    parts = [_HEAD]

    def table(title: str, rows: Iterator[tuple[str, Setting]], text: str = '', level: str = '##') -> None:
        lines = [f'| `{key}` | `{_default(one)}` | {one.range} | {_cell(one.meaning)} |' for key, one in rows]
        heading = [f'{level} {title}', '', *([text, ''] if text else [])]
        parts.append('\n'.join([*heading, '| key | default | values | meaning |', '|---|---|---|---|', *lines]) + '\n')

    def section(prefix: str) -> Iterator[tuple[str, Setting]]:
        return ((key, one) for key, one in found.items() if key.startswith(f'{prefix}.'))

    table('Runs', ((key, one) for key, one in settings_of(Experiment)))
    rows = [f'- `{key}` (default `{default}`): {meaning}.' for key, (default, meaning) in STRUCTURE.items()]
    parts.append('\n'.join(rows) + '\n')
    for name, declared in SECTIONS.items():
        table(name.capitalize(), section(name), declared.__doc__)
    recipe = [key for key, _ in settings_of(Recipe) if key in found]
    table('Recipe', ((key, found[key]) for key in recipe), 'How the student is trained.')
    weights = 'Loss = gamma * CE + alpha * KD + beta * the method. Each method has defaults of its own, listed below.'
    table('Weights', section('weights'), weights)
    for kind, names in (('method', methods.names()), ('policy', policies.names())):
        plural = 'Methods' if kind == 'method' else 'Policies'
        parts.append(f'## {plural}\n\nKeywords of `{kind}=NAME`.\n')
        for name in names:
            module = module_of(kind, name)
            text = _cell((module.__doc__ or '').strip().splitlines()[0])
            if kind == 'method':
                own = dataclasses.asdict(module.WEIGHTS)
                text += '\n\nWeights: ' + ', '.join(f'{part} {value:g}' for part, value in own.items()) + '.'
            rows = [(f'{kind}.{key}', one) for key, one in keywords(kind, name).items()]
            if rows:
                table(name, iter(rows), text, '###')
            else:
                parts.append(f'### {name}\n\n{text}\n')
    return '\n'.join(parts)


def _default(declared: Setting) -> str:
    return repr(declared.default)


def _cell(text: str) -> str:
    return text.replace('|', '\\|')
