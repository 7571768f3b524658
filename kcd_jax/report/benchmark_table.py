"""The table, the conclusions and the figure of the benchmark of selection policies (docs/benchmark.md)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from kcd_jax.report import style, tables
from kcd_jax.report.benchmark import (
    ALONE,
    DESCRIPTIVE,
    FAMILY,
    FIRST_SEED,
    KD,
    LOSS,
    MARGIN,
    RANDOM,
    REGIMES,
    SCHEDULES,
    SEEDS,
)
from kcd_jax.report.statistics import Sample


def table(records: Sequence[Mapping[str, Any]]) -> list[tables.Table]:
    """The tables of `measure`, one per sweep."""
    found = []
    for sweep in dict.fromkeys(record['sweep'] for record in records):
        own = [record for record in records if record['sweep'] == sweep]
        tested = any(record['random_p'] is not None for record in own)
        counted = any(record['own_cache'] is not None for record in own)
        headers = ['run', 'accuracy %', 'n', 'vs Random', *['p'] * tested, 'vs KD', 'compute %']
        headers += [*['own cache %'] * counted, 'amortised %']
        rows = []
        for record in own:
            spread = '' if record['sd'] is None else f' ± {record["sd"]:.2f}'
            rows.append(
                [record['run'], f'{record["accuracy"]:.2f}{spread}', str(record['n']), _interval(record, 'random'),
                 *[_p_value(record['random_p'])] * tested, _interval(record, 'kd'), _percent(record['compute']),
                 *[_percent(record['own_cache'])] * counted, _percent(record['amortised'])]
            )  # fmt: skip
        shown = '[95 % interval over seeds and test points]'
        if sweep in DESCRIPTIVE:
            shown = '(smallest to largest over the seeds)'
        p = f'p: of the difference from Random, two-sided{_family(records)}. ' if tested else ''
        own_cache = 'own cache: the same for one seed with a cache that starts empty; ' * counted
        taught_by = own[0]['taught_by'] and f' ({own[0]["taught_by"]})'
        notes = [
            'accuracy: last epoch, test set; mean ± sample standard deviation over n seeds. vs Random and vs KD: mean '
            f'difference from the random choice at the same budget, and from every point {shown}. {p}compute: '
            f'multiply-accumulates without a cache, relative to KD; {own_cache}amortised: without the '
            f"teacher's answers that a cache serves. All seeds share the views of a point and one teacher{taught_by}, "
            'whose variation is not included.',
            own[0]['made_by'],
        ]
        found.append(
            tables.Table(
                sweep.removeprefix('benchmark_'),
                headers,
                rows,
                [dict(one) for one in own],
                [note for note in [*notes, *conclusions(own)] if note],
            )
        )
    return found


def summary(records: Sequence[Mapping[str, Any]]) -> tables.Table:
    """What choosing points gains at the lower budget of each sweep, and what 70 % of the points and no teacher cost.

    Args:
      records: of `benchmark.measure`.
    """
    sweeps = list(dict.fromkeys(record['sweep'] for record in records))
    rows = {(record['sweep'], record['run']): record for record in records}
    budgets = {sweep: [one['budget'] for one in records if one['sweep'] == sweep and one['budget']] for sweep in sweeps}
    lower = {sweep: min(found, default='', key=_percentage) for sweep, found in budgets.items()}
    policies = dict.fromkeys(record['policy'] for record in records if record['budget'])
    wanted = [
        (policy, 'random', {sweep: f'{policy}, {lower[sweep]}' for sweep in sweeps})
        for policy in policies
        if policy not in (RANDOM, *SCHEDULES)
    ]
    wanted += [
        (f'{policy}, 70 %, minus KD', 'kd', dict.fromkeys(sweeps, f'{policy}, 70 %')) for policy in (RANDOM, 'KCD')
    ]
    wanted.append((f'{ALONE} minus KD', 'kd', dict.fromkeys(sweeps, ALONE)))
    cells, numbers = [], []
    for title, key, runs in wanted:
        found = [rows.get((sweep, runs[sweep])) for sweep in sweeps]
        brief = [_brief(record, key, rows) for record in found]
        if any(brief):
            cells.append([title, *brief])
            values = (None if record is None else record[key] for record in found)
            numbers.append({'difference': title, **dict(zip(sweeps, values, strict=True))})
    titles = [sweep.removeprefix('benchmark_') for sweep in sweeps]
    at = ', '.join(f'{title} {lower[sweep]}' for title, sweep in zip(titles, sweeps, strict=True) if lower[sweep])
    described = [sweep.removeprefix('benchmark_') for sweep in sweeps if sweep in DESCRIPTIVE]
    notes = [
        f'Percentage points of accuracy. The first rows: minus the random choice at the same compute ({at}); *: '
        "different with an adjusted p below 0.05 and a cost within 3 points of the random choice's; empty: no such row."
        + (f' {", ".join(described)}: no tests.' if described else '')
    ]
    return tables.Table('Benchmark', ['difference', *titles], cells, numbers, notes)


def _percentage(budget: str) -> float:
    """30.0 of '30 %'."""
    return float(budget.removesuffix(' %'))


def _brief(record: Mapping[str, Any] | None, key: str, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    if record is None or record[key] is None:
        return ''
    told = f'{round(record[key], 1) + 0.0:+.1f}'
    if key != 'random' or record['random_p'] is None or record['random_p'] >= 0.05:
        return told
    base = rows[record['sweep'], f'{RANDOM}, {record["budget"]}']
    return f'{told}*' if _cost_as_much(record['compute'], base['compute']) else told


def _cost_as_much(one: float, other: float) -> bool:
    return abs(one - other) <= MARGIN + 1e-9


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.1f}'


def _p_value(p: float | None) -> str:
    if p is None:
        return ''
    return '< 0.001' if p < 0.001 else f'{p:.3f}'


def _family(records: Sequence[Mapping[str, Any]]) -> str:
    """How the p values were adjusted, and what the family of tests lacks."""
    tested = [record for record in records if record['random_p'] is not None]
    count = sum(record[key] is not None for record in records for key in ('random_p', 'control_p'))
    if not count:
        return ''
    missing = [name.removeprefix('benchmark_') for name in REGIMES if name not in {one['sweep'] for one in tested}]
    lacks = f'; without {", ".join(missing)}' if missing else ''
    lacks = f' (provisional: {count} of {FAMILY}{lacks})' if count < FAMILY else ' in all regimes'
    counts = [
        record[f'{key}_n'] for record in tested for key in ('random', 'control') if record[f'{key}_p'] is not None
    ]
    fewer = f', some with fewer than {SEEDS} seeds' if min(counts) < SEEDS else ''
    return f", adjusted by Holm's method for {count} tests{lacks}{fewer}"


def conclusions(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the protocol concludes from the rows of one regime, a sentence each."""
    notes = [_of_student(records)]
    descriptive = records[0]['sweep'] in DESCRIPTIVE
    if descriptive:
        most = max(record['n'] for record in records)
        notes.append(f'Descriptive, with {_count(most, "seed")}: no test is made, and nothing is concluded.')
    if records[0]['explores']:
        notes.append(f'Seeds below {FIRST_SEED} explore: nothing is concluded.')
    elif any(record['random_p'] is not None for record in records):
        scheduled, choosing = (
            [record for record in records if (record['policy'] in SCHEDULES) == random] for random in (True, False)
        )
        notes.append(_of_rows('Policies', choosing, records))
        notes.append(_of_rows('Random points at other times or sizes', scheduled, records))
        claimed = [record for record in records if record['run'] == 'KCD, 70 %' and record['kd_n'] > 1]
        notes += map(_of_claim, claimed)
        notes.append(_of_errors(records))
    elif not descriptive:
        notes.append('Too few seeds for a conclusion.')
    notes += [
        f'{record["run"]} minus {record["control_of"]}: {_interval(record, "control")}'
        + ('' if record['control_p'] is None else f', adjusted p {_p_value(record["control_p"])}')
        + '.'
        for record in records
        if record['control'] is not None
    ]
    return [note for note in [*notes, _of_missing(records)] if note]


def _of_student(records: Sequence[Mapping[str, Any]]) -> str:
    """How many of the rows the student alone beats, and for how much less."""
    alone = next((record for record in records if record['policy'] == ALONE), None)
    if alone is None:
        return ''
    rest = [record for record in records if record['budget']]
    told = f'The student alone, on every point, takes {100 * alone["compute"]:.1f} % of the compute of KD.'
    if apart := _interval(alone, 'kd'):
        told += f' Its accuracy is {apart} points from that of KD'
        if rest and all(record['n'] == alone['n'] for record in rest):
            below = sum(record['accuracy'] < alone['accuracy'] for record in rest)
            told += f', and above that of {below} of the {len(rest)} rows with a budget'
        told += '.'
    return told


def _of_rows(what: str, rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """Which rows differ from the random choice at their budget, where their cost is its own."""
    base = {record['budget']: record['compute'] for record in records if record['policy'] == RANDOM}
    tested = [row for row in rows if row['random_p'] is not None]
    if not tested:
        return ''
    of_another_cost = f'nothing is concluded where the cost differs by over {100 * MARGIN:.0f} points'
    told: dict[str, list[str]] = {}
    for row in tested:
        if not _cost_as_much(row['compute'], base[row['budget']]):
            told.setdefault(of_another_cost, []).append(row['run'])
        elif row['random_p'] < 0.05:
            told.setdefault('better' if row['random'] > 0 else 'worse', []).append(row['run'])
    parts = [f'{words}: {"; ".join(told[words])}' for words in ('better', 'worse', of_another_cost) if words in told]
    rest = len(tested) - sum(map(len, told.values()))
    others = ('the other one' if rest == 1 else f'the other {rest}') if told else f'any of {rest}'
    parts += [f'no difference was seen in {others}'] * bool(rest)
    return f'{what}, against the random choice: {". ".join(part[0].upper() + part[1:] for part in parts)}.'


def _of_claim(record: Mapping[str, Any]) -> str:
    """The paper's claim at 70 %, and what it is due to."""
    low = _sample(record, 'kd').interval()[0]
    if low <= -LOSS:
        return f'Condensing to 70 % without a loss is not shown: the interval of KCD minus KD begins at {low:+.2f}.'
    told = f'Condensing to 70 % costs less than {LOSS} points'
    due = record['control_p'] is not None and record['control_p'] < 0.05 and record['control'] > 0
    if due:
        return f'{told}, and KCD owes that to what it ranks and mixes.'
    return f'{told}; that this is more than its sizes is not shown.'


def _of_errors(records: Sequence[Mapping[str, Any]]) -> str:
    """What would be concluded with an unbiased estimate of the standard errors."""
    pairs = [(record[f'{key}_se'], record[f'{key}_unbiased']) for record in records for key in ('random', 'kd')]
    ratios = [error / unbiased for error, unbiased in pairs if error and unbiased]
    if not ratios:
        return ''
    told = (
        f"Not in the protocol: the bootstrap's standard errors are {statistics.median(ratios):.2f} times the unbiased "
        'ones (median). With these '
    )
    changed = [
        record['run'] if key == 'random' else f'{record["run"]} minus {record["control_of"]}'
        for record in records
        for key in ('random', 'control')
        if record[f'{key}_p'] is not None and (record[f'{key}_p'] < 0.05) != (record[f'{key}_unbiased_p'] < 0.05)
    ]
    told += f'the test decides otherwise for {"; ".join(changed)}' if changed else 'every test decides the same'
    for record in records:
        if record['run'] == 'KCD, 70 %' and record['kd_unbiased'] is not None:
            low = _sample(record, 'kd', unbiased=True).interval()[0]
            told += f', and the interval of KCD, 70 %, minus KD begins at {low:+.2f}'
    return f'{told}.'


def _of_missing(records: Sequence[Mapping[str, Any]]) -> str:
    """Rows that others have and this table lacks, in whole or in part."""
    most = max(record['n'] for record in records)
    fewer = [f'{record["run"]} ({_count(record["n"], "seed")})' for record in records if record['n'] < most]
    budgets = list(dict.fromkeys(record['budget'] for record in records if record['budget']))
    have = {(record['policy'], record['budget']) for record in records}
    policies = dict.fromkeys(record['policy'] for record in records if record['budget'])
    absent = [f'{policy}, {budget}' for policy in policies for budget in budgets if (policy, budget) not in have]
    parts = [f'fewer seeds: {"; ".join(fewer)}'] * bool(fewer)
    parts += [f'no finished run, or none at this budget: {"; ".join(absent)}'] * bool(absent)
    return '' if not parts else '. '.join(part[0].upper() + part[1:] for part in parts) + '.'


def _sample(record: Mapping[str, Any], key: str, unbiased: bool = False) -> Sample:
    """A difference; its standard error is that of the bootstrap, or the unbiased one."""
    error, n = record[f'{key}_unbiased' if unbiased else f'{key}_se'], record[f'{key}_n']
    return Sample(record[key], None if n < 2 else error * math.sqrt(n), n)


def _interval(record: Mapping[str, Any], key: str) -> str:
    """'+1.25 [+0.50, +2.00]', or its ends over few seeds, with the number of pairs where it is not the row's n."""
    n = record[f'{key}_n']
    if record['sweep'] in DESCRIPTIVE and n > 1:
        low, high = (tables.signed(end) for end in record[f'{key}_range'])
        told = f'{tables.signed(record[key])} ({low} to {high})'
    else:
        told = tables.difference(_sample(record, key), factor=1)
    return f'{told} ({_count(n, "pair")})' if told and n != record['n'] else told


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"s" * (number != 1)}'


@style.styled
def figure(records: Sequence[Mapping[str, Any]]) -> style.Drawing:
    """Accuracy against compute, with and without the teacher's cached answers, a row of two panels per sweep."""
    sweeps = list(dict.fromkeys(record['sweep'] for record in records))
    labels = list(dict.fromkeys(record['policy'] for record in records if record['budget']))
    height = 2.3 * len(sweeps) + 1.2
    drawn = Figure(figsize=(9.0, height))
    panels = drawn.subplots(len(sweeps), 2, squeeze=False, sharey='row')
    ends = {'compute': 'of KD, without a cache', 'amortised': "of KD, without the teacher's cached answers"}
    for axes, sweep in zip(panels, sweeps, strict=True):
        shown = [record for record in records if record['sweep'] == sweep]
        for axis, (key, words) in zip(axes, ends.items(), strict=True):
            for place, label in enumerate(labels):
                own = sorted((one for one in shown if one['policy'] == label), key=lambda one: one[key])
                look = {'color': style.PALETTE[place % 6], 'marker': style.MARKERS[(place + place // 6) % 6]}
                points = [(100 * one[key], one['accuracy']) for one in own]
                axis.plot(*zip(*points, strict=True), label=label, linewidth=0.8, markersize=4, **look)
            for one in (one for one in shown if not one['budget']):
                look = {'color': style.INK, 'marker': '*', 'markersize': 8} if one['run'] == KD else {}
                axis.plot(
                    100 * one[key], one['accuracy'], linestyle='', label=one['run'],
                    **{'color': style.NEUTRAL, 'marker': 'x', **look},
                )  # fmt: skip
            axis.set_xlabel(f'compute, % {words}')
        axes[1].set_xscale('log')
        axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[1].xaxis.set_major_formatter(ScalarFormatter())
        axes[1].xaxis.set_minor_locator(NullLocator())
        axes[0].set_ylabel(f'{sweep.removeprefix("benchmark_")}: accuracy, %')
    handles = {label: one for axis in panels.flat for one, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    drawn.legend(handles.values(), handles, loc='outside upper center', ncols=5)
    alt = 'Accuracy against compute of the selection policies: ' + '; '.join(
        f'{one["sweep"]}, {one["run"]}: {one["accuracy"]:.1f} % at {100 * one["compute"]:.0f} %' for one in records
    )
    return style.Drawing('benchmark', 'Accuracy against compute', alt, drawn, [dict(one) for one in records])
