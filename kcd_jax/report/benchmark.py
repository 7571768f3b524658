"""The benchmark of selection policies (docs/benchmark.md): its table and its figure, from published results alone."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import stdtrit

from kcd_jax.report import style, tables
from kcd_jax.report.comparisons import Row, Summary, is_teacher, refuse_duplicates, setting_of
from kcd_jax.report.statistics import bootstrap_errors, holm, two_sided
from kcd_jax.runtime import descriptions

ALONE, KD, RANDOM = 'Student alone', 'KD', 'Random'
SIZED = "Random at KCD's sizes"
# What else a policy is compared with at its budget: KCD's is a test of the protocol, the others only tell.
OWN_CONTROL = {'KCD': SIZED, 'Rounds': SIZED, 'Rounds constant': 'Balanced even'}
TESTED_CONTROL = 'KCD'
SCHEDULES = (SIZED, 'Static', 'Short')  # they choose at random: only when and how often differs from `RANDOM`
REGIMES = tuple(f'benchmark_{name}' for name in ('clean', 'hard', 'long', 'noisy', 'redundant'))
FAMILY = 27 * len(REGIMES)  # tests: 13 policies at 30 %, less InfoBatch, and at 70 %, and KCD's control at both
DESCRIPTIVE = ('benchmark_cifar100',)  # too few seeds for a test
FIRST_SEED, SEEDS = 100, 10  # of the table; smaller seeds explore
MARGIN, LOSS = 0.03, 0.5  # how much dearer "the same cost" may be, of KD's; what "without a loss" allows, in points


@dataclasses.dataclass
class Cell(Row):
    """The runs of one row of a sweep; `group` is its budget, '30 %', or ''."""

    group: str = ''

    @property
    def policy_label(self) -> str:
        """'KCD' of 'KCD, 30 %'."""
        return self.label.removesuffix(f', {self.group}') if self.group else self.label

    def right(self, seeds: Sequence[int]) -> np.ndarray:
        """f64[S, P]: how often each test point was classified right, over its draws.

        Raises:
          ValueError: a run did not record it.
        """
        by_seed = {run['seed']: run for run in self.runs}
        return np.stack([_right(by_seed[seed]) for seed in seeds])

    def amortised(self) -> float:
        """Mean multiply-accumulates without the teacher's answers that a cache serves to a later run."""
        return float(np.mean([_amortised(run) for run in self.runs]))


def _right(run: Summary) -> np.ndarray:
    stored = run.get('right')
    if not stored:
        raise ValueError(
            f'{run.get("name")} of seed {run["seed"]} does not say which test images it classified right; run it again '
            'with survey=true'
        )
    packed = np.frombuffer(base64.b64decode(stored['bits']), np.uint8)
    right = np.unpackbits(packed, count=stored['images']).astype(np.float64)
    return right.reshape(-1, stored['points']).mean(axis=0)


def _amortised(run: Summary) -> float:
    spent, images = run['cost']['macs'], run['cost']['samples']['teacher_forward']
    total, rows = sum(spent.values()), (run.get('computed') or {}).get('teacher_rows') or {}
    if not images:
        return total
    kept = rows.get('computed', 0) + rows.get('served', 0) - rows.get('mixed', 0)
    return total - spent['teacher_forward'] * min(kept, images) / images  # a restart asks for scores again


def cells_of(summaries: Sequence[Summary]) -> dict[str, dict[str, Cell]]:
    """{sweep: {label: its cell}} of the runs of sweeps, in the order of their tables.

    Teachers are left out, and seeds of the exploration if the sweep has others.

    Raises:
      ValueError: two runs of a row have the same seed, or their settings differ.
    """
    found: dict[str, dict[str, Cell]] = {}
    chosen = [run for run in summaries if isinstance(run.get('cell'), Mapping) and not is_teacher(run)]
    published = {run['cell']['sweep'] for run in chosen if run['seed'] >= FIRST_SEED}
    chosen = [run for run in chosen if run['seed'] >= FIRST_SEED or run['cell']['sweep'] not in published]
    for run in sorted(chosen, key=lambda run: (run['cell']['sweep'], run['cell']['place'], run['seed'])):
        card = run['cell']
        rows = found.setdefault(card['sweep'], {})
        cell = rows.setdefault(card['label'], Cell(card['label'], card['label'], [], run['method'], run['policy']))
        cell.group = card['group']
        cell.runs.append(run)
    for sweep, rows in found.items():
        for label, cell in rows.items():
            refuse_duplicates(f'{sweep}, {label}', cell.runs)
            for run in cell.runs[1:]:
                if how := _differing(cell.runs[0], run):
                    raise ValueError(f'{sweep}, {label}: runs differ: {how}; give those of one sweep')
        _refuse_other_teachers(sweep, [run for cell in rows.values() for run in cell.runs])
    return found


def _differing(one: Summary, other: Summary) -> str:
    """How two runs differ in more than their seeds; '' if they do not."""
    if setting_of(one) != setting_of(other):
        return 'epochs, batch, data or networks are not the same'
    there, here = ({**run['run'], 'seed': 0} if run.get('run') else {} for run in (one, other))
    return descriptions.differences(there, here)


def _refuse_other_teachers(sweep: str, runs: Sequence[Summary]) -> None:
    taught = {run['teacher']['accuracy']: run for run in runs if (run.get('teacher') or {}).get('accuracy') is not None}
    if len(taught) > 1:
        shown = ', '.join(
            f'{100 * accuracy:.2f} % ({run["name"]}, seed {run["seed"]})' for accuracy, run in taught.items()
        )
        raise ValueError(f'{sweep}: the runs had teachers of {shown}; give those of one teacher')


def measure(summaries: Sequence[Summary], resamples: int = 10_000) -> list[dict[str, Any]]:
    """One record per row of every sweep, with its differences and the p values of the protocol.

    Args:
      summaries: of finished runs of the benchmark's sweeps.
      resamples: of the bootstrap.

    Returns:
      Mappings with equal keys. Accuracies and differences are in percentage points, costs are fractions of KD's.

    Raises:
      ValueError: there is no such run, a sweep lacks KD, or a run has no answers by test point.
    """
    found = cells_of(summaries)
    if not found:
        raise ValueError('no finished run of a sweep was found; run python -m kcd_jax sweep benchmark_hard first')
    records = []
    for sweep, cells in found.items():
        if KD not in cells:
            raise ValueError(f'{sweep} has no finished run of {KD}, which costs are relative to')
        full, made_by = cells[KD].macs(), _made_by([run for cell in cells.values() for run in cell.runs])
        wanted = [(label, other) for label, cell in cells.items() for other in _others(cell, cells)]
        compared = _compare(cells, wanted, resamples)
        for label, cell in cells.items():
            accuracy = cell.sample('accuracy')
            record = {'sweep': sweep, 'run': label, 'policy': cell.policy_label, 'budget': cell.group, 'n': accuracy.n}
            record |= {'accuracy': 100 * accuracy.mean, 'sd': accuracy.sd and 100 * accuracy.sd}
            record |= {'compute': cell.macs() / full, 'amortised': cell.amortised() / full}
            seeds = [run['seed'] for run in cell.runs]
            record |= {'explores': min(seeds) < FIRST_SEED, 'control_of': OWN_CONTROL.get(cell.policy_label, '')}
            record['made_by'] = made_by
            names = {'kd': KD, 'random': f'{RANDOM}, {cell.group}', 'control': _control(cell)}
            for key, other in names.items():
                mean, error, n = compared.get((label, other), (None, None, 0))
                record |= {key: mean, f'{key}_se': error, f'{key}_n': n}
                asked = key == 'random' or (key == 'control' and cell.policy_label == TESTED_CONTROL)
                tested = asked and mean is not None and sweep not in DESCRIPTIVE and not record['explores']
                if key != 'kd':
                    record[f'{key}_p'] = two_sided(mean, error, n) if tested else None
            records.append(record)
    keys = [(place, key) for place in range(len(records)) for key in ('random_p', 'control_p')]
    for (place, key), p in zip(keys, holm(records[place][key] for place, key in keys), strict=True):
        records[place][key] = p
    return records


def _made_by(runs: Sequence[Summary]) -> str:
    """'JAX 0.10.1 on cpu; commits 58c7061, 73afa2e.' of the runs of a sweep."""
    found = {(f'JAX {run["versions"]["jax"]}', run['device']['kind']) for run in runs if run.get('versions')}
    made = ', '.join(f'{version} on {device}' for version, device in sorted(found))
    commits = sorted({run['commit'][:7] for run in runs if run.get('commit')})
    parts = [made] * bool(made) + [f'commit{"s" * (len(commits) > 1)} {", ".join(commits)}'] * bool(commits)
    return f'{"; ".join(parts)}.' if parts else ''


def _control(cell: Cell) -> str:
    return f'{OWN_CONTROL[cell.policy_label]}, {cell.group}' if cell.policy_label in OWN_CONTROL else ''


def _others(cell: Cell, cells: Mapping[str, Cell]) -> list[str]:
    """The labels that a cell is compared with."""
    others = [KD, f'{RANDOM}, {cell.group}', _control(cell)]
    return [other for other in others if other in cells and other != cell.label]


def _compare(
    cells: Mapping[str, Cell], wanted: Sequence[tuple[str, str]], resamples: int
) -> dict[tuple[str, str], tuple[float, float, int]]:
    """{(label, other): (mean difference, its standard error, seeds)} in percentage points."""
    by_seeds: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for label, other in wanted:
        have = [{run['seed'] for run in cells[name].runs} for name in (label, other)]
        if shared := tuple(sorted(have[0] & have[1])):
            by_seeds.setdefault(shared, []).append((label, other))
    found = {}
    for seeds, pairs in by_seeds.items():
        right = {name: cells[name].right(seeds) for name in {name for pair in pairs for name in pair}}
        differences = 100 * np.stack([right[label] - right[other] for label, other in pairs])
        errors = bootstrap_errors(differences, resamples)
        for pair, one, error in zip(pairs, differences, errors, strict=True):
            found[pair] = (float(one.mean()), float(error), len(seeds))
    return found


def table(records: Sequence[Mapping[str, Any]]) -> list[tables.Table]:
    """The tables of `measure`, one per sweep."""
    found = []
    for sweep in dict.fromkeys(record['sweep'] for record in records):
        own = [record for record in records if record['sweep'] == sweep]
        headers = ['run', 'accuracy %', 'n', 'vs Random', 'p', 'vs KD', 'compute %', 'amortised %']
        rows = []
        for record in own:
            spread = '' if record['sd'] is None else f' ± {record["sd"]:.2f}'
            rows.append(
                [record['run'], f'{record["accuracy"]:.2f}{spread}', str(record['n']), _interval(record, 'random'),
                 _p_value(record['random_p']), _interval(record, 'kd'),
                 f'{100 * record["compute"]:.1f}', f'{100 * record["amortised"]:.1f}']
            )  # fmt: skip
        notes = [
            'accuracy: last epoch, test set; mean ± sample standard deviation over n seeds. vs Random and vs KD: mean '
            'difference from the random choice at the same budget, and from every point [95 % interval over seeds and '
            f'test points]. p: of the difference from Random, two-sided{_family(records)}. compute: '
            'multiply-accumulates from a cold cache, relative to KD; amortised: without the '
            "teacher's answers that a cache serves. All seeds share the views of a point and one teacher, whose own "
            'variation is in no interval.',
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
    if records[0]['sweep'] in DESCRIPTIVE:
        notes.append('Descriptive: three seeds, no test is made.')
    elif records[0]['explores']:
        notes.append(f'Seeds below {FIRST_SEED} explore: nothing is concluded.')
    elif not any(record['random_p'] is not None for record in records):
        notes.append('Too few seeds for a conclusion.')
    else:
        scheduled, choosing = (
            [record for record in records if (record['policy'] in SCHEDULES) == random] for random in (True, False)
        )
        notes.append(_of_rows('Policies', choosing, records))
        notes.append(_of_rows('Random points at other times or sizes', scheduled, records))
        claimed = [record for record in records if record['run'] == 'KCD, 70 %' and record['kd_n'] > 1]
        notes += map(_of_claim, claimed)
    notes += [
        f'{record["run"]} less {record["control_of"]}: {_interval(record, "control")}'
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
    below = sum(record['accuracy'] < alone['accuracy'] for record in rest)
    apart, cost = _interval(alone, 'kd'), f'{100 * alone["compute"]:.1f} % of the compute of KD'
    return (
        f'The student alone, on every point, takes {cost}. Its accuracy is {apart} points from that of KD, and above '
        f'that of {below} of the {len(rest)} rows with a budget.'
    )


def _of_rows(what: str, rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    """Which rows differ from the random choice at their budget, where their cost is its own."""
    base = {record['budget']: record['compute'] for record in records if record['policy'] == RANDOM}
    tested = [row for row in rows if row['random_p'] is not None]
    if not tested:
        return ''
    of_another_cost = f'nothing is concluded where the cost differs by over {100 * MARGIN:.0f} points'
    told: dict[str, list[str]] = {}
    for row in tested:
        if abs(row['compute'] - base[row['budget']]) > MARGIN + 1e-9:
            told.setdefault(of_another_cost, []).append(row['run'])
        elif row['random_p'] < 0.05:
            told.setdefault('better' if row['random'] > 0 else 'worse', []).append(row['run'])
    parts = [f'{words}: {"; ".join(told[words])}' for words in ('better', 'worse', of_another_cost) if words in told]
    rest = len(tested) - sum(map(len, told.values()))
    others = f'the other {rest}' if told else f'any of {rest}'
    parts += [f'no difference was seen in {others}'] * bool(rest)
    return f'{what}, against the random choice: {". ".join(part[0].upper() + part[1:] for part in parts)}.'


def _of_claim(record: Mapping[str, Any]) -> str:
    """The paper's claim at 70 %, and what it is due to."""
    low = record['kd'] - _half(record, 'kd')
    if low <= -LOSS:
        return f'Condensing to 70 % without a loss is not shown: the interval of KCD less KD begins at {low:+.2f}.'
    told = 'Condensing to 70 % costs no accuracy'
    due = record['control_p'] is not None and record['control_p'] < 0.05 and record['control'] > 0
    if due:
        return f'{told}, and KCD owes that to what it ranks and mixes.'
    return f'{told}; that this is more than its sizes is not shown.'


def _of_missing(records: Sequence[Mapping[str, Any]]) -> str:
    """Rows that others have and this table lacks, in whole or in part."""
    most = max(record['n'] for record in records)
    fewer = [f'{record["run"]} ({record["n"]} seeds)' for record in records if record['n'] < most]
    budgets = list(dict.fromkeys(record['budget'] for record in records if record['budget']))
    have = {(record['policy'], record['budget']) for record in records}
    policies = dict.fromkeys(record['policy'] for record in records if record['budget'])
    absent = [f'{policy}, {budget}' for policy in policies for budget in budgets if (policy, budget) not in have]
    parts = [f'fewer seeds: {"; ".join(fewer)}'] * bool(fewer)
    parts += [f'no finished run, or none at this budget: {"; ".join(absent)}'] * bool(absent)
    return '' if not parts else '. '.join(part[0].upper() + part[1:] for part in parts) + '.'


def _half(record: Mapping[str, Any], key: str) -> float:
    """Half the width of the 95 % interval of a difference, by Student's t."""
    return float(stdtrit(record[f'{key}_n'] - 1, 0.975)) * record[f'{key}_se']


def _interval(record: Mapping[str, Any], key: str) -> str:
    """'+1.25 [+0.50, +2.00]', with the number of pairs where it is not the row's n."""
    mean, n = record[key], record[f'{key}_n']
    if mean is None:
        return ''
    pairs = '' if n == record['n'] else f' ({n} pairs)'
    if n < 2:
        return f'{_signed(mean)}{pairs}'
    half = _half(record, key)
    return f'{_signed(mean)} [{_signed(mean - half)}, {_signed(mean + half)}]{pairs}'


def _signed(value: float) -> str:
    """Two decimals with a sign, without '-0.00'."""
    return f'{round(value, 2) + 0.0:+.2f}'


@style.styled
def figure(records: Sequence[Mapping[str, Any]]) -> style.Drawing:
    """Accuracy against compute, with and without the teacher's cached answers, a row of two panels per sweep."""
    sweeps = list(dict.fromkeys(record['sweep'] for record in records))
    labels = list(dict.fromkeys(record['policy'] for record in records if record['budget']))
    height = 2.3 * len(sweeps) + 1.2
    drawn = Figure(figsize=(9.0, height))
    panels = drawn.subplots(len(sweeps), 2, squeeze=False, sharey='row')
    ends = {'compute': 'of KD, from a cold cache', 'amortised': "of KD, without the teacher's cached answers"}
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
        axes[0].set_ylabel(f'{sweep.removeprefix("benchmark_")}: accuracy, %')
    handles = {label: one for axis in panels.flat for one, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    drawn.legend(handles.values(), handles, loc='outside upper center', ncols=5)
    alt = 'Accuracy against compute of the selection policies: ' + '; '.join(
        f'{one["sweep"]}, {one["run"]}: {one["accuracy"]:.1f} % at {100 * one["compute"]:.0f} %' for one in records
    )
    return style.Drawing('benchmark', 'Accuracy against compute', alt, drawn, [dict(one) for one in records])
