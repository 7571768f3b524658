"""The tables of the papers with results of ours next to the printed numbers."""

from __future__ import annotations

from collections.abc import Sequence

from kcd_jax.report import names
from kcd_jax.report.comparisons import Row, Summary, full_epochs, is_teacher, refuse_duplicates, teacher_network
from kcd_jax.report.papers import TABLES, Column, PaperTable, find, usual
from kcd_jax.report.papers import Row as PaperRow
from kcd_jax.report.records import number
from kcd_jax.report.statistics import Sample, describe, paired_difference
from kcd_jax.report.tables import Table, difference

# {measure of a column: (keys in a summary, factor, offset)}: the paper prints factor * value + offset.
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


def _belongs(run: Summary, row: PaperRow, place: int, table: PaperTable) -> bool:
    """Whether a run belongs in the cell of `row` in the column at `place`."""
    column = table.columns[place]
    if column.measure == 'mean' or row.kind == 'none' or is_teacher(run):
        return False
    if run.get('dataset') != table.dataset or (table.epochs is not None and full_epochs(run) != table.epochs):
        return False
    if run.get('evaluated_on', 'test') != 'test' or number(run, 'run', 'data', 'num_points'):
        return False
    if column.teacher and row.kind != 'student' and teacher_network(run) != column.teacher:
        return False
    if row.kind == 'teacher':
        return True
    student = row.student or column.student
    if (student and run.get('student') != student) or (run['method'], run['policy']) != (row.method, row.policy):
        return False
    # A setting that the run's description lacks has the paper's value.
    settings = {**usual(run['method'], run['policy']), **names.variant(run)}
    if settings.get('policy.k') == '0':
        settings['policy.k'] = str(round(0.75 * (number(run, 'batch') or 0)))  # the policy's own default
    wanted = row.settings_at(place)
    return all(key in settings and _equal(settings[key], value) for key, value in wanted.items())


def _cell_runs(summaries: Sequence[Summary], row: PaperRow, place: int, table: PaperTable) -> Row:
    found = [run for run in summaries if _belongs(run, row, place, table)]
    if row.kind != 'teacher':
        refuse_duplicates(f'{table.title.split(":")[0]}, {row.label}, {table.columns[place].title}', found)
    return Row(row.kind, row.label, found, row.method, row.policy)


def _ours(runs: Row, row: PaperRow, column: Column) -> Sample:
    """Our results over the seeds, in the paper's unit."""
    keys, factor, offset = _MEASURES[column.measure]
    values = [value for value in runs.by_seed(*keys).values() if value is not None]
    if row.kind == 'teacher':  # one teacher serves many runs
        values = sorted({number(run, 'teacher', *keys) for run in runs.runs} - {None})
    return describe(factor * value + offset for value in sorted(values))


def _mean(samples: Sequence[Sample]) -> Sample:
    """The mean over columns; each counts once whatever its number of seeds. Empty if one of them is."""
    means = [sample.mean for sample in samples]
    return Sample(None, None, 0) if not means or None in means else Sample(sum(means) / len(means), None, len(means))


def _gain(runs: Row, base: Row, column: Column) -> Sample:
    """Paired difference from the same method on every point, in the paper's unit."""
    keys, factor, _ = _MEASURES[column.measure]
    scaled = ({seed: value and factor * value for seed, value in one.by_seed(*keys).items()} for one in (runs, base))
    return paired_difference(*scaled)


def _printed_gain(row: PaperRow, place: int, table: PaperTable) -> float | None:
    """The printed difference from the row of the same method on every point; None if there is none."""
    wanted = _on_every_point(row).settings
    for other in table.rows if row.kind == 'run' and row.policy != 'none' else ():
        same = (other.kind, other.method, other.policy, other.settings) == ('run', row.method, 'none', wanted)
        if same and other.cells[place] is not None and row.cells[place] is not None:
            return row.cells[place].value - other.cells[place].value
    return None


def _cost(runs: Row, base: Row, table: PaperTable) -> float | None:
    """Relative cost in percent: samples processed, or multiply-accumulates over those of the method on every point."""
    if table.cost == 'samples':
        mean = runs.sample('cost', 'relative_processed').mean
    else:
        own, full = runs.macs(), base.macs()
        mean = own / full if own and full else None
    return None if mean is None else 100 * mean


def _on_every_point(row: PaperRow) -> PaperRow:
    """The row of the same method on every point."""
    settings = {key: value for key, value in row.settings.items() if not key.startswith('policy.')}
    return PaperRow(row.label, row.kind, row.method, 'none', settings, row.student, row.cells)


def _written(sample: Sample) -> str:
    if sample.mean is None:
        return ''
    return f'{sample.mean:.2f}' + ('' if sample.sd is None else f' ± {sample.sd:.2f}') + f' ({sample.n})'


def _both(ours: str, printed: float | None, spec: str) -> str:
    """'75.00 (94.06)': ours, and the paper's in parentheses."""
    return ' '.join(part for part in (ours, '' if printed is None else f'({printed:{spec}})') if part)


def matching(name: str, summaries: Sequence[Summary]) -> int:
    """The number of runs that belong in a paper's table, rows of teachers aside."""
    table = find(name)
    rows = [row for row in table.rows if row.kind != 'teacher']
    places = range(len(table.columns))
    return sum(any(_belongs(run, row, place, table) for row in rows for place in places) for run in summaries)


def paper_table(name: str, summaries: Sequence[Summary], only_ours: bool = False) -> Table:
    """A paper's table with our results.

    Args:
      name: of the table ('kcd_table1').
      summaries: any runs; those with the paper's data, length, networks and settings are used.
      only_ours: leave out columns in which no run of ours has finished.

    Returns:
      For each printed row: ours (mean ± sample standard deviation (seeds); empty if nothing has finished), the paper's,
      the difference of the means, and for a selection its gain over the same method on every point (ours paired over
      seeds, with its 95 % interval) and its cost, each with the paper's in parentheses. Doubtful numbers carry a *.

    Raises:
      ValueError: there is no such table, or two runs of a cell have the same seed.
    """
    table = find(name)
    rows, records = [], []
    shown = list(range(len(table.columns)))
    if only_ours:
        own = [row for row in table.rows if row.kind != 'teacher']
        means = [i for i in shown if table.columns[i].measure == 'mean']
        found = [i for i in shown if any(_belongs(run, row, i, table) for row in own for run in summaries)]
        shown = found + means if len(found) + len(means) == len(shown) else found
    for row in table.rows:
        lines: dict[str, list[str]] = {'ours': [], 'paper': [], 'difference': [], 'gain': [], 'cost': []}
        samples: list[Sample] = []
        for place in shown:
            column, cell = table.columns[place], row.cells[place]
            runs = _cell_runs(summaries, row, place, table)
            base = _cell_runs(summaries if row.kind == 'run' else (), _on_every_point(row), place, table)
            whole = column.measure == 'mean'
            sample = _mean(samples) if whole else _ours(runs, row, column)
            samples.append(sample)
            gain = _gain(runs, base, column) if row.policy != 'none' and not whole else describe([])
            paper_gain = _printed_gain(row, place, table)
            gap = sample.mean - cell.value if cell is not None and sample.mean is not None else None
            costs = row.kind == 'run' and column.measure not in ('parameters', 'mean')
            cost, paper_cost = _cost(runs, base, table) if costs else None, cell.cost if cell else None
            low, high = gain.interval() or (None, None)
            lines['ours'].append(_written(sample))
            lines['paper'].append('' if cell is None else f'{cell.value:.2f}{"*" if cell.doubtful else ""}')
            lines['difference'].append('' if gap is None else f'{gap:+.2f}')
            lines['gain'].append(_both(difference(gain, 1), paper_gain, '+.2f'))
            lines['cost'].append(_both('' if cost is None else f'{cost:.2f}', paper_cost, '.2f'))
            records.append(
                {
                    'table': name, 'row': row.label, 'column': column.title, 'measure': column.measure,
                    'mean': sample.mean, 'sd': sample.sd, 'n': sample.n,
                    'paper': cell.value if cell else None, 'doubtful': int(cell.doubtful) if cell else None,
                    'difference': gap, 'gain': gain.mean, 'gain_low': low, 'gain_high': high, 'paper_gain': paper_gain,
                    'cost': cost, 'paper_cost': paper_cost,
                }
            )  # fmt: skip
        if row.kind != 'none':
            rows.append([row.label, *lines['ours']])
        rows.append([f'{row.label}, paper', *lines['paper']])
        titles = {'difference': 'difference', 'gain': 'gain (paper)', 'cost': 'cost % (paper)'}
        for key, title in titles.items():
            if any(part and (key != 'cost' or part != '100.00') for part in lines[key]):
                rows.append([f'{row.label}, {title}', *lines[key]])
    notes = ['Ours: mean ± sample standard deviation over seeds (number of seeds), last epoch. Empty: not finished.']
    if any(row[0].endswith(', gain (paper)') for row in rows):
        notes.append('Gain: over the same method on every point; ours paired over seeds [95 % interval, t].')
    if any('*' in cell for row in rows for cell in row[1:]):
        notes.append('*: the printed number is doubtful.')
    headers = [table.columns[place].title for place in shown]
    return Table(table.title, [name, *headers], rows, records, [*notes, *table.notes])


def paper_tables(summaries: Sequence[Summary]) -> list[Table]:
    """Every paper's table in which some of the runs belong, limited to the columns that they fill."""
    return [paper_table(name, summaries, only_ours=True) for name in TABLES if matching(name, summaries)]
