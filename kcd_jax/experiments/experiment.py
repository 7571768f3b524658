"""An experiment: named runs times seeds, as objects. Compared runs, papers' tables and budgets are all experiments."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from kcd_jax import policies
from kcd_jax.experiments import config as grammar
from kcd_jax.experiments import schema
from kcd_jax.runtime import descriptions, files
from kcd_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Reuse:
    """Starts a run from the final set that another run of the experiment condensed.

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
    """A named run, to be trained for each seed of an experiment.

    Attributes:
      label: its name, the row of its table.
      run: with the first seed; with policy none where `reuse` is set.
      column: of the table, e.g. TEACHER-STUDENT.
      group: '60 %' of the rows that share a budget, else ''.
      reuse: the run that it starts from, if any; its column is filled in.
      words: 'FILE:words' that give this run to `--config`, without the seed.
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
        """Its name in file names: 'ogve_w_random_vgg13_vgg8'."""
        words = re.sub(r'[^a-z0-9.]+', '_', f'{self.label} {self.column}'.lower().replace('+', ' ')).strip('_')
        return words.replace('.', 'p')

    def resolved(self, seed: int, source: pathlib.Path | None = None) -> Run:
        """The run of one seed.

        Args:
          seed: of the run.
          source: folder of the run that it starts from, if `reuse` is set.
        """
        if self.reuse is None:
            return self.run.with_seed(seed)
        policy = policies.get('reuse').make(run=str(source), mode=self.reuse.mode)
        return self.run.replace(policy=policy, seed=seed, name='')

    def describe(self) -> dict[str, Any]:
        """The description of its run, also before the run that it starts from has finished."""
        description = json.loads(files.dumps(self.run.describe()))
        if self.reuse is not None:
            description['policy'] = {'name': 'reuse', 'run': '', 'mode': self.reuse.mode}
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
      seeds: each run is trained for each of them.
      references: labels of the rows that the others are compared with, seed by seed.
      paper: the printed table that it fills, or ''.
      omitted: lines on rows that cannot be run.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = (0,)
    references: tuple[str, ...] = ('kd',)
    paper: str = ''
    omitted: tuple[str, ...] = ()

    def card(self, cell: Cell) -> dict[str, Any]:
        """What the result of a run says of its place here, enough to make the table from results alone."""
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
      ValueError: a value out of its range, an unknown or repeated name in `compare`, or whatever is wrong with a run,
        in one line that names the run.
    """
    schema.check_config(config.to_dict())
    names = tuple(config.compare)
    if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(f'compare names {", ".join(repeated)} twice; name each run once')
    optim = config.optim.to_dict()
    cells = []
    for name in names:
        try:
            run = grammar.run_of(grammar.variant(config, name), load, teacher_optim=optim)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
        cells.append(Cell(name, run.replace(name=name)))
    if not names:
        run = grammar.run_of(grammar.alone(config), load)
        cells.append(Cell(run.name, run))
    seeds = range(config.seed, config.seed + config.trials)
    if seeds[-1] > schema.MAX_SEED:
        raise ValueError(f'seed {config.seed} + trials {config.trials} is beyond 2**63 - 1; lower one of them')
    return Experiment('', '', tuple(cells), tuple(seeds), (config.reference,))


# ----------------------------------------------------------------------------------------------------- equal runs


def shape(description: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's description decides its numbers, by dotted key, without the seed and the data's identity."""

    def decides(key: str) -> bool:
        own = key.removeprefix('teacher.run.')
        free = (*descriptions.FREE_KEYS, *descriptions.PLACES, 'data.identity', 'policy.run')
        return key != 'seed' and not any(fnmatch.fnmatchcase(own, pattern) for pattern in free)

    return {key: value for key, value in descriptions.flatten(description).items() if decides(key)}


def same_run(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of the same run, whatever the seed: equal wherever both say something.

    A key that only one of them has came or went with a version of the program. An identity of the data that one of
    them does not know is not compared.
    """
    one, other = shape(stored), shape(wanted)
    if any(_plain(one[key]) != _plain(other[key]) for key in one.keys() & other.keys()):
        return False
    identities = [description.get('data', {}).get('identity') for description in (stored, wanted)]
    return not all(identities) or identities[0] == identities[1]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def folder_name(description: Mapping[str, Any]) -> str:
    """The folder of a run, the same for every experiment that has it: a readable part and a hash."""
    teacher = description['teacher'] or {}
    taught_by = teacher.get('network') or teacher.get('run', {}).get('student', '')
    names = [description['data']['name'], taught_by, description['student']]
    names += [description[kind]['name'] for kind in ('method', 'policy')]
    readable = (re.sub(r'[^\w.]+', '_', name) for name in names if name not in ('none', ''))
    return '-'.join((*readable, digest(description)))


def digest(description: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of what decides a run's numbers, without the seed."""
    content = {**dict(sorted(shape(description).items())), 'policy.run': description['policy'].get('run', '')}
    return hashlib.sha256(files.dumps(content).encode()).hexdigest()[:8]


def public(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without the places of this machine."""

    def cleaned(description: Mapping[str, Any]) -> dict[str, Any]:
        result = {**description, 'data': {**description['data'], 'dir': ''}}
        teacher = description.get('teacher')
        if teacher and 'run' in teacher:
            result['teacher'] = {'run': cleaned(teacher['run'])}
        elif teacher:
            result['teacher'] = {**teacher, 'checkpoint': pathlib.PurePath(teacher['checkpoint']).name}
        return result

    result = {**summary, 'run': cleaned(summary['run'])}
    taught_by = summary.get('teacher') or {}
    if taught_by.get('run'):
        result['teacher'] = {**taught_by, 'run': cleaned(taught_by['run'])}
    return result
