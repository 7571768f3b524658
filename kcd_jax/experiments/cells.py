"""Sweeps as data: the cells of a table, the pairs of networks they run on, and the configs that follow from them.

A cell is a line of words in the grammar of experiments/config.py; `configs/ablations.py` names the sweeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from kcd_jax import plugins
from kcd_jax.experiments import experiment
from kcd_jax.report import papers
from kcd_jax.report.papers import TABLES

# `run=<KC-KD>`: the folder of that cell's run of the same seed; `<KC-KD@vgg13-vgg8>`: of another pair.
_SOURCE = re.compile(r'<([^<>@]+)(?:@([^<>]+))?>')
# What may differ between a stored run and the one that is asked for: none of it changes a number.
_FREE = {'seed', 'trials', 'compare', 'checkpoint', 'data.dir', 'policy.run'}


@dataclasses.dataclass(frozen=True)
class Knob:
    """A policy with the one keyword that is solved for a budget.

    Attributes:
      words: of the policy, as 'policy=kcd'.
      key: the keyword. low, high, step: its values; high None is the batch.
      expected: whether the sizes of its epochs depend on the data, and are known only in expectation.
    """

    words: str
    key: str
    low: float
    high: float | None
    step: float
    expected: bool = False

    def values(self, batch: int) -> list[float]:
        """All values, ascending; whole numbers where the step is one."""
        top = batch if self.high is None else self.high
        count = round((top - self.low) / self.step) + 1
        digits = 0 if self.step == 1 else 6
        values = [round(self.low + n * self.step, digits) for n in range(count)]
        return [int(value) for value in values] if self.step == 1 else values


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of a table.

    Attributes:
      title: one line.
      config: the config file and the words that all cells share, as 'configs/digits_kd.py:batch=30'.
      cells: {row's label: words}.
      pairs: TEACHER-STUDENT, the columns; '' is the file's own. A cell's own pair replaces it.
      more: {pair: {label: further words}}.
      equal, budgets: {label: policy}, each solved for each of the relative costs, so that every row of a budget costs
        the same. The cells' labels are 'LABEL, 60 %'.
      references: labels of the rows that the others are compared with, seed by seed; a label of `equal` stands for the
        row of the same budget.
      paper: the paper's table (report/paper_tables) that the sweep fills.
      devices: of a CPU that a run is split over; 0: one a core.
    """

    title: str
    config: str
    cells: Mapping[str, str]
    pairs: tuple[str, ...] = ('',)
    more: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    equal: Mapping[str, Knob] = dataclasses.field(default_factory=dict)
    budgets: tuple[float, ...] = ()
    references: tuple[str, ...] = ('KD',)
    paper: str = ''
    devices: int = 0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a sweep, for all its seeds.

    Attributes:
      label: of its row. pair: of its column. place: its number in the sweep, from 0.
      config: 'FILE:words', what --config takes (but for sources, see `sources`).
      group: '60 %' of a budget's rows, else ''.
      knob, budget: what is still to be solved.
    """

    label: str
    pair: str
    place: int
    config: str
    group: str = ''
    knob: Knob | None = None
    budget: float | None = None

    @property
    def slug(self) -> str:
        """Its name in file names: 'ogve_w_random', with the pair behind it where there are several."""
        words = re.sub(r'[^a-z0-9.]+', '_', f'{self.label} {self.pair}'.lower().replace('+', ' ')).strip('_')
        return words.replace('.', 'p')

    @property
    def sources(self) -> list[tuple[str, str]]:
        """(label, pair) of the cells whose runs this one starts from."""
        return [(label, pair or self.pair) for label, pair in _SOURCE.findall(self.config)]

    def card(self, name: str, sweep: Sweep) -> dict[str, Any]:
        """What a run's result says of its place in the sweep: enough for the table to be made from results alone."""
        return {
            'sweep': name,
            'title': sweep.title,
            'label': self.label,
            'pair': self.pair,
            'place': self.place,
            'group': self.group,
            'references': list(sweep.references),
        }


def of_paper(name: str, config: str, *, more: Mapping[str, Mapping[str, str]] | None = None, shared: str = '') -> Sweep:
    """The sweep of a paper's table: a cell for each of its rows that can be run, a pair for each of its columns.

    Args:
      name: in report/paper_tables. config: 'FILE:words'. more: {pair: {label: further words}}, '' for every pair.
    """
    table = TABLES[name]
    pairs = dict.fromkeys(f'{column.teacher}-{column.student}' for column in table.columns if column.student)
    cells = {}
    for row in table.rows:
        if row.kind not in ('run', 'student'):
            continue
        words = [f'method={row.method}', f'policy={row.policy}']
        usual = papers.usual(row.method, row.policy)  # the papers' own values are the defaults
        words += [f'{key}={value}' for key, value in row.settings.items() if usual.get(key) != value]
        if row.student and pairs:
            words.append(f'{table.columns[0].teacher}-{row.student}')
        cells[row.label] = ','.join(words)
    if more and '' in more:
        more = {pair: {**more[''], **more.get(pair, {})} for pair in pairs}
    for place, column in enumerate(table.columns if pairs else ()):
        own = {
            row.label: ','.join(f'{key}={value}' for key, value in row.by_column[place].items())
            for row in table.rows
            if row.by_column
        }
        if own:
            pair = f'{column.teacher}-{column.student}'
            more = {**(more or {}), pair: {**own, **(more or {}).get(pair, {})}}
    return Sweep(table.title, config, cells, tuple(pairs), more or {}, paper=name)


def find(sweeps: Mapping[str, Sweep], name: str) -> Sweep:
    """A sweep by its name; ValueError with the known ones."""
    if name not in sweeps:
        raise ValueError(plugins.unknown('sweep', name, sorted(sweeps)))
    return sweeps[name]


def expand(sweep: Sweep, pairs: Sequence[str] = ()) -> list[Cell]:
    """The cells of a sweep in the order of its table, pair by pair.

    Args:
      sweep: any. pairs: only these columns; all of them by default.

    Raises:
      ValueError: a pair that is not the sweep's.
    """
    for pair in pairs:
        if pair not in sweep.pairs:
            raise ValueError(plugins.unknown('pair of this sweep', pair, [p for p in sweep.pairs if p]))
    found = []
    for pair in pairs or sweep.pairs:
        rows = [(label, words, '', None, None) for label, words in sweep.cells.items()]
        for budget in sweep.budgets:
            group = f'{100 * budget:g} %'
            rows += [(f'{label}, {group}', knob.words, group, knob, budget) for label, knob in sweep.equal.items()]
        for place, (label, words, group, knob, budget) in enumerate(rows):
            more = sweep.more.get(pair, {}).get(label, '')
            # A student alone has no teacher: one run serves every pair that it is in, and is listed with the first.
            column = pair.partition('-')[2] if 'method=none' in words else pair
            config = _joined(sweep.config, column, words, more)
            found.append(Cell(label, pair, place, config, group, knob, budget))
    once: dict[str, Cell] = {}
    for cell in found:
        if any(own and own == cell.pair for _, own in _SOURCE.findall(cell.config)):
            continue  # a transfer from a pair to itself is no transfer
        once.setdefault(f'{cell.config} {cell.group and cell.label}', cell)
    return list(once.values())


def _joined(config: str, *words: str) -> str:
    file, _, own = config.partition(':')
    return f'{file}:{",".join(word for word in (own, *words) if word)}'


def with_words(cell: Cell, words: str) -> Cell:
    """The cell with its knob turned."""
    return dataclasses.replace(cell, config=_joined(cell.config, words), knob=None)


def config_of(
    cell: Cell, root: pathlib.Path, folders: Mapping[tuple[str, str], pathlib.Path] | None = None
) -> ConfigDict:
    """The config of a cell's run.

    Args:
      cell: with its knob turned. root: of the config files. folders: of the sources' runs, by (label, pair).

    Raises:
      ValueError: an unknown word.
    """

    def folder(match: re.Match[str]) -> str:
        key = (match[1], match[2] or cell.pair)
        return str(folders[key]) if folders and key in folders else match[0]

    return experiment.alone(experiment.load_config(str(root / _SOURCE.sub(folder, cell.config))))


def shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config makes the run what it is, by dotted key; neither the seed nor places are in it."""
    flat: dict[str, Any] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            name = f'{prefix}{key}'
            if name in _FREE:
                continue
            if isinstance(value, Mapping):
                walk(value, f'{name}.')
            else:
                flat[name] = list(value) if isinstance(value, tuple) else value

    walk(config, '')
    if flat.get('teacher.checkpoint'):
        flat['teacher.checkpoint'] = pathlib.PurePath(flat['teacher.checkpoint']).name
    return flat


def same_run(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a stored config is the wanted one: equal wherever both say something.

    A key that only one of them has came or went with a version of the program.
    """
    one, other = shape(stored), shape(wanted)
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def folder_name(config: ConfigDict) -> str:
    """The folder of the runs of a config, the same for every sweep that has them: a readable part and a hash."""
    parts = {name: config[name].name for name in ('data', 'teacher', 'student', 'method', 'policy')}
    if config.method.name == 'none':
        del parts['teacher']
    content = {**shape(config.to_dict()), 'run': config.policy.get('run', '')}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return '-'.join((*(part for part in parts.values() if part not in ('none', '')), digest))
