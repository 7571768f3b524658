"""From the files of runs to figures: what can be drawn of a run and of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kcd_jax.report import class_drawings, figures, kr, names, sweeps
from kcd_jax.report.drawing import Drawing
from kcd_jax.report.groups import Group, base_of, group_runs, teacher_network
from kcd_jax.report.records import Stage, number, read_metrics, read_stages, run_folder, series
from kcd_jax.report.statistics import Sample, hamming
from kcd_jax.report.tables import say_more_than_samples

Summary = Mapping[str, Any]
# More sets than these make a Hamming figure that nobody can read.
MAX_SEEDS, MAX_SETS = 3, 9
# Stages drawn: a policy that draws anew in every epoch has as many as epochs.
MAX_STAGES = 8
MAX_TICKS = 40
# More rows of one cost than these are drawn below each other.
MAX_CROWD = 3


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
    found = len(curves)
    if found > figures.MAX_LINES + 1:
        # The first ones, which the others are compared with, and the highest of the others.
        own = list(curves)
        rest = sorted(own[2:], key=lambda label: -np.nanmean(curves[label][1][:, -1]))[: figures.MAX_LINES - 1]
        curves = {label: curve for label, curve in curves.items() if label in (*own[:2], *rest)}
    run = next((run for group in groups for run in group.runs if run.get('condensations')), {})
    ticks = [record['epoch'] for record in run.get('condensations', []) if number(record, 'epoch') is not None]
    ticks = ticks if len(ticks) <= MAX_TICKS else []
    on = next((run.get('evaluated_on') for group in groups for run in group.runs if run.get('evaluated_on')), 'test')
    ends = ', '.join(f'{label} {100 * np.nanmean(curve[1][:, -1]):.2f} %' for label, curve in curves.items())
    level = f'; the teacher stands at {100 * teacher:.2f} %' if teacher is not None else ''
    level += f'. Of {found} runs: the first two, and those that ended highest' if found > len(curves) else ''
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
    alt = f'Steps: of {int(points):,} points, {sizes}.'
    if augmented[-1]:
        alt += f' {augmented[-1]:,} of the last have a dropped point mixed in.'
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


def _say(rows: Sequence[tuple[str, float, Sample]]) -> str:
    """The rows in words; of many, the two ends."""
    said = [f'{label} {100 * sample.mean:.2f} % at {100 * cost:.1f} %' for label, cost, sample in rows]
    if len(rows) <= 12:
        return '; '.join(said)
    low, high = (pick(range(len(rows)), key=lambda i: rows[i][2].mean) for pick in (min, max))
    return f'{len(rows)} rows; highest: {said[high]}; lowest: {said[low]}'


def accuracy_against_cost(
    rows: Sequence[tuple[str, float | None, Sample]], counted: str, name: str = 'accuracy_against_cost', level: str = ''
) -> Drawing | None:
    """A point a row; None where fewer than two rows have an accuracy and a cost.

    Rows called 'KC-KD, 60 %' and 'KC-KD, 80 %' are joined. Where there are more than colours can tell apart, or many
    cost the same, each gets a line of its own instead.

    Args:
      rows: (label, cost of training on everything, accuracy). counted: what the cost counts. level: the reference.
    """
    rows = [row for row in rows if row[1] is not None and row[2].mean is not None]
    if len(rows) < 2:
        return None
    series = [label.partition(', ')[0] for label, _, _ in rows]
    labels = [one if series.count(one) > 1 else row[0] for one, row in zip(series, rows, strict=True)]
    cost, means, errors = [row[1] for row in rows], [row[2].mean for row in rows], [row[2].sd for row in rows]
    alt = f'Accuracy, and cost in {counted} of training on everything'
    alt += ', with standard deviations over seeds. ' if any(error is not None for error in errors) else '. '
    single = [x for x, label in zip(cost, labels, strict=True) if labels.count(label) == 1]
    crowd = max((sum(abs(x - other) < figures.NEAR for other in single) for x in single), default=0)
    if len(set(labels) - {'Student alone'}) > figures.MAX_LINES or crowd > MAX_CROWD:
        even = max(cost) - min(cost) < figures.NEAR
        named = {label: label if even else f'{label} ({100 * x:.0f} %)' for label, x, _ in rows}
        figure = figures.accuracies(list(named.values()), means, errors, named.get(level, ''), '' if even else counted)
        return Drawing(name, 'Accuracy of each run', alt + _say(rows) + '.', figure)
    pairs = list(zip(cost, labels, strict=True))
    near = any(abs(x - y) < figures.NEAR and one != other for x, one in pairs for y, other in pairs)
    figure = figures.accuracy_against_cost(labels, cost, means, errors, counted, apart=1.0 if near else 0.0)
    return Drawing(name, 'Accuracy against cost', alt + _say(rows) + '.', figure)


def of_costs(groups: Sequence[Group], reference: str = 'kd') -> Drawing | None:
    """Accuracy against cost of the rows of an experiment: multiply-accumulates where samples say too little."""
    base = next((base for group in groups if (base := base_of(group, groups, reference))), None)
    macs = [(group.label, group.sample('cost', 'relative_macs').mean, group.sample('accuracy')) for group in groups]
    more = say_more_than_samples(run for group in groups for run in group.runs)
    whole = more and all(row[1] is not None for row in macs)
    samples = [(label, group.sample('cost', 'relative_processed').mean, accuracy)
               for group, (label, _, accuracy) in zip(groups, macs, strict=True)]  # fmt: skip
    rows, counted = (macs, 'multiply-accumulates') if whole else (samples, 'samples processed')
    return accuracy_against_cost(rows, counted, level=base.label if base else '')


def of_sweep(groups: Sequence[Group]) -> list[Drawing]:
    """Accuracy against cost of the rows of one pair of a sweep, against ratio, and of reused sets.

    The student alone is left out of the first: its cost is of another kind.
    """
    first = next((sweeps.card_of(run) for group in groups for run in group.runs), None)
    if first is None:
        return []
    whole = sweeps.whole_of(groups, first)
    taught = [group for group in groups if group.method != 'none']
    rows = [(group.label, sweeps.relative_cost(group, whole).mean, group.sample('accuracy')) for group in taught]
    counted = 'multiply-accumulates' if sweeps.counts_macs(whole) else 'samples processed'
    drawn = [accuracy_against_cost(rows, counted, level=whole.label if whole else '')]
    drawn += [class_drawings.ratios(groups), class_drawings.reuse(groups)]
    return [drawing for drawing in drawn if drawing]


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
            # A policy that keeps everything at the end (InfoBatch) has no set of its own.
            if stage is not None and not stage.kept.all():
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


def kr_convergence(groups: Sequence[Group]) -> Drawing | None:
    """Both losses of KR's runs by iteration (KR Fig. 5); None without such runs, or of different lengths."""
    runs = [run for group in groups for run in group.runs if kr.logged(run)]
    try:
        curves = kr.training_curves(runs)
    except ValueError:  # runs of one name that were logged at different iterations
        return None
    if not curves:
        return None
    alt = f'Line chart of two losses by iteration. {"; ".join(kr.reading(curves, "dense"))}.'
    return Drawing('kr_convergence', 'How the two losses fall', alt, kr.convergence(curves))


def of_run(run: Summary) -> list[Drawing]:
    """Everything that can be drawn of one run."""
    folder = run_folder(run)
    group = group_runs([run])
    drawn = [learning_curves(group, number(run, 'teacher', 'accuracy')), kr_convergence(group)]
    drawn.append(condensation_history(run))
    drawn += values(run, read_stages(folder, MAX_STAGES) if folder else [])
    return [drawing for drawing in drawn if drawing] + class_drawings.of_points(run, group[0].label if group else '')


def shown_run(summaries: Sequence[Summary]) -> Summary | None:
    """The run whose points an experiment's report shows: condensed by value if there is one, of the first seed."""
    condensed = [run for run in summaries if run.get('condensations')]
    by_value = [run for run in condensed if run['policy'] != 'random'] or condensed
    return min(by_value, key=lambda run: (run['policy'] != 'kcd', run['seed']), default=None)


def of_experiment(summaries: Sequence[Summary], reference: str = 'kd') -> list[Drawing]:
    """Everything that can be drawn of runs that can be compared; `reference` names the one to compare with."""
    groups = group_runs(summaries)
    teacher = next((number(run, 'teacher', 'accuracy') for run in summaries if teacher_network(run)), None)
    drawn = [learning_curves(groups, teacher), kr_convergence(groups), of_costs(groups, reference)]
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


def gallery(run: Summary, images: Any, name_of: Callable[[int], str], count: int = 16) -> Drawing | None:
    """The most and the least valued images of a run's last condensation; None where it has none.

    Args:
      run: a collected summary. images: u8[num_points, H, W, 3], by point. name_of: what a point is called.

    Raises:
      ValueError: the images are not those of the run's points.
    """
    folder = run_folder(run)
    stages = read_stages(folder, 1) if folder else []
    if not stages:
        return None
    value = stages[-1].value
    if len(images) != len(value):
        raise ValueError(f'{len(images)} images do not belong to a run of {len(value)} points; give its training set')
    halves = ranked_points(stages[-1], count)
    titles = [[f'{name_of(point)}\n{value[point]:.3f} nats' for point in points] for points in halves]
    figure = figures.gallery(*([images[point] for point in points] for points in halves), *titles)
    ends = [f'{value[points].mean():.3f}' for points in halves if len(points)]
    alt = f'The {count} most and the {count} least valued images; their mean values in nats: {" and ".join(ends)}.'
    return Drawing('gallery', 'Valued and worthless images', alt, figure)
