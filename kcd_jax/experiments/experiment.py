"""An experiment: named runs times seeds, as objects. Comparisons, the papers' tables and budgets are experiments."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kcd_jax import policies
from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import schema
from kcd_jax.runtime import descriptions, files, runlog
from kcd_jax.training import code
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Reuse:
    """Trains on the final set of another run of the experiment.

    Attributes:
      label: row of the other run.
      mode: of policy reuse, 'vaks' or 'ds'.
      column: of the other run; '' is the same column.
    """

    label: str
    mode: str = 'vaks'
    column: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A named run, trained for each seed of an experiment.

    Attributes:
      label: its name, a row of the table.
      run: with the first seed; its policy is none if `reuse` is set.
      column: of the table, e.g. TEACHER-STUDENT.
      group: shared by the rows of a budget, e.g. '60 %', else ''.
      reuse: the run whose set it trains on, if any, with its column filled in.
      words: 'FILE:words', the `--config` of this run without the seed.
    """

    label: str
    run: Run
    column: str = ''
    group: str = ''
    reuse: Reuse | None = None
    words: str = ''

    @property
    def name(self) -> str:
        """'KC-KD on vgg13-vgg8'."""
        return f'{self.label} on {self.column}' if self.column else self.label

    @property
    def slug(self) -> str:
        """The name for files: 'ogve_w_random_vgg13_vgg8'."""
        words = re.sub(r'[^a-z0-9.]+', '_', f'{self.label} {self.column}'.lower().replace('+', ' ')).strip('_')
        return words.replace('.', 'p')

    def resolved(self, seed: int, source: pathlib.Path | None = None) -> Run:
        """The run of one seed.

        Args:
          seed: of the run.
          source: folder of the run whose set it trains on, if `reuse` is set.
        """
        if self.reuse is None:
            return self.run.with_seed(seed)
        policy = policies.get('reuse').make(run=str(source), mode=self.reuse.mode)
        return self.run.replace(policy=policy, seed=seed, name='')

    def describe(self) -> dict[str, Any]:
        """The description of the run; with `reuse`, the other run need not have finished."""
        description = json.loads(files.dumps(self.run.describe()))
        if self.reuse is not None:
            description['policy'] = {'name': 'reuse', 'run': '', 'mode': self.reuse.mode}
            description['policy_code'] = code.of_file(policies.get('reuse'))
        return description

    @property
    def line(self) -> str:
        """'method kd, policy kcd, resnet14 -> resnet8x0_25 on digits'."""
        run = self.run
        policy = 'reuse' if self.reuse else run.policy.name or 'custom'
        networks = [run.student_network.name]
        if run.teacher_network is not None:
            networks.insert(0, run.teacher_network.name)
        return f'method {run.method.name or "custom"}, policy {policy}, {" -> ".join(networks)} on {run.data.name}'


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Named runs times seeds.

    Attributes:
      name: of its results.
      title: of its table.
      cells: the named runs.
      seeds: for which each run is trained.
      references: labels of the rows that the others are compared with, seed by seed.
      paper: the printed table that it reproduces, or ''.
      omitted: one line per row that cannot be run.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = (0,)
    references: tuple[str, ...] = ('kd',)
    paper: str = ''
    omitted: tuple[str, ...] = ()

    def card(self, cell: Cell) -> dict[str, Any]:
        """The place of a run in the experiment, stored in its result so that tables need only the results."""
        return {
            'sweep': self.name,
            'title': self.title,
            'label': cell.label,
            'pair': cell.column,
            'place': self.cells.index(cell),
            'group': cell.group,
            'references': list(self.references),
        }


def of_config(config: ConfigDict, load: grammar.Loader = grammar.load_data) -> Experiment:
    """The experiment of a config: the runs that `compare` names, or its one run, for `trials` seeds.

    Raises:
      ValueError: a value is out of range, a name in `compare` is unknown or repeated, or a run is invalid; one line
        that names the run.
    """
    schema.check_config(config.to_dict())
    names = tuple(config.compare)
    if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(f'compare names {", ".join(repeated)} twice; name each run once')
    optim = config.optim.to_dict()
    cells, omitted = [], []
    for name in names:
        try:
            one = grammar.variant(config, name)
            if why := grammar.needs_labels(one, load):
                omitted.append(f'{name} is left out: {why}')
                continue
            run = grammar.run_of(one, load, teacher_optim=optim)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
        cells.append(Cell(name, run.replace(name=name)))
    if not names:
        run = grammar.run_of(grammar.alone(config), load)
        cells.append(Cell(run.name, run))
    if not cells:
        raise ValueError(f'no run is left: {"; ".join(omitted)}')
    seeds = range(config.seed, config.seed + config.trials)
    if seeds[-1] > schema.MAX_SEED:
        raise ValueError(f'seed {config.seed} + trials {config.trials} exceeds 2**63 - 1; lower one of them')
    return Experiment('', '', tuple(cells), tuple(seeds), (config.reference,), omitted=tuple(omitted))


# ----------------------------------------------------------------------------------------------------- equal runs


def shape(description: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a run's description that determine its numbers, by dotted key, without seed and data identity."""
    return {key: value for key, value in descriptions.flatten(description).items() if _decides(key)}


@functools.cache  # a sweep compares each of its runs with each stored one
def _decides(key: str) -> bool:
    own = key.removeprefix('teacher.run.')
    free = (*descriptions.FREE_KEYS, *descriptions.PLACES, *descriptions.CODE)
    free += ('data.identity', 'policy.run', 'recipe.survey')
    return key != 'seed' and not any(fnmatch.fnmatchcase(own, pattern) for pattern in free)


@functools.cache
def _defaults() -> dict[str, Any]:
    return descriptions.flatten({'recipe': Recipe().to_dict()})


def same_run(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of the same run, whatever the seed: `difference` finds none."""
    return not difference(stored, wanted)


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """How two runs differ, whatever their seeds: 'recipe.epochs is 3 there and 4 here'; '' if their common keys agree.

    Keys that only one of them has are from another version of the program; those of the recipe had their defaults. The
    identity of the data is compared only if both have it, the code of their files as `descriptions` compares it.
    """
    if len({description['student'] for description in (stored, wanted) if 'student' in description}) > 1:
        return f'student is {stored["student"]!r} there and {wanted["student"]!r} here'  # most differ in this
    one, other = ({**_defaults(), **shape(description)} for description in (stored, wanted))
    keys = sorted(key for key in one.keys() & other.keys() if _plain(one[key]) != _plain(other[key]))
    if keys:
        return ', '.join(f'{key} is {one[key]!r} there and {other[key]!r} here' for key in keys[:4])
    identities = [description.get('data', {}).get('identity') for description in (stored, wanted)]
    if all(identities) and identities[0] != identities[1]:
        return 'the data (points, labels or files) is another'
    code_of = descriptions.other_code(stored, wanted)
    return code_of and f'{code_of} is another'


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def folder_name(description: Mapping[str, Any]) -> str:
    """The folder name of a run, the same in every experiment: a readable part and a hash."""
    teacher = description['teacher'] or {}
    taught_by = teacher.get('network') or teacher.get('run', {}).get('student', '')
    names = [description['data']['name'], taught_by, description['student']]
    names += [description[kind]['name'] for kind in ('method', 'policy')]
    readable = (re.sub(r'[^\w.]+', '_', name) for name in names if name not in ('none', ''))
    return '-'.join((*readable, digest(description)))


def digest(description: Mapping[str, Any]) -> str:
    """An eight-digit hexadecimal hash of what determines a run's numbers, without the seed."""
    content = {**dict(sorted(shape(description).items())), 'policy.run': description['policy'].get('run', '')}
    return hashlib.sha256(files.dumps(content).encode()).hexdigest()[:8]


def without_content(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without the content of its data and teacher, of which `--dry` knows only shapes."""
    data = {key: value for key, value in description['data'].items() if key not in ('identity', 'digests')}
    teacher = description['teacher']
    if teacher and 'run' in teacher:
        teacher = {'run': without_content(teacher['run'])}
    elif teacher:
        teacher = {key: value for key, value in teacher.items() if key != 'identity'}
    return {**description, 'data': data, 'teacher': teacher}


def public(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without paths of this machine; relative ones stay in its commands."""

    def cleaned(description: Mapping[str, Any]) -> dict[str, Any]:
        result = {**description, 'data': {**description['data'], 'dir': ''}}
        recipe = description['recipe']
        if teaching := recipe.get('teaching'):
            kept = {**teaching, 'cache': pathlib.PurePath(teaching['cache']).name}
            result['recipe'] = {**recipe, 'teaching': kept}
        teacher = description.get('teacher')
        if teacher and 'run' in teacher:
            result['teacher'] = {'run': cleaned(teacher['run'])}
        elif teacher:
            result['teacher'] = {**teacher, 'checkpoint': pathlib.PurePath(teacher['checkpoint']).name}
        return result

    def without(part: Mapping[str, Any]) -> dict[str, Any]:
        cleaners = {'run': cleaned, 'command': without_places}
        return {key: cleaners[key](value) if value and key in cleaners else value for key, value in part.items()}

    taught_by = summary.get('teacher')
    return without(summary) | ({'teacher': without(taught_by)} if taught_by else {})


def without_places(command: str) -> str:
    """A command with the last names of files and folders that it names by whole paths.

    >>> without_places('--config=x.py:teacher.checkpoint=/home/me/a.pth+b.npz,teaching.cache=~/answers')
    '--config=x.py:teacher.checkpoint=a.pth+b.npz,teaching.cache=answers'
    """

    def named(match: re.Match[str]) -> str:
        return match[1] + '+'.join(pathlib.PurePath(part).name for part in match[2].split('+'))

    return re.sub(r"\b((?:checkpoint|cache|dir)=)([~/][^,\s']*)", named, command)


def publish(folder: pathlib.Path, results: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Copies the summaries under `folder` to <results>/<run>_<seed>.json, without paths of this machine.

    Files of other runs, and files that are no results, are not overwritten; a digest of the settings is appended to the
    new name instead, and, if that name is taken too, one of the data, and then a number.

    Returns:
      The files.
    """
    paths: list[pathlib.Path] = []
    for path in sorted(folder.rglob(runlog.SUMMARY)):
        summary = public(files.read_json(path))
        target = _place(pathlib.Path(results), summary)
        files.write_text(target, files.dumps(summary, indent=1) + '\n')
        paths.append(target)
    return paths


def _place(results: pathlib.Path, summary: Mapping[str, Any]) -> pathlib.Path:
    """The file of a published run: the first of its names that is free or holds the same run."""
    run = summary['run']
    stem = f'{summary["name"]}_{summary["seed"]}'
    by_settings = f'{stem}_{digest(run)}'
    by_data = f'{by_settings}_{str(run["data"].get("identity") or "")[:8]}'
    numbered = (f'{by_data}_{number}' for number in itertools.count(2))
    for name in itertools.chain((stem, by_settings, by_data), numbered):
        path = results / f'{name}.json'
        if not path.exists():
            break
        stored = (files.read_json(path) or {}).get('run')
        if isinstance(stored, Mapping) and {'student', 'data'} <= stored.keys() and same_run(stored, run):
            kept, own = descriptions.flatten(stored), descriptions.flatten(run)
            if all(kept.get(key) == own.get(key) for key in descriptions.CODE):
                break
    return path
