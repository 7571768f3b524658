"""What a set of runs falls into: experiments and the pairs of sweeps, each with its rows, its table and its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kcd_jax.report import drawings, sweeps
from kcd_jax.report.drawing import Drawing
from kcd_jax.report.groups import Group, Summary, base_of, describe_experiment, experiments, group_runs
from kcd_jax.report.tables import Table, experiment_table


@dataclasses.dataclass
class Part:
    """Runs that can be compared.

    Attributes:
      runs: their summaries. groups: the rows.
      title: one line. table: of the rows.
      reference: what the rows are compared with.
      sweep: the sweep's name, with its pair behind it; '' of an experiment.
    """

    runs: list[Summary]
    groups: list[Group]
    title: str
    table: Table
    reference: str
    sweep: str = ''

    def base(self, group: Group) -> Group | None:
        """The row that a row is compared with; None for the reference itself, and where it is missing."""
        find = sweeps.reference_of if self.sweep else base_of
        return find(group, self.groups, self.reference)

    def draw(self) -> list[Drawing]:
        """Everything that can be drawn of it."""
        return drawings.of_sweep(self.groups) if self.sweep else drawings.of_experiment(self.runs, self.reference)


def split(summaries: Sequence[Summary], reference: str = 'kd') -> list[Part]:
    """The pairs of sweeps among the summaries, then the experiments.

    Args:
      summaries: collected. reference: the run that an experiment's others are compared with; a sweep names its own.

    Raises:
      ValueError: a seed occurs twice in a row.
    """
    found = []
    for (sweep, pair), runs in sweeps.by_pair(summaries).items():
        table = sweeps.sweep_table(runs, (), sweeps.teacher_of(summaries, sweep, runs))
        first = sweeps.card_of(runs[0])['references'][0]
        found.append(Part(runs, sweeps.sweep_groups(runs), table.title, table, first, f'{sweep}_{pair}'.rstrip('_')))
    for runs in experiments([summary for summary in summaries if not sweeps.card_of(summary)]):
        table = experiment_table(runs, reference)
        found.append(Part(runs, group_runs(runs), describe_experiment(runs), table, reference))
    return found
