"""`python -m benchmarks`: how fast the program is on this machine, each figure beside its target.

    python -m benchmarks                          every row that this machine can measure (about 15 minutes)
    python -m benchmarks --rows=step,condense     some of them
    python -m benchmarks --quick                  smaller sizes and fewer repeats, a few minutes; orientation only
    python -m benchmarks --json=bench.json        the figures as JSON too
    python -m benchmarks --show=bench.json        the figures of such a file as Markdown; measures nothing

`step` compares the training step with a plain PyTorch loop, which needs the extra `torch`. Timings of two programs
alternate within one process, and a matrix product timed beside them says how busy the machine was: on a shared machine
differences under 10 % are ties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

VERDICTS = {True: 'met', False: 'MISSED', None: ''}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the bench.

    Attributes:
      name: what was measured. measured: the figure as text. target, ambitious: the same for what is aimed at.
      met: whether the target is met; None where there is none, or nothing to compare with.
      details: the raw figures.
    """

    name: str
    measured: str
    target: str = ''
    ambitious: str = ''
    met: bool | None = None
    details: dict = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        verdict = VERDICTS[self.met]
        return f'{self.name:<58} {self.measured:<34} {self.target:<30} {self.ambitious:<26} {verdict}'.rstrip()


HEADER = Row('what', 'measured', 'target', 'ambitious').line()


def markdown(content: Mapping[str, Any]) -> str:
    """The rows of a file that `--json` wrote as a Markdown table."""
    cells = [('what', 'measured', 'target', ''), ('---',) * 4]
    cells += [(row['name'], row['measured'], row['target'], VERDICTS[row['met']]) for row in content['rows']]
    return '\n'.join(f'| {" | ".join(row)} |' for row in cells) + '\n'
