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
from kcd_jax.report.comparisons import Row, Summary, is_teacher
from kcd_jax.report.statistics import bootstrap_errors, holm, two_sided

KD, RANDOM = 'KD', 'Random'
# The second question of the protocol: is KCD better than a random choice of its own sizes?
OWN_CONTROL = {'KCD': "Random at KCD's sizes"}
DESCRIPTIVE = ('benchmark_cifar100',)  # too few seeds for a test


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
    """{sweep: {label: its cell}} of the runs of sweeps, in the order of their tables; teachers are left out."""
    found: dict[str, dict[str, Cell]] = {}
    chosen = [run for run in summaries if isinstance(run.get('cell'), Mapping) and not is_teacher(run)]
    for run in sorted(chosen, key=lambda run: (run['cell']['sweep'], run['cell']['place'], run['seed'])):
        card = run['cell']
        rows = found.setdefault(card['sweep'], {})
        cell = rows.setdefault(card['label'], Cell(card['label'], card['label'], [], run['method'], run['policy']))
        cell.group = card['group']
        cell.runs.append(run)
    return found


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
        full = cells[KD].macs()
        wanted = [(label, other) for label, cell in cells.items() for other in _others(cell, cells)]
        compared = _compare(cells, wanted, resamples)
        for label, cell in cells.items():
            accuracy = cell.sample('accuracy')
            record = {'sweep': sweep, 'run': label, 'policy': cell.policy_label, 'budget': cell.group, 'n': accuracy.n}
            record |= {'accuracy': 100 * accuracy.mean, 'sd': accuracy.sd and 100 * accuracy.sd}
            record |= {'compute': cell.macs() / full, 'amortised': cell.amortised() / full}
            names = {'kd': KD, 'random': f'{RANDOM}, {cell.group}', 'control': _control(cell)}
            for key, other in names.items():
                mean, error, n = compared.get((label, other), (None, None, 0))
                record |= {key: mean, f'{key}_se': error, f'{key}_n': n}
                tested = key != 'kd' and mean is not None and sweep not in DESCRIPTIVE
                record[f'{key}_p'] = two_sided(mean, error, n) if tested else None
            records.append(record)
    keys = [(place, key) for place in range(len(records)) for key in ('random_p', 'control_p')]
    for (place, key), p in zip(keys, holm(records[place][key] for place, key in keys), strict=True):
        records[place][key] = p
    return records


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
                [record['run'], f'{record["accuracy"]:.2f}{spread}', str(record['n']), _difference(record, 'random'),
                 '' if record['random_p'] is None else f'{record["random_p"]:.3f}', _interval(record, 'kd'),
                 f'{100 * record["compute"]:.1f}', f'{100 * record["amortised"]:.1f}']
            )  # fmt: skip
        notes = [
            'accuracy: last epoch, test set; mean ± sample standard deviation over n seeds. vs Random: mean difference '
            'from the random choice at the same budget ± standard error over seeds and test points; p: its two-sided p '
            "value, adjusted by Holm's method for all tests of the benchmark. vs KD: mean difference from every point "
            '[95 % interval]. compute: multiply-accumulates from a cold cache, relative to KD; amortised: without the '
            "teacher's answers that a cache serves.",
        ]
        for record in own:
            if record['control'] is not None:
                p = '' if record['control_p'] is None else f', adjusted p {record["control_p"]:.3f}'
                notes.append(f'{record["run"]} less a random choice of its sizes: {_difference(record, "control")}{p}.')
        notes.append(conclusion(own))
        found.append(tables.Table(sweep.removeprefix('benchmark_'), headers, rows, [dict(one) for one in own], notes))
    return found


def conclusion(records: Sequence[Mapping[str, Any]]) -> str:
    """Which policies select better or worse than chance in a regime, in one sentence."""
    tested = [record for record in records if record['random_p'] is not None]
    if not tested:
        return 'Too few seeds for a conclusion.'
    base = {record['budget']: record['compute'] for record in records if record['policy'] == RANDOM}
    told = [record for record in tested if record['random_p'] < 0.05]
    better = [
        record['run'] for record in told
        if record['random'] > 0 and record['compute'] - base.get(record['budget'], 0) <= 0.03
    ]  # fmt: skip
    dearer = [record['run'] for record in told if record['random'] > 0 and record['run'] not in better]
    worse = [record['run'] for record in told if record['random'] < 0]
    parts = [f'{words}: {"; ".join(names)}' for words, names in (
        ('better than a random choice of the same cost', better), ('better, and dearer by over three points', dearer),
        ('worse than a random choice of the same cost', worse)) if names]  # fmt: skip
    return (
        '. '.join(part[0].upper() + part[1:] for part in parts) + '.'
        if parts
        else ('No policy is better or worse than a random choice of the same cost.')
    )


def _difference(record: Mapping[str, Any], key: str) -> str:
    return '' if record[key] is None else f'{record[key]:+.2f} ± {record[f"{key}_se"]:.2f}'


def _interval(record: Mapping[str, Any], key: str) -> str:
    mean, error, n = record[key], record[f'{key}_se'], record[f'{key}_n']
    if mean is None or n < 2:
        return '' if mean is None else f'{mean:+.2f}'
    half = float(stdtrit(n - 1, 0.975)) * error
    return f'{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]'


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
                axis.plot(100 * one[key], one['accuracy'], '*', color=style.NEUTRAL, markersize=7)
                axis.annotate(
                    one['run'], (100 * one[key], one['accuracy']), (0, 3), textcoords='offset points', ha='center'
                )
            axis.set_xlabel(f'compute, % {words}')
        axes[0].set_ylabel(f'{sweep.removeprefix("benchmark_")}: accuracy, %')
    drawn.legend(*panels[0][0].get_legend_handles_labels(), loc='outside upper center', ncols=5)
    alt = 'Accuracy against compute of the selection policies: ' + '; '.join(
        f'{one["sweep"]}, {one["run"]}: {one["accuracy"]:.1f} % at {100 * one["compute"]:.0f} %' for one in records
    )
    return style.Drawing('benchmark', 'Accuracy against compute', alt, drawn, [dict(one) for one in records])
