"""What a benchmark reports: rows of a table, each with its target where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

VERDICTS = {True: 'met', False: 'MISSED', None: ''}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      name: what was measured.
      measured: the numbers, as text.
      target: what is aimed at, as text; '' for no target.
      met: whether the target is met; None without a target or without a measurement.
      details: the numbers by name.
    """

    name: str
    measured: str
    target: str = ''
    met: bool | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """The row as a line of text with aligned columns."""
        return f'{self.name:<68} {self.measured:<40} {self.target:<26} {VERDICTS[self.met]}'.rstrip()


HEADER = Row('what', 'measured', 'target').line()


def markdown(content: Mapping[str, Any]) -> str:
    """The rows of a file written by `--json`, as a Markdown table."""
    cells = [('what', 'measured', 'target', ''), ('---',) * 4]
    cells += [(row['name'], row['measured'], row['target'], VERDICTS[row['met']]) for row in content['rows']]
    return '\n'.join(f'| {" | ".join(row)} |' for row in cells) + '\n'
