"""Tables of runs: accuracy over seeds, paired differences from reference rows, and cost.

In every table, ± is a sample standard deviation over seeds, and brackets after a difference are its 95 % confidence
interval by Student's t.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from kcd_jax.report.comparisons import Comparison, Summary, split, teacher_network
from kcd_jax.report.records import collect, number, to_csv
from kcd_jax.report.statistics import Sample, describe, paired_difference  # noqa: F401 (the doctests)

__all__ = ['Table', 'collect', 'comparison_table', 'tables']


@dataclasses.dataclass
class Table:
    """A table as text, Markdown and CSV.

    Attributes:
      title: one line.
      headers: titles of the columns; the first column names the rows.
      rows: cells of each row; '' if nothing is known.
      records: the same rows as raw numbers, mappings with equal keys; None if nothing is known.
      notes: lines below the table.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_text(self, width: int = 100) -> str:
        """Aligned columns in ASCII, at most `width` characters wide.

        Long names and headers are wrapped, and columns move closer; those that do not fit continue in blocks below.
        """
        headers, *rows = [[_ascii(cell) for cell in row] for row in (self.headers, *self.rows)]
        gap = 2
        cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(headers))]
        body = [max(size, len(header)) for size, header in zip(cells, headers, strict=True)]
        if sum(body) + gap * (len(body) - 1) > width:
            body = [max([size, *map(len, header.split())]) for size, header in zip(cells, headers, strict=True)]
            if sum(body) + len(body) - 1 <= width < sum(body) + gap * (len(body) - 1):
                gap = 1
        # The names take what the other columns leave, and at least a fifth.
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

        lines = textwrap.wrap(_ascii(self.title), width)
        for block, others in enumerate(blocks):
            places = [0, *others]
            lines += [''] * bool(block) + aligned(headers, places)
            lines.append('-' * (sum(body[i] for i in places) + gap * (len(places) - 1)))
            for row in rows:
                lines += aligned(row, places)
        for note in self.notes:
            lines += textwrap.wrap(_ascii(note), width)
        return '\n'.join(lines)

    def to_markdown(self) -> str:
        """A Markdown table, preceded by the title and followed by the notes."""

        def line(cells: Sequence[str]) -> str:
            return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'

        rule = '|---|' + '---:|' * (len(self.headers) - 1)
        lines = [f'**{self.title}**', '', line(self.headers), rule, *map(line, self.rows)]
        for note in self.notes:
            lines += ['', note]
        return '\n'.join(lines) + '\n'

    def to_csv(self) -> str:
        """The raw numbers, one line per row: accuracies in percent, costs as fractions, times in seconds."""
        records = self.records or [dict(zip(self.headers, row, strict=True)) for row in self.rows]
        return to_csv(records, _plain) if records else ','.join(self.headers) + '\n'


# What each measure is, in notes.
MEANINGS = {
    'accuracy': 'accuracy: ',
    'agreement': 'agreement with the teacher, as the images have no labels: ',
    'cosine': "cosine of the embeddings to the teacher's, times 100: ",
}


def _ascii(text: str) -> str:
    return text.replace('→', '->').replace('±', '+-')


def _plain(value: Any) -> str:
    if value is None or not isinstance(value, float):
        return '' if value is None else str(value)
    return f'{value:.6g}' if abs(value) < 1e6 else f'{value:.0f}'


def percent(value: float | None) -> str:
    """0.757 -> '75.70'; '' for None."""
    return '' if value is None else f'{100 * value:.2f}'


def with_sd(sample: Sample) -> str:
    """'75.70 ± 0.25' from fractions; without a deviation if n = 1; '' if n = 0."""
    return percent(sample.mean) if sample.sd is None else f'{percent(sample.mean)} ± {percent(sample.sd)}'


def signed(value: float) -> str:
    """Two decimals with a sign: '+1.00', '+0.00' for -0.0."""
    return f'{round(value, 2) + 0.0:+.2f}'


def difference(sample: Sample, factor: float = 100.0) -> str:
    """A mean paired difference in percentage points (of fractions; `factor` 1: of percentages) and its 95 % interval.

    >>> difference(paired_difference({0: 0.76, 1: 0.75, 2: 0.74}, {0: 0.75, 1: 0.73, 2: 0.74}))
    '+1.00 [-1.48, +3.48]'
    >>> difference(describe([0.01])), difference(describe([]))
    ('+1.00', '')
    """
    if sample.mean is None:
        return ''
    numbers = [signed(factor * value) for value in (sample.mean, *(sample.interval() or ()))]
    return numbers[0] + (f' [{numbers[1]}, {numbers[2]}]' if numbers[1:] else '')


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


def percentage(value: float | None) -> str:
    """0.757 -> '75.70 %'; '' for None."""
    return f'{percent(value)} %' if value is not None else ''


def duration(value: float | None) -> str:
    """Seconds for reading: '30.3 s', '17 min', '3 h 05 min'; '' for None."""
    if value is None:
        return ''
    if value < 120:
        return f'{value:.1f} s'
    minutes = round(value / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02d} min'


def device(run: Mapping[str, Any]) -> str:
    """'2 x cpu'; '' if it is unknown."""
    found = run.get('device')
    if not isinstance(found, Mapping):
        return ''
    count = found.get('count', 1)
    return f'{count} x {found.get("kind")}' if count != 1 else str(found.get('kind'))


def points(value: float | None) -> float | None:
    """A fraction in percent; None stays None."""
    return None if value is None else 100 * value


def shown_references(comparison: Comparison) -> dict[str, str]:
    """{reference: what its column is called}, for references that at least one row is compared with.

    Outside sweeps the base rows of a table may differ; their column is called 'base'.
    """
    shown = {}
    for reference in comparison.references:
        labels = {base.label for row in comparison.rows if (base := comparison.base(row, reference))}
        if labels:
            shown[reference] = reference if comparison.sweep else labels.pop() if len(labels) == 1 else 'base'
    return shown


def comparison_table(comparison: Comparison) -> Table:
    """The table of a comparison: one row per group of runs; a cell is empty if nothing was measured."""
    references, measure = shown_references(comparison), comparison.measure
    rows, records = [], []
    everything = [*([comparison.teacher] if comparison.teacher else []), *comparison.rows]
    with_macs = not comparison.sweep and (comparison.samples_are_not_all() or comparison.whole() is not None)
    paired = {
        (id(row), name): row.difference(comparison.base(row, name), measure)
        for row in everything
        for name in references
    }
    show_pairs = any(
        paired[id(row), name].n not in (0, row.sample(measure).n) for row in everything for name in references
    )
    headers = ['run', f'{measure} %', 'n']
    for title in references.values():
        headers += [f'vs {title}'] + (['pairs'] if show_pairs else [])
    labelled = measure == 'accuracy'
    headers += ['best %'] if labelled else []
    headers += ['cost %', *(['MAC %'] if with_macs else []), 'samples', 'seconds', *(['agree %'] if labelled else [])]
    for row in everything:
        accuracy, best, agreement = (row.sample(key) for key in ('accuracy', 'best_accuracy', 'agreement'))
        samples, total = row.sample('cost', 'processed_samples').mean, row.sample('seconds', 'total').mean
        # All seeds share one teacher: n would count nothing that varies, and its cost is relative to nothing.
        teacher = row is comparison.teacher
        cost = None if teacher else comparison.cost(row)
        macs = None if teacher else comparison.relative_macs(row)
        judged = row.sample(measure)
        cells = [row.label, with_sd(judged), '' if teacher else str(judged.n or '')]
        record: dict[str, Any] = {'run': row.label, 'name': row.name, 'method': row.method, 'policy': row.policy}
        record |= {'accuracy_mean': points(accuracy.mean), 'accuracy_sd': points(accuracy.sd), 'n': judged.n}
        for key, value in zip(('low', 'high'), accuracy.interval() or (None, None), strict=True):
            record[f'accuracy_{key}'] = points(value)
        for name, title in references.items():
            gap = paired[id(row), name]
            cells += [difference(gap)] + ([str(gap.n or '')] if show_pairs else [])
            measured = (gap.mean, *(gap.interval() or (None, None)))
            for key, value in zip(('', ' low', ' high'), measured, strict=True):
                record[f'vs {title}{key}'] = points(value)
            record[f'vs {title} n'] = gap.n
        cells += [*([percent(best.mean)] if labelled else []), percent(cost), *([percent(macs)] if with_macs else [])]
        rows.append([*cells, quantity(samples), seconds(total), *([percent(agreement.mean)] if labelled else [])])
        record |= {'best_mean': points(best.mean), 'best_sd': points(best.sd)}
        for key in ('relative_scheduled', 'relative_processed', 'relative_macs'):
            record[key] = row.sample('cost', key).mean
        record |= {'relative_cost': cost, 'samples': samples, 'macs': row.macs(), 'seconds': total}
        record |= {'cosine_mean': points(row.sample('cosine').mean)} if measure == 'cosine' else {}
        record |= {'agreement_mean': points(agreement.mean), 'teacher_kl_mean': row.sample('teacher_kl').mean}
        records.append(record | {'seeds': ' '.join(str(run['seed']) for run in row.runs)})
    return Table(comparison.title, headers, rows, records, _notes(comparison, references, with_macs))


def _notes(comparison: Comparison, references: Mapping[str, str], with_macs: bool) -> list[str]:
    runs = [run for row in comparison.rows for run in row.runs]
    measure = comparison.measure
    sizes = sorted({row.sample(measure).n for row in comparison.rows} - {0})
    on = sorted({str(run['evaluated_on']) for run in runs if run.get('evaluated_on')})
    accuracy = f'{MEANINGS[measure]}last epoch' + (f', {" and ".join(on)} set' if on else '')
    many = bool(sizes) and sizes[-1] > 1
    accuracy += '; mean ± sample standard deviation over n seeds' if many else ''
    notes = [f'{accuracy}. best: best epoch.' if measure == 'accuracy' else f'{accuracy}.']
    if any(number(run, 'knn_accuracy') is not None for run in runs):
        notes.append('The accuracy of a student that predicts nothing is that of a linear probe on its embeddings.')
    if comparison.full_macs():
        whole = comparison.references[0]
        notes.append(f'cost: multiply-accumulates of every training pass, including scoring, relative to {whole}.')
    else:
        notes.append('cost: samples processed, relative to training on every point.')
    notes[-1] += _computed(runs)
    if with_macs:
        whole = comparison.whole()
        if whole or any(number(run, 'cost', 'relative_macs') for run in runs):
            base = f'{whole[0] if whole else "the same method"} on every point'
        else:
            base = next(iter(references.values()), 'the row itself')
        notes.append(f'MAC: multiply-accumulates of every pass, including scoring, relative to {base}.')
    if (with_macs or comparison.full_macs()) and any(_hides_its_teacher(run) for run in runs):
        notes.append('The multiply-accumulates of a teacher that does not say them are unknown and not counted.')
    if references and many:
        titles = ' and '.join(references.values())
        same = ''
        if titles == 'base':
            same = ' (of a selection: its method on every point; of a method: KD)'
        elif any(row.label.startswith(f'{name}, ') for row in comparison.rows for name in references):
            same = ' (at the same budget if there is one)'
        notes.append(f'vs {titles}{same}: mean paired difference in points over shared seeds [95 % interval, t].')
    if _is_all_chance(comparison):
        notes.append('No policy differs from the random choice by more than two standard errors (paired over seeds).')
    if sizes and sizes[0] == 1:
        notes.append('n = 1: a single run has no standard deviation and supports no claim.')
    teachers = {number(run, 'teacher', 'accuracy') for run in runs if teacher_network(run)} - {None}  # not measured
    if len(teachers) > 1:
        notes.append(f'The runs had {len(teachers)} different teachers; differences are not paired in the teacher.')
    notes += _view_notes(runs)
    if any(not row.runs for row in comparison.rows):
        notes.append('Empty: not finished.')
    return notes


def _is_all_chance(comparison: Comparison) -> bool:
    """Whether no policy is more than two standard errors from a random choice that is a reference of the table.

    False if there is no such reference, or no policy shares two seeds with it.
    """
    gaps = [
        row.difference(comparison.base(row, reference), comparison.measure)
        for reference in comparison.references
        if 'random' in reference.lower()
        for row in comparison.rows
        if row.policy != 'none'
    ]
    known = [(abs(gap.mean), gap.standard_error) for gap in gaps if gap.standard_error is not None]
    return bool(known) and all(mean <= 2 * error for mean, error in known)


def _computed(runs: Sequence[Summary]) -> str:
    """A sentence on what was really computed, if a cache or a file served some of the teacher's answers; else ''."""
    rows = [run.get('computed', {}).get('teacher_rows', {}) for run in runs]
    computed, served = (sum(row.get(key, 0) for row in rows) for key in ('computed', 'served'))
    if not served:
        return ''
    total = computed + served
    words = f'{computed:,} ({percentage(computed / total)}) were computed; the rest came from a cache or a file'
    return f" Of the teacher's {total:,} answers, {words}."


def _view_notes(runs: Sequence[Summary]) -> list[str]:
    """What makes the views of the runs others than those of the papers' protocol."""
    notes, given = [], [run.get('run', {}).get('recipe', {}).get('augment', {}) for run in runs]
    if counts := sorted({augment.get('views', 0) for augment in given} - {0}):
        notes.append(f'views: each point had {" or ".join(map(str, counts))} fixed ones in all epochs and seeds.')
    if any(augment.get('seed', -1) >= 0 for augment in given):
        notes.append('views: shared by the seeds, which lowers their spread.')
    return notes


def _hides_its_teacher(run: Summary) -> bool:
    """Whether the run's teacher was asked, and what it computed is unknown."""
    images = number(run, 'cost', 'samples', 'teacher_forward')
    return bool(images) and not number(run, 'cost', 'macs', 'teacher_forward')


def tables(
    summaries: Sequence[Summary], reference: str = 'kd', expected: Sequence[Mapping[str, Any]] = ()
) -> list[Table]:
    """The tables of all comparisons among the summaries (see `comparisons.split`).

    Raises:
      ValueError: there is no summary and nothing is expected, or two runs of a row have the same seed.
    """
    if not summaries and not expected:
        raise ValueError('no finished run was found; a run leaves summary.json when it has finished')
    return [comparison_table(comparison) for comparison in split(summaries, reference, expected)]
