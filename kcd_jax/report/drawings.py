"""From the files of runs to figures: curves, costs and values of a run or of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kcd_jax.report import class_drawings, figures, kr, names, style
from kcd_jax.report.comparisons import Comparison, Row, rows_of, split
from kcd_jax.report.records import Files, Stage, number, series
from kcd_jax.report.statistics import Sample, hamming
from kcd_jax.report.style import Drawing

Summary = Mapping[str, Any]
Curve = tuple[np.ndarray, np.ndarray]
# A Hamming figure of more sets than these is unreadable.
MAX_SEEDS, MAX_SETS = 3, 9
# Number of stages drawn: a policy that selects in every epoch has one per epoch.
MAX_STAGES = 8
MAX_TICKS = 40
# At most this many rows with one cost are drawn above each other.
MAX_CROWD = 3


def curve(runs: Sequence[Summary], files: Files, kind: str, name: str) -> Curve:
    """(epochs [E], values [seeds, E]) of a number in the runs' metrics; NaN if a seed has no value."""
    found = []
    for run in runs:
        epochs, values = series(files.metrics(run), kind, name)
        if epochs:
            found.append(dict(zip(epochs, values, strict=True)))
    epochs = sorted({epoch for one in found for epoch in one})
    return np.array(epochs), np.array([[one.get(epoch, np.nan) for epoch in epochs] for one in found])


def _curves(rows: Sequence[Row], files: Files, kind: str, name: str) -> dict[str, Curve]:
    found = {row.label: curve(row.runs, files, kind, name) for row in rows}
    return {label: one for label, one in found.items() if len(one[0])}


def _as_data(quantity: str, curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    return [
        {'quantity': quantity, 'run': label, 'curve': place, 'epoch': int(epoch), 'value': value}
        for label, (epochs, values) in curves.items()
        for place, of_seed in enumerate(values)
        for epoch, value in zip(epochs, of_seed, strict=True)
        if np.isfinite(value)
    ]


def learning_curves(rows: Sequence[Row], files: Files, teacher: float | None = None) -> list[Drawing]:
    """Accuracy, losses and learning rate by epoch, of rows that have metrics; [] if none has.

    Args:
      rows: of a table.
      files: to read from.
      teacher: its accuracy.
    """
    curves = _curves(rows, files, 'eval', 'accuracy')
    found = len(curves)
    if found > style.MAX_LINES + 1:
        # The first two, which the others are compared with, and the most accurate of the others.
        own = list(curves)
        rest = sorted(own[2:], key=lambda label: -np.nanmean(curves[label][1][:, -1]))[: style.MAX_LINES - 1]
        curves = {label: one for label, one in curves.items() if label in (*own[:2], *rest)}
    drawn = []
    if curves:
        runs = [run for row in rows for run in row.runs]
        condensed = next((run['condensations'] for run in runs if run.get('condensations')), [])
        ticks = [record['epoch'] for record in condensed if number(record, 'epoch') is not None]
        ticks = ticks if len(ticks) <= MAX_TICKS else []
        on = next((run['evaluated_on'] for run in runs if run.get('evaluated_on')), 'test')
        ends = ', '.join(f'{label} {100 * np.nanmean(one[1][:, -1]):.2f} %' for label, one in curves.items())
        level = f'; teacher {100 * teacher:.2f} %' if teacher is not None else ''
        level += f'. Of {found} rows: the first two and the most accurate others' if found > len(curves) else ''
        alt = f'Line chart of {on} accuracy by epoch. Last epoch: {ends}{level}.'
        figure = figures.learning_curves(curves, teacher, ticks, f'{on} accuracy')
        drawn.append(Drawing('learning_curves', 'Accuracy by epoch', alt, figure, _as_data('accuracy', curves)))
    shown = [row for row in rows if row.label in curves] or list(rows[: style.MAX_LINES])
    panels = {
        title: _curves(shown, files, kind, name)
        for title, kind, name in (
            ('training loss', 'train', 'loss'), ('evaluation loss', 'eval', 'loss'), ('learning rate', 'train', 'lr'),
        )
    }  # fmt: skip
    panels = {title: one for title, one in panels.items() if one}
    if panels:
        ends = [
            f'{title} {", ".join(f"{label} {np.nanmean(values[:, -1]):.4g}" for label, (_, values) in one.items())}'
            for title, one in panels.items()
            if title != 'learning rate'
        ]
        rates = [values for _, values in panels.get('learning rate', {}).values()]
        if rates:
            low, high = (
                pick(function(one) for one in rates) for pick, function in ((min, np.nanmin), (max, np.nanmax))
            )
            ends.append(f'learning rate between {low:g} and {high:g}')
        data = [record for title, one in panels.items() for record in _as_data(title, one)]
        alt = f'Line charts by epoch. Last epoch: {"; ".join(ends)}.'
        figure = figures.training_curves(panels)
        drawn.append(Drawing('training_curves', 'Losses and learning rate', alt, figure, data))
    return drawn


def condensation_history(run: Summary) -> Drawing | None:
    """Points kept in each epoch; None for a run without condensations."""
    needed = ('epoch', 'kept', 'augmented')
    records = [r for r in run.get('condensations') or [] if all(number(r, key) is not None for key in needed)]
    num_points, epochs = number(run, 'num_points'), number(run, 'epochs')
    if not records or num_points is None or epochs is None:
        return None
    after, kept, augmented = ([int(record[key]) for record in records] for key in needed)
    figure = figures.condensation_history(int(num_points), int(epochs), after, kept, augmented)
    sizes = [f'{size:,} after epoch {epoch}' for size, epoch in zip(kept, after, strict=True)]
    shown = ', '.join(sizes if len(sizes) <= MAX_STAGES else [sizes[0], '...', sizes[-1]])
    alt = f'Step chart: of {int(num_points):,} points, {shown}.'
    if augmented[-1]:
        alt += f' {augmented[-1]:,} of the last have a dropped point mixed in.'
    data = [{key: int(record[key]) for key in needed} for record in records]
    return Drawing('condensation_history', 'Points trained on', alt, figure, data)


def _visited(stage: Stage) -> np.ndarray:
    return np.where(stage.count > 0, stage.value, np.nan)


def values(run: Summary, stages: Sequence[Stage]) -> list[Drawing]:
    """Values of points over the stages, as a heat map and as histograms; [] without stages."""
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
            f'Heat map of the values of sampled points at {len(stages)} condensations. The mean value goes from '
            f'{means[0]:.3f} to {means[-1]:.3f} nats; dropped points were re-admitted {back:,} times.'
        )
        drawn.append(Drawing('value_heat_map', 'Values of points over training', alt, figure))
    seen = [stage.value[stage.count > 0] for stage in stages]
    labels = [f'after epoch {epoch}' for epoch in epochs]
    medians = ', '.join(f'{np.median(s):.3f} {label}' for s, label in zip(seen, labels, strict=True) if len(s))
    alt = f'Histograms of the values of all visited points at each condensation. Medians in nats: {medians}.'
    drawn.append(Drawing('value_histogram', 'Distribution of values', alt, figures.value_histogram(seen, labels)))
    return drawn


def accuracy_against_cost(
    rows: Sequence[tuple[str, float | None, Sample]], counted: str, level: str = ''
) -> Drawing | None:
    """One mark per row; None if fewer than two rows have an accuracy and a cost.

    Rows called 'KC-KD, 60 %' and 'KC-KD, 80 %' are joined. If there are more than colours can distinguish, or many with
    one cost, each gets a line of its own.

    Args:
      rows: (label, cost relative to training on every point, accuracy).
      counted: what the cost counts.
      level: label of the reference.
    """
    rows = [row for row in rows if row[1] is not None and row[2].mean is not None]
    if len(rows) < 2:
        return None
    kinds = [label.partition(', ')[0] for label, _, _ in rows]
    labels = [kind if kinds.count(kind) > 1 else row[0] for kind, row in zip(kinds, rows, strict=True)]
    cost, means, deviations = [row[1] for row in rows], [row[2].mean for row in rows], [row[2].sd for row in rows]
    alt = f'Accuracy, and cost in {counted} of training on every point'
    alt += ', with standard deviations over seeds. ' if any(one is not None for one in deviations) else '. '
    alt += '' if all(row[2].n > 1 for row in rows) else 'Rows with a single seed have no deviation. '
    said = [f'{label} {100 * sample.mean:.2f} % at {100 * x:.1f} %' for label, x, sample in rows]
    if len(rows) > 12:
        low, high = (pick(range(len(rows)), key=means.__getitem__) for pick in (min, max))
        said = [f'{len(rows)} rows; highest: {said[high]}; lowest: {said[low]}']
    alt += '; '.join(said) + '.'
    data = [{'run': label, 'relative_cost': x, 'accuracy_mean': sample.mean, 'accuracy_sd': sample.sd, 'n': sample.n}
            for label, x, sample in rows]  # fmt: skip
    single = [x for x, label in zip(cost, labels, strict=True) if labels.count(label) == 1]
    crowd = max((sum(abs(x - other) < figures.NEAR for other in single) for x in single), default=0)
    if len(set(labels) - {'Student alone'}) > style.MAX_LINES or crowd > MAX_CROWD:
        even = max(cost) - min(cost) < figures.NEAR
        named = {label: label if even else f'{label} ({100 * x:.0f} %)' for label, x, _ in rows}
        quantity = '' if even else counted
        figure = figures.accuracies(list(named.values()), means, deviations, named.get(level, ''), quantity)
        return Drawing('accuracy_against_cost', 'Accuracy of each run', alt, figure, data)
    pairs = list(zip(cost, labels, strict=True))
    near = any(abs(x - y) < figures.NEAR and one != other for x, one in pairs for y, other in pairs)
    quantity = f'{counted}, % of training on every point' + ('\n(equal costs side by side)' if near else '')
    figure = figures.accuracy_against_cost(labels, cost, means, deviations, quantity, apart=1.0 if near else 0.0)
    return Drawing('accuracy_against_cost', 'Accuracy against cost', alt, figure, data)


def costs(comparison: Comparison) -> Drawing | None:
    """Accuracy against cost: in multiply-accumulates if they were counted for every row and samples are not all.

    In a sweep, the student trained alone is left out: its cost is of another kind.
    """
    rows = [row for row in comparison.rows if not comparison.sweep or row.method != 'none']
    base = next((base for row in rows if (base := comparison.base(row))), None)
    cost = [comparison.cost(row) for row in rows]
    counts_macs = comparison.counts_macs()
    if not comparison.sweep and comparison.samples_are_not_all():
        relative = [row.sample('cost', 'relative_macs').mean for row in rows]
        counts_macs = None not in relative
        cost = relative if counts_macs else cost
    marks = [(row.label, x, row.sample('accuracy')) for row, x in zip(rows, cost, strict=True)]
    counted = 'multiply-accumulates' if counts_macs else 'samples processed'
    return accuracy_against_cost(marks, counted, base.label if base else '')


def hamming_distances(rows: Sequence[Row], files: Files) -> Drawing | None:
    """Final value labels of up to three seeds per row against each other; None for fewer than two sets."""
    labels, kept = [], []
    for row in rows:
        runs = row.runs[:MAX_SEEDS]
        for run in runs:
            stages = files.stages(run, 1)
            # A policy that keeps everything at the end (InfoBatch) has no set of its own.
            if stages and not stages[-1].kept.all():
                labels.append(f'{row.label}, seed {run["seed"]}')
                kept.append(stages[-1].kept)
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
    data = [{'run': one, 'other': other, 'differ': share, 'by_chance': chance} for share, chance, one, other in pairs]
    figure = figures.hamming_distances(sets, labels)
    return Drawing('hamming_distances', 'Do runs keep the same points?', alt, figure, data)


def label_of(run: Summary) -> str:
    """'KC-KD, seed 0'."""
    return f'{names.display_name(run["method"], run["policy"])}, seed {run["seed"]}'


def of_points(run: Summary, files: Files) -> list[Drawing]:
    """What is known of the points of one run: their values, and what the teacher and the student make of them."""
    drawn = [*values(run, files.stages(run, MAX_STAGES)), *class_drawings.of_points(run, files)]
    return [one.of_one_run(label_of(run)) for one in drawn]


def of_run(run: Summary, files: Files) -> list[Drawing]:
    """All figures of one run."""
    rows = rows_of([run]) or [Row('teacher', 'Teacher', [run])]
    drawn = [*learning_curves(rows, files, number(run, 'teacher', 'accuracy')), kr.training_losses(rows, files)]
    return [one for one in (*drawn, condensation_history(run), *of_points(run, files)) if one]


def shown_run(comparison: Comparison) -> Summary | None:
    """The run whose points are shown: condensed by value if there is one, of the first seed; None in a sweep."""
    condensed = [run for row in comparison.rows for run in row.runs if run.get('condensations')]
    by_value = [run for run in condensed if run['policy'] != 'random'] or condensed
    shown = min(by_value, key=lambda run: (run['policy'] != 'kcd', run['seed']), default=None)
    return None if comparison.sweep else shown


def of_comparison(comparison: Comparison, files: Files) -> list[Drawing]:
    """All figures of a comparison."""
    rows = comparison.rows
    if comparison.sweep:
        drawn = [costs(comparison), class_drawings.ratios(rows), class_drawings.reuse(rows)]
        return [one for one in drawn if one]
    teacher = comparison.teacher.sample('accuracy').mean if comparison.teacher else None
    drawn = [*learning_curves(rows, files, teacher), kr.training_losses(rows, files), costs(comparison)]
    shown = shown_run(comparison)
    if shown is not None:
        history = condensation_history(shown)
        drawn += [history and history.of_one_run(label_of(shown)), *of_points(shown, files)]
    drawn += [hamming_distances(rows, files), *class_drawings.of_rows(rows, files)]
    return [one for one in drawn if one]


def ranked_points(stage: Stage, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(most, least): up to `count` visited points each by value, the most and the least valuable first."""
    visited = np.nonzero(stage.count > 0)[0]
    order = visited[np.argsort(-stage.value[visited], kind='stable')]
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]


def gallery(run: Summary, images: Any, name_of: Callable[[int], str], files: Files, count: int = 16) -> Drawing | None:
    """The most and the least valued images of a run's last condensation; None if it has none.

    Args:
      run: a collected summary.
      images: u8[num_points, H, W, 3], by point.
      name_of: names a point.
      files: to read from.
      count: images in each half.

    Raises:
      ValueError: the images are not those of the run's points.
    """
    stages = files.stages(run, 1)
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
    data = [
        {'half': half, 'point': int(point), 'name': name_of(point), 'value': float(value[point])}
        for half, points in zip(('most', 'least'), halves, strict=True)
        for point in points
    ]
    return Drawing('gallery', 'Most and least valued images', alt, figure, data)


def of_summaries(summaries: Sequence[Summary], reference: str = 'kd') -> list[Drawing]:
    """All figures of all comparisons among collected summaries, for a notebook.

    Args:
      summaries: as returned by `records.collect`.
      reference: name of the row that the others are compared with.
    """
    files = Files()
    return [drawing for comparison in split(summaries, reference) for drawing in of_comparison(comparison, files)]
