"""How a printed table is written down, and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# KCD's and UNIX's own settings. A run that has another value is of another row, or of none.
_KCD = {
    'preset': 'paper', 'ratio': '0.7', 'stages': '6', 'alpha': '0.03', 'epsilon_max': '0.3', 'schedule': '',
    'first': '', 'dropped': '', 'ranking': 'value', 'records': 'mean', 'augment': 'low', 'epsilon': 'ramp',
    'value': 'entropy',
}  # fmt: skip
POLICIES = {
    'kcd': {f'policy.{key}': value for key, value in _KCD.items()},
    'unix': {'policy.score': 'entropy', 'policy.mix': 'adaptive', 'policy.w': '10'},
}


# Likewise of methods.
METHODS = {'kr': {'method.sparse': 'recode', 'method.posterior': 'kd'}}


@dataclasses.dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
      title: as printed.
      teacher, student: the networks of its runs; None: any.
      measure: 'accuracy', 'error', 'top5', 'top5_error' (all in percent), 'parameters' (in millions), or 'mean': of the
        other columns, once all of them are filled.
    """

    title: str
    teacher: str | None = None
    student: str | None = None
    measure: str = 'accuracy'


@dataclasses.dataclass(frozen=True)
class Cell:
    """A printed figure: its value, the relative cost in percent where one is given, and whether it is doubtful."""

    value: float
    cost: float | None = None
    doubtful: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A printed row.

    Attributes:
      label: as printed.
      kind: 'run', 'teacher', 'student' (alone), or 'none' where nothing of ours belongs.
      method, policy: of the runs, where kind is 'run'.
      settings: {dotted config key: value}; a run with another value does not belong.
      student: the student's network where it is not the column's.
      cells: a figure a column; None where none is printed.
    """

    label: str
    kind: str
    method: str
    policy: str
    settings: Mapping[str, str]
    student: str | None
    cells: tuple[Cell | None, ...]


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
      title: paper, number and subject.
      columns: its columns.
      lines: its rows, a line each: `label | what of ours belongs there | cells`. The middle is `method+policy key=value
        ...` (settings of the run beside `settings`; `student=` is another network than the column's), `teacher`,
        `student` (alone), or `-` where nothing of ours belongs. A cell is `75.70`, `75.25(75.3)` with the relative
        cost in percent, `73.26?` where the figure is doubtful (`notes` say why), or `-` where there is none.
      dataset, epochs: of the runs that belong; epochs None: any number.
      settings: {method: {dotted key: value}} of all rows; `''` for every method.
      cost: what the paper's cost counts: 'samples' or 'macs'.
      notes: on doubtful figures.
    """

    title: str
    columns: tuple[Column, ...]
    lines: str
    dataset: str = 'cifar100'
    epochs: int | None = 240
    settings: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    cost: str = 'samples'
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows, parsed."""
        return tuple(_row(line, self) for line in self.lines.strip().splitlines())


def usual(method: str, policy: str) -> dict[str, str]:
    """The papers' own settings of a method and a policy, by dotted key."""
    return {**METHODS.get(method, {}), **POLICIES.get(policy, {})}


def parse_cell(text: str) -> Cell | None:
    """A printed figure.

    >>> parse_cell('75.25(75.31)'), parse_cell('73.26?'), parse_cell('-')
    (Cell(value=75.25, cost=75.31, doubtful=False), Cell(value=73.26, cost=None, doubtful=True), None)
    """
    if text == '-':
        return None
    figure, _, cost = text.rstrip('?').partition('(')
    return Cell(float(figure.rstrip('?')), float(cost.rstrip(')')) if cost else None, '?' in text)


def _row(line: str, table: PaperTable) -> Row:
    label, match, cells = (part.strip() for part in line.split('|'))
    words = match.split()
    kind = {'teacher': 'teacher', 'student': 'student', '-': 'none'}.get(words[0], 'run')
    method, policy, settings = 'none', 'none', {}
    own = dict(word.split('=') for word in words[1:])
    student = own.pop('student', None)
    if kind == 'run':
        method, _, policy = words[0].partition('+')
        policy = policy or 'none'
        settings = {**table.settings.get('', {}), **table.settings.get(method, {}), **usual(method, policy), **own}
    parsed = tuple(parse_cell(cell) for cell in cells.split())
    if len(parsed) != len(table.columns):
        raise ValueError(f'{table.title}: row {label!r} has {len(parsed)} cells for {len(table.columns)} columns')
    return Row(label, kind, method, policy, settings, student, parsed)
