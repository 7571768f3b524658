"""The main result of a comparison: in one sentence, and as tiles."""

from __future__ import annotations

import re
from typing import Any

from kcd_jax.report.comparisons import Comparison, Row
from kcd_jax.report.statistics import Sample
from kcd_jax.report.tables import device, difference, duration, percent, percentage

Block = dict[str, Any]


def tiles(*entries: tuple[str, str, str]) -> list[Block]:
    """Tiles of (name, number, note); those without a number are left out."""
    return [{'name': name, 'number': shown, 'note': note} for name, shown, note in entries if shown]


def selected_row(comparison: Comparison) -> Row | None:
    """The row that a page is about: KC, or another policy's; None in a sweep, which is about all of its rows."""
    selecting = [row for row in comparison.rows if row.policy not in ('none', 'random') and not comparison.sweep]
    return next((row for row in selecting if row.name == 'kcd'), selecting[0] if selecting else None)


def _minus(words: str) -> str:
    return re.sub(r'-(?=\d)', '\N{MINUS SIGN}', words)


def _said(sample: Sample) -> str:
    shown, _, interval = _minus(difference(sample)).partition(' ')
    over = f'over {sample.n} seeds, 95 % interval {interval}' if interval else 'on one seed'
    return f'{shown} percentage points {over}'


def _gap_tile(name: str, sample: Sample, note: str) -> tuple[str, str, str]:
    shown, _, interval = _minus(difference(sample)).partition(' ')
    return name, shown, f'{note}; 95 % interval {interval}' if interval else f'{note}; one seed, no interval'


def findings(comparison: Comparison) -> tuple[list[Block], list[Block]]:
    """(findings, tiles): the main result in one sentence, and as numbers."""
    row = selected_row(comparison)
    lines, gaps = [], []
    if row is not None:
        by_chance = next((one for one in comparison.rows if one.name == 'random' and one.method == row.method), None)
        references = (
            (comparison.base(row), 'training on every point'),
            (by_chance, 'a random selection of the same size'),
        )
        said = []
        for other, words in references:
            sample = row.difference(other)
            if sample.mean is not None:
                said.append(f'against {other.label} ({words}): {_said(sample)}')
                gaps.append(
                    _gap_tile(
                        f'{row.label} \N{MINUS SIGN} {other.label}',
                        sample,
                        f'{sample.n} pair{"s" if sample.n > 1 else ""}',
                    )
                )
        lines += [f'{row.label} {"; ".join(said)}.'] if said else []
    else:
        found = [(comparison.paired(one), one, comparison.base(one)) for one in comparison.rows if one.method != 'none']
        found = [gap for gap in found if gap[0].mean is not None]
        if len(found) > 1:
            low, high = (pick(found, key=lambda gap: gap[0].mean) for pick in (min, max))
            lines.append(
                f'Of {len(found)} rows against their reference: highest {high[1].label} against {high[2].label}, '
                f'{_said(high[0])}; lowest {low[1].label} against {low[2].label}, {_said(low[0])}. '
                'The highest of many is partly luck.'
            )
            for word, (sample, one, base) in (('Highest', high), ('Lowest', low)):
                gaps.append(_gap_tile(f'{word} of {len(found)}', sample, f'{one.label} \N{MINUS SIGN} {base.label}'))
    finished = [one for one in comparison.rows if one.runs]
    plain = [one for one in finished if (one.method, one.policy) == ('kd', 'none')]
    about = next(iter([row] * bool(row) + plain + [one for one in finished if one.method != 'none']), None)
    entries = []
    if about is not None:
        sample = about.sample('accuracy')
        spread = f'± {percent(sample.sd)} (sd), n = {sample.n}' if sample.sd is not None else f'n = {sample.n}'
        entries = [(f'{about.label}, last epoch', percentage(sample.mean), spread), *gaps]
        cost = percentage(about.sample('cost', 'relative_processed').mean) if row is not None else ''
        entries.append(('Cost', cost, 'samples processed, of training on every point'))
        entries.append(('Time per run', duration(about.sample('seconds', 'total').mean), device(about.runs[0])))
    shown = [{'text': line, 'caution': False} for line in lines]
    if about is not None and about.sample('accuracy').n == 1:
        shown.append({'text': 'A single seed: no spread is known, and no claim rests on it.', 'caution': True})
    return shown, tiles(*entries)
