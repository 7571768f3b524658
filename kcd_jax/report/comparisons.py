"""Comparisons: runs that can be compared, as the rows of one table.

Runs of a sweep carry their row and column with them (`cell` in the summary). All other runs are grouped by what they
share: the teacher's network, the student's network, the dataset, the batch size and the number of epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kcd_jax.report import names
from kcd_jax.report.records import FILE, SUMMARY, number
from kcd_jax.report.statistics import Sample, describe, paired_difference

Summary = Mapping[str, Any]
Card = Mapping[str, Any]
# Runs are judged by the first of these that any of them has: without labels there is no accuracy.
MEASURES = ('accuracy', 'agreement', 'cosine')
# The order of the usual rows; other rows follow in the order found.
_ORDER = ('teacher', 'student', 'kd', 'random', 'kcd')


def is_teacher(summary: Summary) -> bool:
    """Whether the summary is that of a teacher's own training."""
    file = Path(summary.get(FILE, ''))
    return summary.get('name') == 'teacher' or (file.name == SUMMARY and file.parent.name == 'teacher')


def run_name(summary: Summary) -> str:
    """The name of a run's row: 'student', 'kd' (the method on every point), its policy, or a name of its own."""
    method, policy, name = summary['method'], summary['policy'], str(summary.get('name', ''))
    if (method, policy) == ('none', 'none'):
        return 'student'
    if name not in ('', 'teacher', 'student', 'kd', method, policy):
        return name
    return 'kd' if policy == 'none' else str(policy)


def teacher_network(summary: Summary) -> str | None:
    """The teacher's network; None if the student was trained alone."""
    teacher = summary.get('teacher')
    return teacher.get('network') if isinstance(teacher, Mapping) else None


def full_epochs(summary: Summary) -> float | None:
    """Epochs requested; a run may take more (a first phase of its method) or fewer (policy 'short')."""
    requested = number(summary, 'run', 'recipe', 'epochs')
    return number(summary, 'epochs') if requested is None else requested


def judged_by(runs: Iterable[Summary]) -> str:
    """The first of `MEASURES` that a run has; 'accuracy' if none has any."""
    runs = list(runs)
    return next((name for name in MEASURES if any(number(run, name) is not None for run in runs)), 'accuracy')


def refuse_duplicates(what: str, runs: Sequence[Summary]) -> None:
    """Raises ValueError if two runs of a row have the same seed."""
    seeds: dict[Any, Summary] = {}
    for run in runs:
        if run['seed'] in seeds:
            files = f'{seeds[run["seed"]].get(FILE, "one")} and {run.get(FILE, "another")}'
            raise ValueError(f'{what} has seed {run["seed"]} twice ({files}); give one of them')
        seeds[run['seed']] = run


@dataclasses.dataclass
class Row:
    """Runs that differ in the seed alone.

    Attributes:
      name: see `run_name`.
      label: shown in tables and figures.
      runs: their summaries, by seed; empty if none has finished.
      method: of all runs.
      policy: of all runs.
    """

    name: str
    label: str
    runs: list[Summary]
    method: str = 'none'
    policy: str = 'none'

    def by_seed(self, *keys: str) -> dict[int, float | None]:
        """{seed: number}."""
        return {run['seed']: number(run, *keys) for run in self.runs}

    def sample(self, *keys: str) -> Sample:
        """A number over the seeds."""
        return describe(self.by_seed(*keys).values())

    def difference(self, other: Row | None, measure: str = 'accuracy') -> Sample:
        """Paired differences in `measure` from another row, over the seeds that both have; empty without one."""
        if other is None or other is self:
            return describe([])
        return paired_difference(self.by_seed(measure), other.by_seed(measure))

    def macs(self) -> float | None:
        """Mean multiply-accumulates of a run; None if they were not counted."""
        counted = [(run.get('cost') or {}).get('macs') for run in self.runs]
        return describe(sum(macs.values()) for macs in counted if isinstance(macs, Mapping) and macs).mean


@dataclasses.dataclass
class Comparison:
    """The rows of one table.

    Attributes:
      title: one line.
      rows: in the order of the table, without the teacher.
      runs: all summaries, including those of the teacher's own training.
      references: names of the rows that others are compared with. In a sweep these are labels.
      teacher: the teacher's row; None if it is unknown.
      sweep: name of the sweep and its pair; '' outside sweeps.
    """

    title: str
    rows: list[Row]
    runs: list[Summary]
    references: list[str]
    teacher: Row | None = None
    sweep: str = ''

    @property
    def measure(self) -> str:
        """What the rows are compared by, from `MEASURES`."""
        return judged_by(run for row in self.rows for run in row.runs)

    def base(self, row: Row, reference: str | None = None) -> Row | None:
        """The row that `row` is compared with; None for the reference itself, or if there is no such row.

        In a sweep, 'KC-KD, 60 %' is compared with the reference at the same budget ('Random KD, 60 %') if there is one.
        Otherwise, a selection is compared with its own method (KC-CRD with CRD) if the table has it, and any other row
        with the first row called `reference` (None: the first of `references`), plain KD before other methods.
        """
        reference = self.references[0] if reference is None else reference
        if self.sweep:
            _, comma, budget = row.label.rpartition(', ')
            by_label = {other.label: other for other in self.rows}
            base = (by_label.get(f'{reference}, {budget}') if comma else None) or by_label.get(reference)
        else:
            named = [other for other in self.rows if other.name == reference]
            own = [other for other in named if other.method == row.method and row.policy != 'none']
            base = next(iter(own + [other for other in named if other.method == 'kd'] + named), None)
        return None if row is base or row is self.teacher else base

    def full_macs(self) -> float | None:
        """Multiply-accumulates that are a cost of 100 %: in a sweep those of the first reference, if they were counted.

        None if costs are in samples.
        """
        whole = next((row for row in self.rows if row.label == self.references[0]), None) if self.sweep else None
        return whole.macs() if whole else None

    def cost(self, row: Row) -> float | None:
        """Multiply-accumulates over `full_macs`, or samples processed over those of training on every point."""
        full, own = self.full_macs(), row.macs()
        if full is None:
            return row.sample('cost', 'relative_processed').mean
        return None if own is None else own / full

    def whole(self) -> tuple[str, float] | None:
        """(name, multiply-accumulates) of a method on every point that all rows are relative to, KD if a row has it.

        None unless some rows ask a teacher and others do not: then each row is relative to its own method. None in a
        sweep, whose costs are relative to its first reference, and if those of the teacher were not counted.
        """
        taught = [row for row in self.rows if any(map(teacher_network, row.runs))]
        if self.sweep or len(taught) == len(self.rows):
            return None
        for row in sorted(taught, key=lambda row: row.method != 'kd'):
            full = row.sample('cost', 'macs_full').mean
            if full and row.sample('cost', 'macs', 'teacher_forward').mean:
                return names.display_name(row.method, 'none'), full
        return None

    def relative_macs(self, row: Row) -> float | None:
        """Multiply-accumulates over those of `whole`.

        Without it, over those of the same method on every point; if these are unknown, over those of the base row.
        """
        if (whole := self.whole()) is not None:
            own = row.macs()
            return own / whole[1] if own else None
        relative = row.sample('cost', 'relative_macs').mean
        if relative is not None:
            return relative
        own, full = row.macs(), (self.base(row) or row).macs()
        return own / full if own and full else None

    def samples_are_not_all(self) -> bool:
        """Whether some run's multiply-accumulates are not in proportion to its samples."""
        for run in (run for row in self.rows for run in row.runs):
            macs, samples = number(run, 'cost', 'relative_macs'), number(run, 'cost', 'relative_processed')
            differ = macs is not None and samples is not None and abs(macs - samples) > 5e-5
            if differ or number(run, 'cost', 'macs', 'scoring_forward'):
                return True
        return False


def describe_experiment(summaries: Sequence[Summary]) -> str:
    """'digits: resnet20 -> resnet8, 36 epochs': what all runs of a table share."""
    students = [summary for summary in summaries if not is_teacher(summary)] or list(summaries)
    first = students[0]
    teachers = sorted({teacher_network(summary) or '' for summary in students} - {''})
    pair = f'{teachers[0]} -> {first.get("student")}' if teachers else str(first.get('student'))
    epochs = full_epochs(first)
    return f'{first.get("dataset")}: {pair}' + (f', {epochs:.0f} epochs' if epochs is not None else '')


def setting_of(summary: Summary) -> tuple[Any, ...]:
    keys = ('dataset', 'student', 'num_points', 'batch', 'evaluated_on')
    return (*(summary.get(key) for key in keys), full_epochs(summary))


def _experiments(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """Splits summaries by setting and teacher network.

    A student trained alone joins every group of its setting; a teacher's own run, every group it taught.
    """
    groups: dict[tuple[Any, ...], list[Summary]] = {}
    students = [summary for summary in summaries if not is_teacher(summary)]
    for summary in students:
        if teacher_network(summary) is not None:
            groups.setdefault((*setting_of(summary), teacher_network(summary)), []).append(summary)
    for summary in students:
        if teacher_network(summary) is None:
            joined = [group for key, group in groups.items() if key[:-1] == setting_of(summary)]
            for group in joined or [groups.setdefault((*setting_of(summary), None), [])]:
                group.append(summary)
    for summary in filter(is_teacher, summaries):
        for key, group in groups.items():
            if (key[0], key[-1]) == (summary.get('dataset'), summary.get('student')):
                group.append(summary)
        if not groups:
            groups[(summary.get('dataset'), summary.get('student'))] = [summary]
    return list(groups.values())


def rows_of(summaries: Sequence[Summary]) -> list[Row]:
    """One row per name, method, policy and settings, in the usual order; teachers' own runs are left out.

    Raises:
      ValueError: two runs of a row have the same seed.
    """
    found: dict[tuple[Any, ...], list[Summary]] = {}
    for run in summaries:
        if not is_teacher(run):
            settings = tuple(sorted(names.variant(run).items()))
            found.setdefault((run_name(run), run['method'], run['policy'], settings), []).append(run)
    plain = []
    for (name, method, policy, _), runs in found.items():
        refuse_duplicates(f'run {name!r}', runs)
        usual = name in ('student', 'kd', policy)
        plain.append(names.display_name(method, policy) if usual else names.METHODS.get(name, name))
    labels = names.distinguish(plain, [dict(settings) for *_, settings in found])
    rows = [
        Row(key[0], label, sorted(runs, key=lambda run: run['seed']), *key[1:3])
        for (key, runs), label in zip(found.items(), labels, strict=True)
    ]

    def place(row: Row) -> tuple[int, bool]:
        usual = row.name in _ORDER
        return _ORDER.index(row.name) if usual else len(_ORDER), usual and row.method not in ('none', 'kd')

    return sorted(rows, key=place)


def _teacher_row(summaries: Sequence[Summary]) -> Row | None:
    """The teacher's own run if it is among the summaries, otherwise its accuracy as the students' runs measured it."""
    own = [summary for summary in summaries if is_teacher(summary)]
    taught = [summary for summary in summaries if teacher_network(summary)]
    # One teacher serves all seeds: its accuracy is a single measurement.
    measured = [{'seed': 0, 'accuracy': number(run, 'teacher', 'accuracy')} for run in taught]
    return Row('teacher', 'Teacher', (own or measured)[:1]) if own or measured else None


def _sweep_rows(runs: Sequence[Summary], expected: Sequence[Card]) -> list[Row]:
    """The rows of one pair of a sweep, in the sweep's order, including those without a finished run."""
    cards = [run['cell'] for run in runs] + list(expected)
    places = {card['label']: card['place'] for card in cards}
    rows = []
    for label in sorted(places, key=places.get):
        found = sorted((run for run in runs if run['cell']['label'] == label), key=lambda run: run['seed'])
        refuse_duplicates(f'row {label!r}', found)
        parts = (found[0]['method'], found[0]['policy']) if found else ('', '')
        rows.append(Row(run_name(found[0]) if found else label, label, found, *parts))
    return rows


def _sweeps(summaries: Sequence[Summary], expected: Sequence[Card]) -> list[Comparison]:
    """One comparison per sweep and pair of networks."""
    own = [summary for summary in summaries if not is_teacher(summary)]
    pairs: dict[tuple[str, str], list[Summary]] = {(card['sweep'], card['pair']): [] for card in expected}
    for summary in own:
        pairs.setdefault((summary['cell']['sweep'], summary['cell']['pair']), []).append(summary)
    found = []
    for (sweep, pair), runs in pairs.items():
        students = {run['student'] for run in runs}
        # A student trained alone is listed with one pair and belongs to every pair with its network.
        for run in own:
            card = run['cell']
            if run['method'] == 'none' and card['sweep'] == sweep and card['pair'] != pair:
                runs += [run] if run['student'] in students else []
        networks = {teacher_network(run) for run in runs} - {None}
        teachers = [one for one in summaries if is_teacher(one) and one['cell']['sweep'] == sweep]
        runs += [one for one in teachers if one['student'] in networks][:1]
        cards = [card for card in expected if (card['sweep'], card['pair']) == (sweep, pair)]
        card = runs[0]['cell'] if runs else cards[0]
        students = [run for run in runs if not is_teacher(run)]
        title = card['title'] + (f' ({describe_experiment(students)})' if students else '')
        name = f'{sweep}_{pair}'.rstrip('_')
        rows = _sweep_rows(students, cards)
        found.append(Comparison(title, rows, runs, list(card['references']), _teacher_row(runs), name))
    return found


def split(summaries: Sequence[Summary], reference: str = 'kd', expected: Sequence[Card] = ()) -> list[Comparison]:
    """All comparisons among the summaries: the sweeps, then the experiments.

    Args:
      summaries: as returned by `records.collect`.
      reference: name of the row that the others of an experiment are compared with; a sweep names its own.
      expected: cards of sweep rows to list even if no run has finished.

    Raises:
      ValueError: two runs of a row have the same seed.
    """
    # A run of a sweep has its row and column under 'cell'.
    found = _sweeps([summary for summary in summaries if isinstance(summary.get('cell'), Mapping)], expected)
    for runs in _experiments([summary for summary in summaries if not isinstance(summary.get('cell'), Mapping)]):
        found.append(Comparison(describe_experiment(runs), rows_of(runs), runs, [reference], _teacher_row(runs)))
    return found
