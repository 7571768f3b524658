"""From the files of runs to figures by class and by point: what was selected, and what was learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kcd_jax.report import class_figures, figures, names
from kcd_jax.report.comparisons import Row
from kcd_jax.report.records import Files, number, series
from kcd_jax.report.statistics import Sample
from kcd_jax.report.style import Drawing

Summary = Mapping[str, Any]
# A figure by class of more runs than these is unreadable.
MAX_RUNS, MAX_PANELS = 4, 3


def selecting_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that select points, after the first one that trains on all of them; [] if no row selects."""
    finished = [row for row in rows if row.runs]
    selecting = [row for row in finished if row.policy != 'none']
    whole = [row for row in finished if row.policy == 'none' and row.method != 'none'][:1]
    return [*whole, *selecting][:MAX_RUNS] if selecting else []


def visits(run: Summary, files: Files) -> np.ndarray | None:
    """i64[E, K]: points of each class trained on in each epoch; None if the run did not record them."""
    totals = [entry.get('by_class') for entry in files.metrics(run) if entry.get('kind') == 'visits']
    whole = all(isinstance(total, list) and all(isinstance(n, int) for n in total) for total in totals)
    if not totals or not whole or len({len(total) for total in totals}) > 1:
        return None
    return np.diff(np.asarray(totals, np.int64), axis=0, prepend=np.zeros((1, len(totals[0])), np.int64))


def class_accuracy(run: Summary) -> np.ndarray | None:
    """f64[K], NaN for a class without test images; None if it was not measured."""
    values = run.get('class_accuracy')
    return None if not values else np.array([np.nan if value is None else value for value in values], float)


def _distances(runs: Mapping[str, Summary], files: Files) -> Drawing | None:
    read = {label: files.points(run) for label, run in runs.items()}
    points = {
        label: (arrays['distance'], arrays['count'])
        for label, arrays in read.items()
        if {'distance', 'count'} <= set(arrays) and arrays['count'].any()
    }
    if not points:
        return None
    means = ', '.join(f'{label} {np.average(d, weights=n) / np.mean(d):.2f}' for label, (d, n) in points.items())
    alt = f'Densities of the distance from the class mean, weighted by visits; all points: 1. Means: {means}.'
    figure = class_figures.distance_to_centre(points)
    return Drawing('distance_to_centre', 'Where the points trained on lie', alt, figure)


def _teacher_entropies(runs: Mapping[str, Summary], files: Files) -> Drawing | None:
    read = {label: series(files.metrics(run), 'train', 'teacher_entropy') for label, run in runs.items()}
    curves = {label: (np.array(epochs), np.array([values])) for label, (epochs, values) in read.items() if epochs}
    if not curves:
        return None
    ends = ', '.join(f'{label} {values[0, -1]:.3f}' for label, (_, values) in curves.items())
    alt = f"Line chart of the teacher's entropy on the points trained on, by epoch. Last, in nats: {ends}."
    data = [
        {'run': label, 'epoch': int(epoch), 'teacher_entropy': value}
        for label, pair in read.items()
        for epoch, value in zip(*pair, strict=True)
    ]
    figure = figures.training_curves({"teacher's entropy (nats)": curves})
    return Drawing('teacher_entropy', 'How hard the points are for the teacher', alt, figure, data)


def by_class(rows: Sequence[Row], files: Files) -> list[Drawing]:
    """Visits and accuracy by class, means over the seeds; [] if no row recorded both.

    Args:
      rows: the first is the reference.
      files: to read from.
    """
    counts, accuracy, heat, labels = {}, {}, {}, []
    for row in rows:
        known = [(visits(run, files), class_accuracy(run), run) for run in row.runs]
        known = [one for one in known if one[0] is not None and one[1] is not None and np.isfinite(one[1]).all()]
        if not known:
            continue
        label = f'{row.label}, n = {len(known)}'
        labels.append(label)
        counts[label] = np.mean([count.sum(axis=0) for count, _, _ in known], axis=0)
        accuracy[label] = np.mean([values for _, values, _ in known], axis=0)
        if row.policy != 'none' and len(heat) < MAX_PANELS:
            count, values, run = known[0]
            heat[f'{row.label}, seed {run["seed"]}'] = (count, values)
    if not labels:
        return []
    spread = ', '.join(f'{label} from {counts[label].min():,.0f} to {counts[label].max():,.0f}' for label in labels)
    worst = ', '.join(f'{label} {100 * accuracy[label].min():.1f} %' for label in labels)
    data = [{'run': label, 'class': place, 'visits': count, 'accuracy': value}
            for label in labels
            for place, (count, value) in enumerate(zip(counts[label], accuracy[label], strict=True))]  # fmt: skip
    single = ' A single seed each.' if all(label.endswith('n = 1') for label in labels) else ''
    drawn = [
        Drawing(
            'sampling_and_accuracy',
            'Are hard classes trained on more often?',
            f'Scatter plot of the visits and the test accuracy of each class. Visits: {spread}.{single}',
            class_figures.sampling_and_accuracy({label: (counts[label], accuracy[label]) for label in labels}),
            data,
        ),
        Drawing(
            'class_accuracy',
            'Which classes gain',
            f'Dot plot of the test accuracy of each class. Worst class: {worst}.{single}',
            class_figures.class_accuracy(accuracy),
            data,
        ),
    ]
    if heat:
        alt = f'Heat map of the points of each class in each epoch, for {"; ".join(heat)}.'
        panels = ({label: one[place] for label, one in heat.items()} for place in (0, 1))
        figure = class_figures.class_heat_map(*panels)
        drawn.append(Drawing('class_heat_map', 'Classes trained on in each epoch', alt, figure))
    return drawn


def ratios(rows: Sequence[Row]) -> Drawing | None:
    """Accuracy against the fraction kept; None unless a policy ran with several fractions."""
    found: dict[str, list[tuple[float, Sample]]] = {}
    level = None
    for row in rows:
        sample = row.sample('accuracy')
        if sample.mean is None:
            continue
        ratio = number(row.runs[0], 'run', 'policy', 'ratio')
        if (row.method, row.policy) == ('kd', 'none') and level is None:
            level = sample.mean
        elif ratio is not None and row.policy != 'none':
            found.setdefault(names.display_name(row.method, row.policy), []).append((ratio, sample))
    marks = [(name, *mark) for name, own in found.items() if len({mark[0] for mark in own}) > 1 for mark in own]
    if not marks:
        return None
    labels, ratio, samples = (list(part) for part in zip(*marks, strict=True))
    said = '; '.join(f'{name} {100 * sample.mean:.2f} % at ratio {x:g}' for name, x, sample in marks)
    data = [
        {'run': name, 'ratio': x, 'accuracy_mean': sample.mean, 'accuracy_sd': sample.sd, 'n': sample.n}
        for name, x, sample in marks
    ]
    means, deviations = [sample.mean for sample in samples], [sample.sd for sample in samples]
    quantity = 'points kept in the last stage (%)'
    figure = figures.accuracy_against_cost(labels, ratio, means, deviations, quantity, apart=0.8, level=level)
    title = 'Accuracy against the fraction kept'
    return Drawing('accuracy_against_ratio', title, f'Line chart. {said}.', figure, data)


def reuse(rows: Sequence[Row]) -> Drawing | None:
    """Runs that train on another run's condensed set, next to the others; None if there are none."""
    if not any(row.policy == 'reuse' for row in rows):
        return None
    marks = [(row.label, row.sample('accuracy')) for row in rows]
    marks = [(label, sample) for label, sample in marks if sample.mean is not None]
    said = '; '.join(f'{label} {100 * sample.mean:.2f} %' for label, sample in marks)
    level = next((row.label for row in rows if (row.method, row.policy) == ('kd', 'none')), '')
    samples = [sample for _, sample in marks]
    means, deviations = [sample.mean for sample in samples], [sample.sd for sample in samples]
    figure = figures.accuracies([label for label, _ in marks], means, deviations, level)
    data = [{'run': label, 'accuracy_mean': sample.mean, 'accuracy_sd': sample.sd, 'n': sample.n}
            for label, sample in marks]  # fmt: skip
    return Drawing('reuse', 'Reuse of condensed sets', f'Dot plot of the accuracy. {said}.', figure, data)


def of_points(run: Summary, files: Files) -> list[Drawing]:
    """The teacher's entropy on kept and dropped points, and how the student's logits correlate."""
    arrays, stages = files.points(run), files.stages(run, 1)
    drawn = []
    if stages and 'teacher_entropy' in arrays and len(arrays['teacher_entropy']) == len(stages[-1].kept):
        entropy, kept = arrays['teacher_entropy'], stages[-1].kept
        means = [f'{np.mean(entropy[mask]):.3f}' if mask.any() else 'none' for mask in (kept, ~kept)]
        alt = f"Histograms of the teacher's entropy. Means in nats: kept {means[0]}, dropped {means[1]}."
        figure = figures.teacher_entropy_by_label(entropy, kept)
        drawn.append(Drawing('teacher_entropy_by_label', 'Does the teacher agree?', alt, figure))
    if 'correlation_difference' in arrays:
        difference = arrays['correlation_difference']
        alt = f'Heat map by class. Mean absolute difference of the correlations {np.mean(np.abs(difference)):.3f}.'
        label = names.display_name(run['method'], run['policy'])
        figure = class_figures.correlation_difference(difference, label)
        title = 'Correlations of the logits: teacher and student'
        drawn.append(Drawing('correlation_difference', title, alt, figure))
    return drawn


def of_rows(rows: Sequence[Row], files: Files) -> list[Drawing]:
    """All figures of the classes and points of rows that can be compared."""
    shown = selecting_rows(rows)
    first = {f'{row.label}, seed {row.runs[0]["seed"]}': row.runs[0] for row in shown}
    drawn = [ratios(rows), reuse(rows), _distances(first, files), _teacher_entropies(first, files)]
    return [one for one in (*drawn, *by_class(shown, files)) if one]
