"""The benchmark of selection policies (docs/benchmark.md): costs, differences and p values of published results."""

from __future__ import annotations

import base64
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kcd_jax.report.comparisons import FILE, Row, Summary, is_teacher, refuse_duplicates, setting_of
from kcd_jax.report.statistics import bootstrap_errors, crossed_errors, holm, two_sided
from kcd_jax.runtime import descriptions, files

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

    def own_cache(self, rows: Mapping[str, int] | None) -> float | None:
        """Mean multiply-accumulates with a cache that starts empty, by the answers that one of the runs computed so."""
        if rows is None:
            return None
        served = rows.get('served', 0) / max(rows['asked'], 1)
        return float(np.mean([_spent(run) - served * run['cost']['macs']['teacher_forward'] for run in self.runs]))


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


def _spent(run: Summary) -> float:
    return sum(run['cost']['macs'].values())


def _amortised(run: Summary) -> float:
    spent, images = run['cost']['macs'], run['cost']['samples']['teacher_forward']
    rows = (run.get('computed') or {}).get('teacher_rows') or {}
    if not images:
        return _spent(run)
    kept = rows.get('computed', 0) + rows.get('served', 0) - rows.get('mixed', 0)
    return _spent(run) - spent['teacher_forward'] * min(kept, images) / images  # a restart asks for scores again


def cells_of(summaries: Sequence[Summary]) -> dict[str, dict[str, Cell]]:
    """{sweep: {label: its cell}} of the runs of sweeps, in the order of their tables.

    Teachers are left out, and seeds of the exploration if the sweep has others.

    Raises:
      ValueError: two runs of a row have the same seed, or their settings differ; a file lacks something.
    """
    found: dict[str, dict[str, Cell]] = {}
    chosen = [run for run in summaries if isinstance(run.get('cell'), Mapping) and not is_teacher(run)]
    for run in chosen:
        _refuse_unreadable(run)
    published = {run['cell']['sweep'] for run in chosen if run['seed'] >= FIRST_SEED}
    chosen = [run for run in chosen if run['seed'] >= FIRST_SEED or run['cell']['sweep'] not in published]
    for run in sorted(chosen, key=_place):
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


def _refuse_unreadable(run: Summary) -> None:
    """ValueError, in one line, for a run that lacks what the report reads, or whose answers are not whole."""
    name = run.get(FILE) or run.get('name')
    try:
        _place(run), run['cell']['label'], run['cell']['group'], float(run['accuracy']), _amortised(run)
        _made_by([run]), _taught_by([run])
        whole = not run.get('right') or abs(_right(run).mean() - run['accuracy']) < 1e-4
        usable = whole and isinstance(run['seed'], int)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{name} is not a whole result of a sweep ({type(error).__name__}: {error})') from error
    if not usable:
        raise ValueError(f'{name} is damaged: its answers by test image do not give its accuracy; train this run again')


def _place(run: Summary) -> tuple[Any, ...]:
    """Sweeps by name, those that are only described at the end; rows as in their tables."""
    card = run['cell']
    return card['sweep'] in DESCRIPTIVE, card['sweep'], card['place'], run['seed']


def _differing(one: Summary, other: Summary) -> str:
    """How two runs differ in more than their seeds; '' if they do not."""
    if setting_of(one) != setting_of(other):
        return 'epochs, batch, data or networks are not the same'
    there, here = ({**run['run'], 'seed': 0} if run.get('run') else {} for run in (one, other))
    return descriptions.differences(there, here)


def _refuse_other_teachers(sweep: str, runs: Sequence[Summary]) -> None:
    taught = {}
    for run in runs:
        if (run.get('teacher') or {}).get('accuracy') is not None:
            identity = ((run.get('run') or {}).get('teacher') or {}).get('identity')
            taught.setdefault(identity or run['teacher']['accuracy'], run)
    if len(taught) > 1:
        shown = ', '.join(
            f'{100 * run["teacher"]["accuracy"]:.2f} % ({run["name"]}, seed {run["seed"]})' for run in taught.values()
        )
        raise ValueError(f'{sweep}: the runs had teachers of {shown}; give those of one teacher')


def measure(
    summaries: Sequence[Summary], resamples: int = 10_000, own_cache: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One record per row of every sweep, with its differences and the p values of the protocol.

    Args:
      summaries: of finished runs of the benchmark's sweeps.
      resamples: of the bootstrap.
      own_cache: 'sweeps' of a file of `benchmarks.own_cache`; None: not counted.

    Returns:
      Mappings with equal keys. Accuracies and differences are in percentage points, costs are fractions of KD's without
      a cache. Keys that end in '_se' and '_p' are the protocol's, those in '_unbiased' and '_unbiased_p' the same with
      `statistics.crossed_errors`.

    Raises:
      ValueError: there is no such run, a sweep lacks KD, or a run has no answers by test point.
    """
    found = cells_of(summaries)
    if not found:
        raise ValueError('no finished run of a sweep was found; run python -m kcd_jax sweep benchmark_hard first')
    if own_cache and not {*own_cache} & {*found}:
        raise ValueError(
            f'the own caches are of {", ".join(own_cache)}, the runs of {", ".join(found)}; give those of one'
        )
    records = []
    for sweep, cells in found.items():
        if KD not in cells:
            raise ValueError(f'{sweep} has no finished run of {KD}, which costs are relative to')
        full, runs = cells[KD].macs(), [run for cell in cells.values() for run in cell.runs]
        origin = {'made_by': _made_by(runs), 'taught_by': _taught_by(runs)}
        wanted = [(label, other) for label, cell in cells.items() for other in _others(cell, cells)]
        compared = _compare(cells, wanted, resamples)
        for label, cell in cells.items():
            accuracy = cell.sample('accuracy')
            record = {'sweep': sweep, 'run': label, 'policy': cell.policy_label, 'budget': cell.group, 'n': accuracy.n}
            record |= {'accuracy': 100 * accuracy.mean, 'sd': accuracy.sd and 100 * accuracy.sd}
            record |= {'compute': cell.macs() / full, 'amortised': cell.amortised() / full}
            own = cell.own_cache(((own_cache or {}).get(sweep) or {}).get(label))
            record['own_cache'] = None if own is None else own / full
            seeds = [run['seed'] for run in cell.runs]
            record |= {'explores': min(seeds) < FIRST_SEED, 'control_of': OWN_CONTROL.get(cell.policy_label, '')}
            record |= origin
            names = {'kd': KD, 'random': f'{RANDOM}, {cell.group}', 'control': _control(cell)}
            for key, other in names.items():
                mean, error, unbiased, n, ends = compared.get((label, other), (None, None, None, 0, None))
                record |= {key: mean, f'{key}_se': error, f'{key}_unbiased': unbiased, f'{key}_n': n}
                record[f'{key}_range'] = ends
                asked = key == 'random' or (key == 'control' and cell.policy_label == TESTED_CONTROL)
                tested = asked and mean is not None and sweep not in DESCRIPTIVE and not record['explores']
                if key != 'kd':
                    record[f'{key}_p'] = two_sided(mean, error, n) if tested else None
                    known = unbiased is not None  # else nothing can be told from chance
                    record[f'{key}_unbiased_p'] = (two_sided(mean, unbiased, n) if known else 1.0) if tested else None
            records.append(record)
    for kind in ('p', 'unbiased_p'):
        keys = [(record, f'{key}_{kind}') for record in records for key in ('random', 'control')]
        for (record, key), p in zip(keys, holm(record[key] for record, key in keys), strict=True):
            record[key] = p
    return records


def read_own_cache(path: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """'sweeps' of a file of `benchmarks.own_cache`.

    Raises:
      ValueError: it is no such file.
    """
    if path is None:
        return None
    sweeps = (files.read_json(pathlib.Path(path)) or {}).get('sweeps')
    try:
        rows = [row for found in sweeps.values() for row in found.values()]
        if rows and all(isinstance(row['asked'], int) and isinstance(row.get('served', 0), int) for row in rows):
            return sweeps
    except (AttributeError, KeyError, TypeError):
        pass
    raise ValueError(f'{path} is no file of python -m benchmarks.own_cache; give one')


def _made_by(runs: Sequence[Summary]) -> str:
    """'JAX 0.10.1 on cpu; commits 58c7061, 73afa2e.' of the runs of a sweep."""
    found = {(f'JAX {run["versions"]["jax"]}', run['device']['kind']) for run in runs if run.get('versions')}
    made = ', '.join(f'{version} on {device}' for version, device in sorted(found))
    whole = (run['commit'].partition('-') for run in runs if run.get('commit'))
    commits = sorted({f'{digits[:7]}{dash}{dirty}' for digits, dash, dirty in whole})
    parts = [made] * bool(made) + [f'commit{"s" * (len(commits) > 1)} {", ".join(commits)}'] * bool(commits)
    return f'{"; ".join(parts)}.' if parts else ''


def _taught_by(runs: Sequence[Summary]) -> str:
    """'resnet14, 99.33 %' of the teacher of a sweep; '' if its accuracy is not known."""
    teacher = next((run['teacher'] for run in runs if (run.get('teacher') or {}).get('accuracy') is not None), None)
    if teacher is None:
        return ''
    source = f'the file {teacher["source"]}, ' if teacher.get('sha256') else ''
    return f'{teacher.get("network", "")}, {source}{100 * teacher["accuracy"]:.2f} %'


def _control(cell: Cell) -> str:
    return f'{OWN_CONTROL[cell.policy_label]}, {cell.group}' if cell.policy_label in OWN_CONTROL else ''


def _others(cell: Cell, cells: Mapping[str, Cell]) -> list[str]:
    """The labels that a cell is compared with."""
    others = [KD, f'{RANDOM}, {cell.group}', _control(cell)]
    return [other for other in others if other in cells and other != cell.label]


def _compare(
    cells: Mapping[str, Cell], wanted: Sequence[tuple[str, str]], resamples: int
) -> dict[tuple[str, str], tuple[float, float, float | None, int, tuple[float, float]]]:
    """{(label, other): (mean difference, its standard errors, seeds, its ends over seeds)} in percentage points."""
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
        unbiased = crossed_errors(differences) if len(seeds) > 1 else np.full(len(pairs), np.nan)
        for pair, one, error, crossed in zip(pairs, differences, errors, unbiased, strict=True):
            by_seed = one.mean(axis=1)
            ends = (float(by_seed.min()), float(by_seed.max()))
            known = None if np.isnan(crossed) else float(crossed)
            found[pair] = (float(one.mean()), float(error), known, len(seeds), ends)
    return found
