"""What came out, in a sentence and in tiles: the row that a page is about against what it has to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kcd_jax.report import page, tables
from kcd_jax.report.groups import Group
from kcd_jax.report.parts import Part
from kcd_jax.report.statistics import Sample, paired_difference

Entry = tuple[str, str, str]


def percent(value: float | None) -> str:
    """0.757 -> '75.70 %'; '' for None."""
    return f'{tables.percent(value)} %' if value is not None else ''


def duration(seconds: float | None) -> str:
    """Seconds for reading: '30.3 s', '17 min', '3 h 05 min'; '' for None."""
    if seconds is None:
        return ''
    if seconds < 120:
        return f'{seconds:.1f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02d} min'


def device(run: Mapping[str, Any]) -> str:
    """'2 x cpu'; '' where it is not known."""
    found = run.get('device')
    if not isinstance(found, Mapping):
        return ''
    count = found.get('count', 1)
    return f'{count} x {found.get("kind")}' if count != 1 else str(found.get('kind'))


def chosen(part: Part) -> Group | None:
    """The row that a page is about: KC, else another policy's by value; None in a sweep, which is about all of them."""
    selecting = [group for group in part.groups if group.policy not in ('none', 'random') and not part.sweep]
    return next((group for group in selecting if group.name == 'kcd'), selecting[0] if selecting else None)


def _signed(value: float) -> str:
    return f'{round(100 * value, 2) + 0.0:+.2f}'.replace('-', '\N{MINUS SIGN}')


def _said(sample: Sample) -> str:
    pairs = f'over {sample.n} seeds' if sample.n > 1 else 'on one seed'
    return f'{tables.difference(sample).replace("-", chr(0x2212))} percentage points {pairs}'


def _against(group: Group, other: Group | None) -> Sample:
    if other is None or other is group:
        return Sample(None, None, 0)
    return paired_difference(group.by_seed('accuracy'), other.by_seed('accuracy'))


def _of_row(part: Part, row: Group) -> tuple[str, list[Entry]]:
    """(sentence, tiles) about one row against its reference and against a random choice of the same size."""
    base = part.base(row)
    by_chance = next((g for g in part.groups if g.name == 'random' and g.method == row.method), None)
    sentences, entries = [], []
    for other, words in ((base, 'training on everything'), (by_chance, 'a random choice of the same size')):
        sample = _against(row, other)
        if sample.mean is None:
            continue
        sentences.append(f'against {other.label} ({words}): {_said(sample)}')
        error = f'± {tables.percent(sample.standard_error)} (se)' if sample.standard_error is not None else ''
        note = f'{error}, {sample.n} pairs' if error else 'one pair, no error'
        entries.append((f'{row.label} \N{MINUS SIGN} {other.label}', _signed(sample.mean), note))
    return f'{row.label} {"; ".join(sentences)}.' if sentences else '', entries


def _of_all(part: Part) -> tuple[str, list[Entry]]:
    """(sentence, tiles) about the two ends of the paired differences among many rows of one reference."""
    gaps = [(_against(group, part.base(group)), group) for group in part.groups if group.method != 'none']
    gaps = [(sample, group, part.base(group)) for sample, group in gaps if sample.mean is not None]
    if len(gaps) < 2:
        return '', []
    low, high = (pick(gaps, key=lambda gap: gap[0].mean) for pick in (min, max))
    sentence = f'Of {len(gaps)} rows against their reference: highest {high[1].label}, {_said(high[0])} from '
    sentence += f'{high[2].label}; lowest {low[1].label}, {_said(low[0])} from {low[2].label}.'
    sentence += ' The highest of many is partly luck.'
    tiles = []
    for word, (sample, group, base) in (('Highest', high), ('Lowest', low)):
        error = f'± {tables.percent(sample.standard_error)} (se), ' if sample.standard_error is not None else ''
        tiles.append(
            (f'{word} of {len(gaps)}', _signed(sample.mean), f'{error}{group.label} \N{MINUS SIGN} {base.label}')
        )
    return sentence, tiles


def found(part: Part) -> tuple[str, str]:
    """(sentence, tiles) of what came out, as HTML."""
    row = chosen(part)
    named = [group for group in part.groups if (group.method, group.policy) == ('kd', 'none') and group.runs]
    about = row or next(iter(named), None) or next((g for g in part.groups if g.method != 'none' and g.runs), None)
    sentence, gaps = _of_row(part, row) if row is not None else _of_all(part)
    entries: list[Entry] = []
    if about is not None:
        sample = about.sample('accuracy')
        spread = f'± {tables.percent(sample.sd)} (sd), n = {sample.n}' if sample.sd is not None else f'n = {sample.n}'
        entries.append((f'{about.label}, last epoch', percent(sample.mean), spread))
    entries += gaps
    if about is not None and row is not None:
        entries.append(('Cost', percent(about.sample('cost', 'relative_processed').mean), 'samples processed, of all'))
    if about is not None:
        entries.append(('Time a run', duration(about.sample('seconds', 'total').mean), device(about.runs[0])))
    shown = f'<p class="finding">{page.text(sentence)}</p>' if sentence else ''
    if about is not None and about.sample('accuracy').n == 1:
        shown += '\n<p class="finding caution">One seed: no deviation can be given, and no claim rests on it.</p>'
    return shown, page.tiles(entries)


def marked(part: Part) -> Sequence[int]:
    """Rows of the table that are set off."""
    row = chosen(part)
    return [place for place, cells in enumerate(part.table.rows) if row is not None and cells[0] == row.label]
