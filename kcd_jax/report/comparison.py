"""Our results in the shape of a paper's table, with the printed figure and the difference beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kcd_jax.report import names
from kcd_jax.report.groups import Summary, full_epochs, is_teacher, refuse_twice, teacher_network, total_macs
from kcd_jax.report.papers import TABLES, Cell, Column, PaperTable, Row, find, usual
from kcd_jax.report.records import number
from kcd_jax.report.statistics import Sample, describe, paired_difference
from kcd_jax.report.tables import Table

# {measure of a column: (keys in a summary, factor, offset)}: factor * value + offset is what the paper prints.
_MEASURES = {
    'accuracy': (('accuracy',), 100.0, 0.0),
    'error': (('accuracy',), -100.0, 100.0),
    'top5': (('top5_accuracy',), 100.0, 0.0),
    'top5_error': (('top5_accuracy',), -100.0, 100.0),
    'parameters': (('parameters',), 1e-6, 0.0),
}


def _equal(value: str, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except ValueError:
        return value == wanted


def _settings(run: Summary) -> dict[str, str]:
    """What of a run's configuration is compared; a keyword of its policy that it does not name is the paper's."""
    found = {**usual(run['method'], run['policy']), **names.variant(run)}
    if found.get('policy.k') == '0':
        found['policy.k'] = str(round(0.75 * (number(run, 'batch') or 0)))  # the policy's own default
    return found


def _belongs(run: Summary, row: Row, column: Column, table: PaperTable) -> bool:
    """Whether a run is one of a cell's."""
    if column.measure == 'mean':
        return False
    if run.get('dataset') != table.dataset or (table.epochs is not None and full_epochs(run) != table.epochs):
        return False
    if run.get('evaluated_on', 'test') != 'test' or number(run, 'config', 'data', 'num_points'):
        return False
    if column.teacher and row.kind != 'student' and teacher_network(run) != column.teacher:
        return False
    student = row.student or column.student
    if row.kind == 'teacher':
        return True
    if (student and run.get('student') != student) or (run['method'], run['policy']) != (row.method, row.policy):
        return False
    settings = _settings(run)
    return all(
        key in settings and _equal(settings[key], wanted)
        for key, wanted in row.settings_at(table.columns.index(column)).items()
    )


def _runs(summaries: Sequence[Summary], row: Row, column: Column, table: PaperTable) -> list[Summary]:
    if row.kind == 'none':
        return []
    found = [run for run in summaries if not is_teacher(run) and _belongs(run, row, column, table)]
    if row.kind != 'teacher':
        refuse_twice(f'{table.title.split(":")[0]}, {row.label}, {column.title}', found)
    return found


def _ours(runs: Sequence[Summary], row: Row, column: Column) -> Sample:
    """The cell's numbers over the seeds, in the paper's unit."""
    keys, factor, offset = _MEASURES[column.measure]
    if row.kind == 'teacher':
        # One teacher serves many runs: it is counted once.
        measured = {number(run, 'teacher', *keys) for run in runs} - {None}
    else:
        measured = [value for value in (number(run, *keys) for run in runs) if value is not None]
    return describe(factor * value + offset for value in sorted(measured))


def _mean(samples: Sequence[Sample]) -> Sample:
    """The mean over columns, of which each counts once whatever its seeds; nothing where one is empty."""
    means = [sample.mean for sample in samples]
    return Sample(None, None, 0) if not means or None in means else Sample(sum(means) / len(means), None, len(means))


def _gain(runs: Sequence[Summary], base: Sequence[Summary], column: Column) -> Sample:
    """What a row is above the row of its method on everything, in the paper's unit, paired over seeds."""
    keys, factor, _ = _MEASURES[column.measure]
    own, other = ({run['seed']: number(run, *keys) for run in part} for part in (runs, base))
    gaps = paired_difference(own, other)
    scaled = None if gaps.sd is None else abs(factor) * gaps.sd
    return gaps if gaps.mean is None else Sample(factor * gaps.mean, scaled, gaps.n)


def _printed_gain(row: Row, place: int, table: PaperTable) -> float | None:
    """What the paper's row is above the row of its method on everything; None where it has none."""
    wanted = _base(row)
    for other in table.rows if row.kind == 'run' and row.policy != 'none' else ():
        same = (other.kind, other.method, other.policy, other.settings) == ('run', row.method, 'none', wanted.settings)
        if same and other.cells[place] is not None and row.cells[place] is not None:
            return row.cells[place].value - other.cells[place].value
    return None


def _cost(runs: Sequence[Summary], base: Sequence[Summary], table: PaperTable) -> float | None:
    """Relative cost in percent: samples processed, or multiply-accumulates against the method on everything."""
    if table.cost == 'samples':
        mean = describe(number(run, 'cost', 'relative_processed') for run in runs).mean
    else:
        own, full = (describe(total_macs(run) for run in part).mean for part in (runs, base))
        mean = own / full if own and full else None
    return None if mean is None else 100 * mean


def _written(sample: Sample) -> str:
    if sample.mean is None:
        return ''
    return (
        f'{sample.mean:.2f} ({sample.n})' if sample.sd is None else f'{sample.mean:.2f} ± {sample.sd:.2f} ({sample.n})'
    )


def _printed(cell: Cell | None) -> str:
    return '' if cell is None else f'{cell.value:.2f}{"*" if cell.doubtful else ""}'


def _base(row: Row) -> Row:
    """The row of the same method on everything."""
    settings: Mapping[str, str] = {k: v for k, v in row.settings.items() if not k.startswith('policy.')}
    return Row(row.label, row.kind, row.method, 'none', settings, row.student, row.cells)


def matching(name: str, summaries: Sequence[Summary]) -> int:
    """How many runs belong into a paper's table, teacher rows aside."""
    table = find(name)
    used = {
        id(run)
        for row in table.rows
        if row.kind != 'teacher'
        for column in table.columns
        for run in summaries
        if row.kind != 'none' and not is_teacher(run) and _belongs(run, row, column, table)
    }
    return len(used)


def paper_table(name: str, summaries: Sequence[Summary], only_ours: bool = False) -> Table:
    """A paper's table with our results.

    Args:
      name: of the table ('kcd_table1').
      summaries: any runs; those of the paper's data, length, networks and settings are taken.
      only_ours: leave out columns in which nothing of ours has finished.

    Returns:
      For each printed row: ours (mean ± sample sd (seeds), empty where nothing has finished), the paper's, the
      difference of the means, and of a selection its gain over the same method on everything (ours paired over seeds, ±
      standard error) and its cost, each with the paper's in brackets. Doubtful figures bear a *.

    Raises:
      ValueError: there is no such table, or a cell has a seed twice.
    """
    table = find(name)
    rows, records = [], []
    shown = list(range(len(table.columns)))
    if only_ours:
        own = [row for row in table.rows if row.kind not in ('none', 'teacher')]
        found = [i for i in shown if any(_runs(summaries, row, table.columns[i], table) for row in own)]
        means = [i for i in shown if table.columns[i].measure == 'mean']
        shown = found + means if len(found) + len(means) == len(shown) else found
    for row in table.rows:
        lines: dict[str, list[str]] = {'ours': [], 'paper': [], 'difference': [], 'gain': [], 'cost': []}
        samples: list[Sample] = []
        for place in shown:
            column, cell = table.columns[place], row.cells[place]
            runs = _runs(summaries, row, column, table)
            base = _runs(summaries, _base(row), column, table) if row.kind == 'run' else []
            whole = column.measure == 'mean'
            sample = _mean(samples) if whole else _ours(runs, row, column)
            samples.append(sample)
            paired = _gain(runs, base, column) if base and row.policy != 'none' and not whole else describe([])
            paper_gain = _printed_gain(row, place, table)
            gap = sample.mean - cell.value if cell is not None and sample.mean is not None else None
            cost = (
                _cost(runs, base, table) if row.kind == 'run' and column.measure not in ('parameters', 'mean') else None
            )
            paper_cost = cell.cost if cell else None
            lines['ours'].append(_written(sample))
            lines['paper'].append(_printed(cell))
            lines['difference'].append('' if gap is None else f'{gap:+.2f}')
            printed = '' if paper_gain is None else f'({paper_gain:+.2f})'
            error = '' if paired.standard_error is None else f' ± {paired.standard_error:.2f}'
            own = '' if paired.mean is None else f'{paired.mean:+.2f}{error}'
            lines['gain'].append(' '.join(part for part in (own, printed) if part))
            both = ('' if cost is None else f'{cost:.2f}', '' if paper_cost is None else f'({paper_cost:.2f})')
            lines['cost'].append(' '.join(part for part in both if part))
            records.append(
                {
                    'table': name, 'row': row.label, 'column': column.title, 'measure': column.measure,
                    'mean': sample.mean, 'sd': sample.sd, 'n': sample.n,
                    'paper': cell.value if cell else None, 'doubtful': int(cell.doubtful) if cell else None,
                    'difference': gap, 'gain': paired.mean, 'gain_se': paired.standard_error, 'paper_gain': paper_gain,
                    'cost': cost, 'paper_cost': paper_cost,
                }
            )  # fmt: skip
        if row.kind != 'none':
            rows.append([row.label, *lines['ours']])
        rows.append([f'{row.label}, paper', *lines['paper']])
        if any(lines['difference']):
            rows.append([f'{row.label}, difference', *lines['difference']])
        if any(lines['gain']):
            rows.append([f'{row.label}, gain (paper)', *lines['gain']])
        if any(part and part != '100.00' for part in lines['cost']):
            rows.append([f'{row.label}, cost % (paper)', *lines['cost']])
    notes = ['Ours: mean ± sample standard deviation over seeds (their number), last epoch. Empty: not finished.']
    if any(row[0].endswith(', gain (paper)') for row in rows):
        notes.append('Gain: over the same method on everything; ours paired over seeds, ± its standard error.')
    if any('*' in cell for row in rows for cell in row[1:]):
        notes.append('*: the printed figure is doubtful.')
    headers = [table.columns[place].title for place in shown]
    return Table(table.title, [name, *headers], rows, records, [*notes, *table.notes])


def paper_tables(summaries: Sequence[Summary]) -> list[Table]:
    """Every paper's table into which some of the runs belong, with the columns that they fill."""
    return [paper_table(name, summaries, only_ours=True) for name in TABLES if matching(name, summaries)]
