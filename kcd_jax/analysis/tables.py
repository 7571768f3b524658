"""Tables over runs: mean +- standard deviation over seeds, the paired difference to a reference, and the cost."""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kcd_jax.analysis import names
from kcd_jax.analysis.records import FILE, SUMMARY, collect, number
from kcd_jax.analysis.statistics import Sample, describe, paired_difference

__all__ = ['Table', 'collect', 'experiment_table', 'experiment_tables', 'experiments']

Summary = Mapping[str, Any]
# In a table the usual runs come in this order, the others after them as they were found.
_ORDER = ('teacher', 'student', 'kd', 'random', 'kcd')


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
        """Aligned columns in ASCII, at most `width` characters wide: long names and headers are wrapped."""
        rows = [[cell.replace('±', '+-') for cell in row] for row in self.rows]
        gap = 2
        cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(self.headers))]
        body = [max(size, len(header)) for size, header in zip(cells, self.headers, strict=True)]
        if sum(body) + gap * (len(body) - 1) > width:
            body = [max(size, *map(len, header.split())) for size, header in zip(cells, self.headers, strict=True)]
        others = sum(body[1:]) + gap * (len(body) - 1)
        body[0] = max(8, min(body[0], width - others))

        def block(cells: Sequence[str]) -> list[str]:
            wrapped = [
                textwrap.wrap(cell, size, subsequent_indent='  ' if i == 0 and size > 12 else '') or ['']
                for i, (cell, size) in enumerate(zip(cells, body, strict=True))
            ]
            lines = []
            for n in range(max(map(len, wrapped))):
                parts = [cell[n] if n < len(cell) else '' for cell in wrapped]
                first = parts[0].ljust(body[0])
                rest = [part.rjust(size) for part, size in zip(parts[1:], body[1:], strict=True)]
                lines.append((' ' * gap).join([first, *rest]).rstrip())
            return lines

        lines = textwrap.wrap(self.title, width) + block(self.headers)
        lines.append('-' * min(width, sum(body) + gap * (len(body) - 1)))
        for row in rows:
            lines += block(row)
        for note in self.notes:
            lines += textwrap.wrap(note.replace('±', '+-'), width)
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
    """'+0.78 ± 0.12' in percentage points, mean and standard error; no error where n = 1; '' where n = 0."""
    if sample.mean is None:
        return ''
    error = '' if sample.standard_error is None else f' ± {percent(sample.standard_error)}'
    return f'{100 * sample.mean:+.2f}{error}'


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


def is_teacher(summary: Summary) -> bool:
    """Whether the summary is that of a teacher's own training."""
    file = Path(summary.get(FILE, ''))
    return summary.get('name') == 'teacher' or (file.name == SUMMARY and file.parent.name == 'teacher')


def run_name(summary: Summary) -> str:
    """The run's name; where it has none (a single run), what it would be called in a comparison."""
    if summary.get('name'):
        return str(summary['name'])
    if summary['policy'] != 'none':
        return str(summary['policy'])
    return 'student' if summary['method'] == 'none' else 'kd'


def teacher_network(summary: Summary) -> str | None:
    """The teacher's network; None for a student alone."""
    teacher = summary.get('teacher')
    return teacher.get('network') if isinstance(teacher, Mapping) else None


def _setting(summary: Summary) -> tuple[Any, ...]:
    return tuple(summary.get(key) for key in ('dataset', 'student', 'num_points', 'epochs', 'batch', 'evaluated_on'))


def experiments(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """Splits summaries into what can be compared: one teacher network, student, dataset, length and batch each.

    A student trained alone joins every group of its setting; a teacher's own run, every group taught by its network.
    """
    groups: dict[tuple[Any, ...], list[Summary]] = {}
    alone = []
    for summary in summaries:
        if is_teacher(summary):
            continue
        if teacher_network(summary) is None:
            alone.append(summary)
        else:
            groups.setdefault((*_setting(summary), teacher_network(summary)), []).append(summary)
    for summary in alone:
        joined = [group for key, group in groups.items() if key[:-1] == _setting(summary)]
        if not joined:
            joined = [groups.setdefault((*_setting(summary), None), [])]
        for group in joined:
            group.append(summary)
    for summary in filter(is_teacher, summaries):
        taught = [
            group
            for key, group in groups.items()
            if key[0] == summary.get('dataset') and key[-1] == summary.get('student')
        ]
        for group in taught:
            group.append(summary)
        if not groups:
            groups[(summary.get('dataset'), summary.get('student'))] = [summary]
    return list(groups.values())


@dataclasses.dataclass
class Group:
    """The runs of one row: they differ in the seed alone."""

    name: str
    label: str
    runs: list[Summary]

    def by_seed(self, *keys: str) -> dict[int, float | None]:
        """{seed: number}."""
        return {run['seed']: number(run, *keys) for run in self.runs}

    def sample(self, *keys: str) -> Sample:
        """The number over the seeds."""
        return describe(self.by_seed(*keys).values())


def group_runs(summaries: Sequence[Summary]) -> list[Group]:
    """Rows of a table: the runs of one name, method, policy and options together, in the usual order.

    Raises:
      ValueError: a seed occurs twice in a row.
    """
    found: dict[tuple[Any, ...], list[Summary]] = {}
    for summary in summaries:
        if not is_teacher(summary):
            key = (
                run_name(summary),
                summary['method'],
                summary['policy'],
                tuple(sorted(names.variant(summary).items())),
            )
            found.setdefault(key, []).append(summary)
    for (name, *_), runs in found.items():
        seeds: dict[Any, Summary] = {}
        for run in runs:
            if run['seed'] in seeds:
                files = f'{seeds[run["seed"]].get(FILE, "one")} and {run.get(FILE, "another")}'
                raise ValueError(f'run {name!r} has seed {run["seed"]} twice ({files}); give one of them')
            seeds[run['seed']] = run
    keys = sorted(found, key=lambda key: _ORDER.index(key[0]) if key[0] in _ORDER else len(_ORDER))
    plain = [names.display_name(method, policy) for _, method, policy, _ in keys]
    labels = names.distinguish(plain, [names.variant(found[key][0]) for key in keys])
    return [
        Group(key[0], label, sorted(found[key], key=lambda run: run['seed']))
        for key, label in zip(keys, labels, strict=True)
    ]


def reference_group(groups: Sequence[Group], reference: str) -> Group | None:
    """The row that the others are compared with; None where it has not finished.

    It is the first of that name; for 'kd', where none is called so, the first that distils on everything.
    """
    named = [group for group in groups if group.name == reference]
    if not named and reference == 'kd':
        named = [
            group
            for group in groups
            if group.runs and group.runs[0]['method'] != 'none' and group.runs[0]['policy'] == 'none'
        ]
    return named[0] if named else None


def describe_experiment(summaries: Sequence[Summary]) -> str:
    """'digits: resnet20 -> resnet8, 36 epochs': what all runs of a table share."""
    students = [summary for summary in summaries if not is_teacher(summary)] or list(summaries)
    first = students[0]
    teachers = sorted({teacher_network(summary) or '' for summary in students} - {''})
    pair = f'{teachers[0]} -> {first.get("student")}' if teachers else str(first.get('student'))
    epochs = first.get('epochs')
    return f'{first.get("dataset")}: {pair}' + (f', {epochs} epochs' if epochs is not None else '')


_Cell = Callable[[Group], str]


def _columns(base: str, paired: Callable[[Group], Sample]) -> list[tuple[str, _Cell]]:
    """(header, cell) of each column but the first."""
    return [
        ('accuracy %', lambda group: with_sd(group.sample('accuracy'))),
        ('n', lambda group: str(group.sample('accuracy').n or '')),
        (f'vs {base}', lambda group: difference(paired(group))),
        ('pairs', lambda group: str(paired(group).n or '')),
        ('best %', lambda group: percent(group.sample('best_accuracy').mean)),
        ('cost %', lambda group: percent(group.sample('cost', 'relative_processed').mean)),
        ('samples', lambda group: quantity(group.sample('cost', 'processed_samples').mean)),
        ('seconds', lambda group: seconds(group.sample('seconds', 'total').mean)),
        ('agree %', lambda group: percent(group.sample('agreement').mean)),
    ]


def _record(group: Group, paired: Sample) -> dict[str, Any]:
    accuracy, best = group.sample('accuracy'), group.sample('best_accuracy')
    first = group.runs[0] if group.runs else {}
    macs = [
        float(sum(run['cost']['macs'].values()))
        for run in group.runs
        if isinstance(run.get('cost', {}).get('macs'), Mapping)
    ]
    return {
        'run': group.label,
        'name': group.name,
        'method': first.get('method'),
        'policy': first.get('policy'),
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
        'macs': describe(macs).mean,
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
        return Group('teacher', 'Teacher', own[:1])
    # One teacher serves all seeds: its accuracy is one number however many runs measured it.
    measured = {'seed': 0, 'accuracy': number(taught[0], 'teacher', 'accuracy')}
    return Group('teacher', 'Teacher', [measured])


def _notes(groups: Sequence[Group], base: str) -> list[str]:
    runs = [run for group in groups for run in group.runs]
    sizes = sorted({group.sample('accuracy').n for group in groups} - {0})
    what = 'accuracy: last epoch'
    on = sorted({str(run['evaluated_on']) for run in runs if run.get('evaluated_on')})
    what += f', {" and ".join(on)} set' if on else ''
    notes = []
    if sizes and sizes[-1] > 1:
        what += '; mean ± sample standard deviation over n seeds'
        notes.append(
            f'vs {base}: mean paired difference in percentage points over the shared seeds ± its standard error.'
        )
    notes.insert(0, f'{what}; best epoch apart. cost: samples processed, of training on everything.')
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
      reference: the name of the run that the others are compared with, seed by seed.
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
            groups.append(Group(name, names.display_name(*parts_of), []))
    groups.sort(key=lambda group: _ORDER.index(group.name) if group.name in _ORDER else len(_ORDER))
    base_group = reference_group(groups, reference)
    base = base_group.label if base_group else reference

    def paired(group: Group) -> Sample:
        if base_group is None or group is base_group or group.name == 'teacher':
            return describe([])
        return paired_difference(group.by_seed('accuracy'), base_group.by_seed('accuracy'))

    notes = _notes(groups, base)
    teacher = _teacher(summaries)
    if teacher:
        groups.insert(0, teacher)
    columns = _columns(base, paired)
    rows = [[group.label, *(cell(group) for _, cell in columns)] for group in groups]
    if teacher:
        rows[0][2] = ''  # one teacher for all seeds: n would count nothing that varies
        rows[0][6] = ''
    records = [_record(group, paired(group)) for group in groups]
    return Table(describe_experiment(summaries), ['run', *(header for header, _ in columns)], rows, records, notes)


def experiment_tables(summaries: Sequence[Summary], reference: str = 'kd') -> list[Table]:
    """A table of every experiment among the summaries, in the order found."""
    return [experiment_table(part, reference) for part in experiments(summaries)]
