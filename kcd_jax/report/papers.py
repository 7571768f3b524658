"""The tables printed in the papers, from the JSON files in `paper_tables/`.

KCD: Knowledge Condensation Distillation (ECCV 2022). UNIX: Computation-Efficient Knowledge Distillation via
Uncertainty-Aware Mixup. KR: Knowledge Representing (CVPR workshops 2019).

A file maps table names to objects with the fields of `PaperTable`. A column is [title, teacher, student] or [title,
teacher, student, measure]. A row is [label, runs, cells]:

  runs: the runs that belong in the row: `method+policy key=value ...`, `teacher`, `student` (trained alone), or `-` if
    none do. `student=NAME` replaces the column's student network. A value `36|48` lists one value per column.
  cells: separated by spaces: `75.70`; `75.25(75.3)` with the relative cost in percent; `73.26?` if the printed number
    is doubtful (see the notes); `-` if the paper leaves the cell empty.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a printed table.

    Attributes:
      title: as printed.
      teacher: network of the runs' teacher; None: any.
      student: network of the runs' student; None: any.
      measure: 'accuracy', 'error', 'top5', 'top5_error' (in percent), 'parameters' (in millions), or 'mean' (of the
        other columns, given once all of them have results).
    """

    title: str
    teacher: str | None = None
    student: str | None = None
    measure: str = 'accuracy'


@dataclasses.dataclass(frozen=True)
class Cell:
    """A printed number.

    Attributes:
      value: in the unit of the column.
      cost: relative cost in percent; None if not printed.
      doubtful: whether the printed number looks wrong.
    """

    value: float
    cost: float | None = None
    doubtful: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A printed row.

    Attributes:
      label: as printed.
      kind: 'run', 'teacher', 'student' (trained alone), or 'none' if no run belongs here.
      method: of the runs, if kind is 'run'.
      policy: of the runs, if kind is 'run'.
      settings: {dotted key of a run's description: value}, as text; a run with another value does not belong here.
      student: the student's network if it is not the column's.
      cells: one per column; None if not printed.
      by_column: further settings, one mapping per column, or empty.
    """

    label: str
    kind: str
    method: str
    policy: str
    settings: Mapping[str, str]
    student: str | None
    cells: tuple[Cell | None, ...]
    by_column: tuple[Mapping[str, str], ...] = ()

    def settings_at(self, place: int) -> dict[str, str]:
        """The settings in the column at `place`."""
        return {**self.settings, **(self.by_column[place] if self.by_column else {})}


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
      title: paper, number and subject.
      columns: its columns.
      rows: its rows.
      dataset: of the runs.
      epochs: of the runs; None: any number.
      cost: what the printed relative cost counts: 'samples' or 'macs'.
      notes: remarks, for example on doubtful numbers.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    dataset: str
    epochs: int | None
    cost: str
    notes: tuple[str, ...] = ()


def usual(method: str, policy: str) -> dict[str, str]:
    """Settings in the papers, by dotted key; a run with any other value belongs to another row, or to none."""
    return {**_SETTINGS['methods'].get(method, {}), **_SETTINGS['policies'].get(policy, {})}


def parse_cell(text: str) -> Cell | None:
    """Parses a printed number.

    >>> parse_cell('75.25(75.31)'), parse_cell('73.26?'), parse_cell('-')
    (Cell(value=75.25, cost=75.31, doubtful=False), Cell(value=73.26, cost=None, doubtful=True), None)
    """
    if text == '-':
        return None
    number, _, cost = text.rstrip('?').partition('(')
    return Cell(float(number.rstrip('?')), float(cost.rstrip(')')) if cost else None, '?' in text)


def _parse_row(
    label: str, runs: str, cells: str, columns: int, settings: Mapping[str, Mapping[str, str]], table: str
) -> Row:
    """Parses a row of a file (see the module's docstring); `settings` are those of the table, by method."""
    words = runs.split()
    kind = {'teacher': 'teacher', 'student': 'student', '-': 'none'}.get(words[0], 'run')
    method, policy, own = 'none', 'none', dict(word.split('=') for word in words[1:])
    student = own.pop('student', None)
    per_column = {key: value.split('|') for key, value in own.items() if '|' in value}
    parsed = tuple(parse_cell(cell) for cell in cells.split())
    for what, count in (('cells', len(parsed)), *((key, len(values)) for key, values in per_column.items())):
        if count != columns:
            raise ValueError(f'{table}: row {label!r} has {count} {what} for {columns} columns')
    shared: dict[str, str] = {}
    if kind == 'run':
        method, _, policy = words[0].partition('+')
        policy = policy or 'none'
        fixed = {key: value for key, value in own.items() if key not in per_column}
        shared = {**settings.get('', {}), **settings.get(method, {}), **usual(method, policy), **fixed}
    places = range(columns) if per_column else ()
    by_column = tuple({key: values[place] for key, values in per_column.items()} for place in places)
    return Row(label, kind, method, policy, shared, student, parsed, by_column)


def parse_table(name: str, table: Mapping[str, Any]) -> PaperTable:
    """Parses a table of a file (see the module's docstring); ValueError names the row that is wrong."""
    columns = tuple(Column(*column) for column in table['columns'])
    settings = table.get('settings', {})
    rows = tuple(_parse_row(*row, len(columns), settings, name) for row in table['rows'])
    notes = tuple(table.get('notes', ()))
    return PaperTable(table['title'], columns, rows, table['dataset'], table['epochs'], table['cost'], notes)


def _read(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).with_name('paper_tables') / f'{name}.json').read_text(encoding='utf-8'))


_SETTINGS = _read('settings')
TABLES: dict[str, PaperTable] = {
    name: parse_table(name, table) for paper in ('kcd', 'unix', 'kr') for name, table in _read(paper).items()
}


def find(name: str) -> PaperTable:
    """A table by name ('kcd_table1'); ValueError if there is none of that name."""
    if name not in TABLES:
        raise ValueError(f'unknown table {name!r}; known: {", ".join(TABLES)}')
    return TABLES[name]
