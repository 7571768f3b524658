"""Tables over runs: mean +- standard deviation over seeds, the paired difference to a reference, and the cost."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kcd_jax.report import names
from kcd_jax.report.groups import (
    Group,
    Summary,
    base_of,
    describe_experiment,
    experiments,
    group_runs,
    in_order,
    is_teacher,
    teacher_network,
    total_macs,
)
from kcd_jax.report.records import collect, number
from kcd_jax.report.statistics import Sample, describe, paired_difference

__all__ = ['Table', 'collect', 'experiment_table', 'experiment_tables', 'experiments']


@dataclasses.dataclass
class Table:
    """A table as text, Markdown and CSV.

    Attributes:
      title: one line.
      headers: the columns' titles; the first column names the rows.
      rows: a row of cells each; '' where nothing is known.
      records: the same as raw numbers, a mapping a row with the same keys; None where nothing is known.
      notes: lines below the table.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_text(self, width: int = 100) -> str:
        """Aligned columns in ASCII, at most `width` characters wide.

        Long names and headers are wrapped; columns that do not fit beside each other follow in blocks below.
        """
        headers = [header.replace('→', '->') for header in self.headers]
        rows = [[cell.replace('±', '+-').replace('→', '->') for cell in row] for row in self.rows]
        gap = 2
        cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(headers))]
        body = [max(size, len(header)) for size, header in zip(cells, headers, strict=True)]
        if sum(body) + gap * (len(body) - 1) > width:
            body = [max(size, *map(len, header.split())) for size, header in zip(cells, headers, strict=True)]
        # The names take what the others leave, and at least a fifth.
        body[0] = min(body[0], max(width // 5, width - sum(body[1:]) - gap * (len(body) - 1)))
        blocks: list[list[int]] = [[]]
        for place in range(1, len(body)):
            if blocks[-1] and sum(body[i] + gap for i in (*blocks[-1], place)) + body[0] > width:
                blocks.append([])
            blocks[-1].append(place)

        def aligned(row: Sequence[str], places: Sequence[int]) -> list[str]:
            wrapped = [textwrap.wrap(row[i], body[i], subsequent_indent='' if i else '  ') or [''] for i in places]
            lines = []
            for n in range(max(map(len, wrapped))):
                parts = [cell[n] if n < len(cell) else '' for cell in wrapped]
                sized = zip(parts[1:], places[1:], strict=True)
                lines.append((' ' * gap).join([parts[0].ljust(body[0]), *(part.rjust(body[i]) for part, i in sized)]))
            return [line.rstrip() for line in lines]

        lines = textwrap.wrap(self.title.replace('→', '->'), width)
        for number_of, others in enumerate(blocks):
            places = [0, *others]
            lines += [''] * bool(number_of) + aligned(headers, places)
            lines.append('-' * (sum(body[i] for i in places) + gap * (len(places) - 1)))
            for row in rows:
                lines += aligned(row, places)
        for note in self.notes:
            lines += textwrap.wrap(note.replace('±', '+-').replace('→', '->'), width)
        return '\n'.join(lines)

    def to_markdown(self) -> str:
        """A Markdown table, the title before it and the notes after it."""

        def line(cells: Sequence[str]) -> str:
            return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'

        rule = '|---|' + '---:|' * (len(self.headers) - 1)
        lines = [f'**{self.title}**', '', line(self.headers), rule, *map(line, self.rows)]
        for note in self.notes:
            lines += ['', note]
        return '\n'.join(lines) + '\n'

    def to_csv(self) -> str:
        """The raw numbers, a line a row: accuracies and agreement in percent, cost as a fraction, times in seconds."""
        out = io.StringIO()
        if self.records:
            writer = csv.DictWriter(out, list(self.records[0]), lineterminator='\n')
            writer.writeheader()
            writer.writerows({key: _plain(value) for key, value in record.items()} for record in self.records)
        else:
            writer = csv.writer(out, lineterminator='\n')
            writer.writerows([self.headers, *self.rows])
        return out.getvalue()


def _plain(value: Any) -> str:
    if value is None:
        return ''
    return (
        f'{value:.6g}'
        if isinstance(value, float) and abs(value) < 1e6
        else f'{value:.0f}'
        if isinstance(value, float)
        else str(value)
    )


# ------------------------------------------------------------------------------------------------------------ cells


def percent(value: float | None) -> str:
    """0.757 -> '75.70'; '' for None."""
    return '' if value is None else f'{100 * value:.2f}'


def with_sd(sample: Sample) -> str:
    """'75.70 ± 0.25' from fractions; no deviation where n = 1; '' where n = 0."""
    return percent(sample.mean) if sample.sd is None else f'{percent(sample.mean)} ± {percent(sample.sd)}'


def difference(sample: Sample) -> str:
    """'+0.78 ± 0.12' in percentage points, mean and standard error; no error where n = 1; '' where n = 0.

    >>> difference(paired_difference({0: 0.76, 1: 0.75}, {0: 0.75, 1: 0.73})), difference(describe([]))
    ('+1.50 ± 0.50', '')
    """
    if sample.mean is None:
        return ''
    error = '' if sample.standard_error is None else f' ± {percent(sample.standard_error)}'
    # Nothing, rounded, has no sign of its own: never '-0.00'.
    return f'{round(100 * sample.mean, 2) + 0.0:+.2f}{error}'


def quantity(value: float | None) -> str:
    """A count for reading: 9801920 -> '9.802 M', 4530 -> '4,530'; '' for None."""
    if value is None:
        return ''
    for size, letter in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
        if abs(value) >= size:
            return f'{value / size:#.4g}'.rstrip('.') + f' {letter}'
    return f'{value:,.0f}'


def seconds(value: float | None) -> str:
    """Seconds with a sensible number of digits: '7.1', '123', '12,345'; '' for None."""
    if value is None:
        return ''
    return f'{value:.1f}' if value < 100 else f'{value:,.0f}'


def _pct(value: float | None) -> float | None:
    return None if value is None else 100 * value


# ------------------------------------------------------------------------------------------------------ experiments

_Cell = Callable[[Group], str]


def _macs(group: Group) -> float | None:
    return describe(total_macs(run) for run in group.runs).mean


def _relative_macs(group: Group, base: Group | None) -> float | None:
    """Multiply-accumulates of a row over those of its method on every point; without those, over its base's."""
    relative = group.sample('cost', 'relative_macs').mean
    if relative is not None:
        return relative
    own, full = _macs(group), _macs(base or group)
    return own / full if own and full else None


def say_more_than_samples(runs: Iterable[Summary]) -> bool:
    """Whether the multiply-accumulates of a run are not in proportion to its samples."""
    for run in runs:
        macs, samples = number(run, 'cost', 'relative_macs'), number(run, 'cost', 'relative_processed')
        apart = macs is not None and samples is not None and abs(macs - samples) > 5e-5
        if apart or number(run, 'cost', 'macs', 'scoring_forward'):
            return True
    return False


def _columns(
    base: str, paired: Callable[[Group], Sample], relative_macs: Callable[[Group], float | None] | None
) -> list[tuple[str, _Cell]]:
    """(header, cell) of each column but the first."""
    # Samples say nothing of a scoring pass, nor of a method's own phases: where there is one, all passes are compared.
    macs = [] if relative_macs is None else [('MAC %', lambda group: percent(relative_macs(group)))]
    return [
        ('accuracy %', lambda group: with_sd(group.sample('accuracy'))),
        ('n', lambda group: str(group.sample('accuracy').n or '')),
        (f'vs {base}', lambda group: difference(paired(group))),
        ('pairs', lambda group: str(paired(group).n or '')),
        ('best %', lambda group: percent(group.sample('best_accuracy').mean)),
        ('cost %', lambda group: percent(group.sample('cost', 'relative_processed').mean)),
        *macs,
        ('samples', lambda group: quantity(group.sample('cost', 'processed_samples').mean)),
        ('seconds', lambda group: seconds(group.sample('seconds', 'total').mean)),
        ('agree %', lambda group: percent(group.sample('agreement').mean)),
    ]


def _record(group: Group, paired: Sample) -> dict[str, Any]:
    accuracy, best = group.sample('accuracy'), group.sample('best_accuracy')
    return {
        'run': group.label,
        'name': group.name,
        'method': group.method,
        'policy': group.policy,
        'accuracy_mean': _pct(accuracy.mean),
        'accuracy_sd': _pct(accuracy.sd),
        'n': accuracy.n,
        'difference_mean': _pct(paired.mean),
        'difference_se': _pct(paired.standard_error),
        'difference_n': paired.n,
        'best_mean': _pct(best.mean),
        'best_sd': _pct(best.sd),
        'relative_scheduled': group.sample('cost', 'relative_scheduled').mean,
        'relative_processed': group.sample('cost', 'relative_processed').mean,
        'samples': group.sample('cost', 'processed_samples').mean,
        'macs': _macs(group),
        'relative_macs': group.sample('cost', 'relative_macs').mean,
        'seconds': group.sample('seconds', 'total').mean,
        'agreement_mean': _pct(group.sample('agreement').mean),
        'teacher_kl_mean': group.sample('teacher_kl').mean,
        'seeds': ' '.join(str(run['seed']) for run in group.runs),
    }


def _teacher(summaries: Sequence[Summary]) -> Group | None:
    """The teacher's row: its own run where that was found, else its accuracy as the students' runs measured it."""
    own = [summary for summary in summaries if is_teacher(summary)]
    taught = [summary for summary in summaries if not is_teacher(summary) and teacher_network(summary)]
    if not own and not taught:
        return None
    if own:
        return Group('teacher', 'Teacher', own[:1], 'none', 'none')
    # One teacher serves all seeds: its accuracy is one number however many runs measured it.
    measured = {'seed': 0, 'accuracy': number(taught[0], 'teacher', 'accuracy')}
    return Group('teacher', 'Teacher', [measured], 'none', 'none')


def _notes(groups: Sequence[Group], base: str) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    sizes = sorted({group.sample('accuracy').n for group in groups} - {0})
    what = 'accuracy: last epoch'
    on = sorted({str(run['evaluated_on']) for run in runs if run.get('evaluated_on')})
    what += f', {" and ".join(on)} set' if on else ''
    notes = []
    if sizes and sizes[-1] > 1:
        what += '; mean ± sample standard deviation over n seeds'
        of = ' (of a selection: its method on everything; of a method: KD)' if base == 'base' else ''
        notes.append(f'vs {base}{of}: mean paired difference over shared seeds, in points, ± its standard error.')
    notes.insert(0, f'{what}; best epoch apart. cost: samples processed, of training on everything.')
    if say_more_than_samples(runs):
        own = any(number(run, 'cost', 'relative_macs') for run in runs)
        to = 'the same method on every point' if own else base
        notes.append(f'MAC: multiply-accumulates of every pass, scoring included, relative to {to}.')
    if sizes and sizes[0] == 1:
        notes.append('n = 1: a single run has no standard deviation; no claim rests on it.')
    teachers = {number(run, 'teacher', 'accuracy') for run in runs if teacher_network(run)}
    if len(teachers) > 1:
        notes.append(
            f'The runs had {len(teachers)} different teachers: their differences are not paired in the teacher.'
        )
    return notes


def experiment_table(summaries: Sequence[Summary], reference: str = 'kd', expected: Sequence[str] = ()) -> Table:
    """The table of one experiment: teacher, student alone, KD, random, KC-KD, and whatever else was run.

    Args:
      summaries: summaries of runs that can be compared (see `experiments`); a teacher's own run may be among them.
      reference: the run that the others are compared with, seed by seed (see `base_of`).
      expected: names of runs to be listed even before any of them has finished; their cells stay empty.

    Returns:
      The table. A cell for which no number was measured is empty.

    Raises:
      ValueError: there is no summary, the runs do not belong together, or a seed occurs twice in a row.
    """
    if not summaries:
        raise ValueError('no finished run was found; a run leaves summary.json when it has finished')
    parts = experiments(summaries)
    if len(parts) > 1:
        found = '; '.join(describe_experiment(part) for part in parts)
        raise ValueError(f'the runs are of {len(parts)} experiments ({found}); make a table of each')
    groups = group_runs(summaries)
    have = {group.name for group in groups}
    main = next((run['method'] for run in summaries if not is_teacher(run) and run['method'] != 'none'), 'kd')
    for name in expected:
        if name not in have and name != 'teacher':
            parts_of = {'student': ('none', 'none'), 'kd': (main, 'none')}.get(name, (main, name))
            groups.append(Group(name, names.display_name(*parts_of), [], *parts_of))
    groups = in_order(groups)
    bases = {id(group): base_of(group, groups, reference) for group in groups}
    used = {base.label for base in bases.values() if base}
    base = used.pop() if len(used) == 1 else 'base' if used else reference

    def paired(group: Group) -> Sample:
        other = bases.get(id(group))
        return (
            describe([]) if other is None else paired_difference(group.by_seed('accuracy'), other.by_seed('accuracy'))
        )

    notes = _notes(groups, base)
    teacher = _teacher(summaries)
    if teacher:
        groups.insert(0, teacher)
    more = say_more_than_samples(run for group in groups for run in group.runs)
    columns = _columns(base, paired, (lambda group: _relative_macs(group, bases.get(id(group)))) if more else None)
    rows = [[group.label, *(cell(group) for _, cell in columns)] for group in groups]
    if teacher:
        # One teacher for all seeds: n would count nothing that varies, and its cost is relative to nothing.
        rows[0] = [
            '' if header in ('n', 'cost %', 'MAC %') else cell
            for header, cell in zip(['run', *(header for header, _ in columns)], rows[0], strict=True)
        ]
    records = [_record(group, paired(group)) for group in groups]
    return Table(describe_experiment(summaries), ['run', *(header for header, _ in columns)], rows, records, notes)


def experiment_tables(summaries: Sequence[Summary], reference: str = 'kd') -> list[Table]:
    """A table of every experiment among the summaries, in the order found."""
    return [experiment_table(part, reference) for part in experiments(summaries)]
