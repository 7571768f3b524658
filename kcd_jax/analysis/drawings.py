"""From the files of runs to figures: what can be drawn of a run and of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_jax.analysis import class_drawings, figures, names, sweeps
from kcd_jax.analysis.drawing import Drawing
from kcd_jax.analysis.groups import Group, group_runs, teacher_network
from kcd_jax.analysis.records import Stage, number, read_metrics, read_stages, run_folder, series
from kcd_jax.analysis.statistics import hamming

Summary = Mapping[str, Any]
# More sets than these make a Hamming figure that nobody can read.
MAX_SEEDS, MAX_SETS = 3, 9
# Stages drawn: a policy that draws anew in every epoch has as many as epochs.
MAX_STAGES = 8
MAX_TICKS = 40


def _curve(runs: Sequence[Summary]) -> tuple[np.ndarray, np.ndarray]:
    """(epochs [E], accuracy [seeds, E]) of the evaluations in the runs' metrics; NaN where a seed has none."""
    found = []
    for run in runs:
        folder = run_folder(run)
        epochs, accuracy = series(read_metrics(folder), 'eval', 'accuracy') if folder else ([], [])
        if epochs:
            found.append(dict(zip(epochs, accuracy, strict=True)))
    epochs = sorted({epoch for curve in found for epoch in curve})
    return np.array(epochs), np.array([[curve.get(epoch, np.nan) for epoch in epochs] for curve in found])


def learning_curves(groups: Sequence[Group], teacher: float | None = None) -> Drawing | None:
    """Accuracy by epoch of every row of the table that has metrics; None where no run has any."""
    curves = {group.label: _curve(group.runs) for group in groups}
    curves = {label: curve for label, curve in curves.items() if len(curve[0])}
    if not curves:
        return None
    run = next((run for group in groups for run in group.runs if run.get('condensations')), {})
    ticks = [record['epoch'] for record in run.get('condensations', []) if number(record, 'epoch') is not None]
    ticks = ticks if len(ticks) <= MAX_TICKS else []
    on = next((run.get('evaluated_on') for group in groups for run in group.runs if run.get('evaluated_on')), 'test')
    ends = ', '.join(f'{label} {100 * np.nanmean(curve[1][:, -1]):.2f} %' for label, curve in curves.items())
    level = f'; the teacher stands at {100 * teacher:.2f} %' if teacher is not None else ''
    figure = figures.learning_curves(curves, teacher, ticks, f'{on} accuracy')
    return Drawing(
        'learning_curves', 'Accuracy by epoch', f'Line chart of {on} accuracy by epoch. Last: {ends}{level}.', figure
    )


def condensation_history(run: Summary) -> Drawing | None:
    """Points kept in each epoch; None for a run that was never condensed."""
    needed = ('epoch', 'kept', 'augmented')
    records = [r for r in run.get('condensations') or [] if all(number(r, key) is not None for key in needed)]
    points, epochs = number(run, 'num_points'), number(run, 'epochs')
    if not records or points is None or epochs is None:
        return None
    after, kept, augmented = ([int(record[key]) for record in records] for key in needed)
    figure = figures.condensation_history(int(points), int(epochs), after, kept, augmented)
    sizes = ', '.join(f'{size:,} after epoch {epoch}' for size, epoch in zip(kept, after, strict=True))
    alt = (
        f'Steps: of {int(points):,} points, {sizes}. The last {augmented[-1]:,} of them have a dropped point mixed in.'
    )
    return Drawing('condensation_history', 'What was trained on', alt, figure)


def _visited(stage: Stage) -> np.ndarray:
    return np.where(stage.count > 0, stage.value, np.nan)


def values(run: Summary, stages: Sequence[Stage]) -> list[Drawing]:
    """The value of points over the stages, as a heat map and as histograms; [] without stages."""
    if not stages:
        return []
    epoch_of = {record.get('number'): record.get('epoch') for record in run.get('condensations') or []}
    epochs = [epoch_of.get(stage.number, stage.number) for stage in stages]
    kept = np.stack([stage.kept for stage in stages])
    drawn = []
    if len(stages) > 1:
        figure = figures.value_heat_map(np.stack([_visited(stage) for stage in stages]), kept, epochs)
        back = int(np.sum(kept[1:] & ~kept[:-1]))
        means = [np.nanmean(_visited(stage)) if (stage.count > 0).any() else np.nan for stage in stages]
        alt = (
            f'Heat map of the value of sampled points at {len(stages)} condensations. The mean value goes from '
            f'{means[0]:.3f} to {means[-1]:.3f} nats; {back:,} times a dropped point was re-admitted.'
        )
        drawn.append(Drawing('value_heat_map', 'Value of points over training', alt, figure))
    seen = [stage.value[stage.count > 0] for stage in stages]
    labels = [f'after epoch {epoch}' for epoch in epochs]
    medians = ', '.join(f'{np.median(s):.3f} {label}' for s, label in zip(seen, labels, strict=True) if len(s))
    alt = f'Histograms of the value of all visited points at each condensation. Medians in nats: {medians}.'
    drawn.append(Drawing('value_histogram', 'How values are spread', alt, figures.value_histogram(seen, labels)))
    return drawn


def accuracy_against_cost(groups: Sequence[Group]) -> Drawing | None:
    """A point a row of the table; None where fewer than two rows have an accuracy and a cost."""
    rows = [
        (group.label, group.sample('cost', 'relative_processed').mean, group.sample('accuracy')) for group in groups
    ]
    rows = [row for row in rows if row[1] is not None and row[2].mean is not None]
    if len(rows) < 2:
        return None
    labels, cost, accuracy = ([row[i] for row in rows] for i in range(3))
    figure = figures.accuracy_against_cost(labels, cost, [a.mean for a in accuracy], [a.sd for a in accuracy])
    said = '; '.join(f'{label} {100 * a.mean:.2f} % at {100 * c:.1f} % of the samples' for label, c, a in rows)
    return Drawing('accuracy_against_cost', 'Accuracy against cost', f'Scatter plot. {said}.', figure)


def of_sweep(summaries: Sequence[Summary]) -> list[Drawing]:
    """Accuracy against cost of each sweep and pair; a line joins the rows of one policy ('KC-KD, 60 %', '..., 80 %').

    The student alone is left out: its cost is of another kind.
    """
    drawn = []
    for (sweep, pair), runs in sweeps.by_pair(summaries).items():
        groups = sweeps.sweep_groups(runs)
        whole = sweeps.whole_of(groups, sweeps.card_of(runs[0]))
        taught = [group for group in groups if group.method != 'none']
        rows = [(group.label, sweeps.relative_cost(group, whole).mean, group.sample('accuracy')) for group in taught]
        rows = [row for row in rows if row[1] is not None and row[2].mean is not None]
        if len(rows) < 2:
            continue
        series = [label.partition(', ')[0] for label, _, _ in rows]
        labels = [one if series.count(one) > 1 else row[0] for one, row in zip(series, rows, strict=True)]
        cost, accuracy = [row[1] for row in rows], [row[2] for row in rows]
        means, errors = [a.mean for a in accuracy], [a.sd for a in accuracy]
        counted = 'multiply-accumulates' if sweeps.counts_macs(whole) else 'samples processed'
        figure = figures.accuracy_against_cost(labels, cost, means, errors, counted, apart=1.0)
        said = '; '.join(f'{label} {100 * a.mean:.2f} % at {100 * c:.1f} %' for label, c, a in rows)
        alt = f'Accuracy against cost in {counted}, with standard deviations over seeds. {said}.'
        drawn.append(Drawing(f'{sweep}_{pair}' if pair else sweep, 'Accuracy against cost', alt, figure))
    return drawn


def last_stages(runs: Sequence[Summary]) -> dict[Path, Stage]:
    """{run's folder: its last condensation}; runs without any are left out."""
    found = {}
    for run in runs:
        folder = run_folder(run)
        stages = read_stages(folder, 1) if folder else []
        if stages:
            found[folder] = stages[-1]
    return found


def hamming_distances(groups: Sequence[Group]) -> Drawing | None:
    """Final value labels of condensed runs against each other, three seeds a row; None for fewer than two of them."""
    labels, kept = [], []
    for group in groups:
        runs = group.runs[:MAX_SEEDS]
        stages = last_stages(runs)
        for run in runs:
            stage = stages.get(run_folder(run))
            if stage is not None:
                labels.append(f'{group.label}, seed {run["seed"]}' if len(runs) > 1 else group.label)
                kept.append(stage.kept)
    kept, labels = kept[:MAX_SETS], labels[:MAX_SETS]
    if len(kept) < 2 or len({len(mask) for mask in kept}) > 1:
        return None
    sets = np.stack(kept)
    measured, expected = hamming(sets)
    pairs = [(measured[i, j], expected[i, j], labels[j], labels[i]) for i in range(len(labels)) for j in range(i)]
    said = '; '.join(
        f'{extreme}: {one} and {other} {100 * share:.1f} % (by chance {100 * chance:.1f} %)'
        for extreme, (share, chance, one, other) in (('closest', min(pairs)), ('furthest', max(pairs)))
    )
    alt = f'Matrix of the share of points whose final value label differs between {len(labels)} runs; {said}.'
    return Drawing('hamming_distances', 'Do runs keep the same points?', alt, figures.hamming_distances(sets, labels))


def of_run(run: Summary) -> list[Drawing]:
    """Everything that can be drawn of one run."""
    folder = run_folder(run)
    group = group_runs([run])
    drawn = [learning_curves(group, number(run, 'teacher', 'accuracy')), condensation_history(run)]
    drawn += values(run, read_stages(folder, MAX_STAGES) if folder else [])
    return [drawing for drawing in drawn if drawing] + class_drawings.of_points(run, group[0].label if group else '')


def shown_run(summaries: Sequence[Summary]) -> Summary | None:
    """The run whose points an experiment's report shows: condensed by value if there is one, of the first seed."""
    condensed = [run for run in summaries if run.get('condensations')]
    by_value = [run for run in condensed if run['policy'] != 'random'] or condensed
    return min(by_value, key=lambda run: (run['policy'] != 'kcd', run['seed']), default=None)


def of_experiment(summaries: Sequence[Summary]) -> list[Drawing]:
    """Everything that can be drawn of runs that can be compared."""
    groups = group_runs(summaries)
    teacher = next((number(run, 'teacher', 'accuracy') for run in summaries if teacher_network(run)), None)
    drawn = [learning_curves(groups, teacher), accuracy_against_cost(groups)]
    shown = shown_run(summaries)
    if shown is not None:
        drawn.append(condensation_history(shown))
        folder = run_folder(shown)
        drawn += values(shown, read_stages(folder, MAX_STAGES) if folder else [])
    drawn.append(hamming_distances(groups))
    drawn += class_drawings.of_experiment(groups)
    if shown is not None:
        drawn += class_drawings.of_points(shown, names.display_name(shown['method'], shown['policy']))
    return [drawing for drawing in drawn if drawing]


def ranked_points(stage: Stage, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(most, least): `count` visited points each, by value; most valuable and least valuable first."""
    visited = np.nonzero(stage.count > 0)[0]
    order = visited[np.argsort(-stage.value[visited], kind='stable')]
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]
