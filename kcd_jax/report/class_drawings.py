"""From the files of runs to the figures of classes and points: what was chosen, and what was learnt of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kcd_jax.report import class_figures, figures, names
from kcd_jax.report.drawing import Drawing
from kcd_jax.report.groups import Group
from kcd_jax.report.records import number, read_metrics, read_points, read_stages, run_folder, series

Summary = Mapping[str, Any]
# More runs than these make a figure of classes that nobody can read.
MAX_RUNS, MAX_PANELS = 4, 3


def chosen_runs(groups: Sequence[Group]) -> dict[str, Summary]:
    """{label: a run} of the rows that choose among the points and, to compare, of the one that takes all of them."""
    shown = [group for group in groups if group.policy != 'none']
    whole = [group for group in groups if group.policy == 'none' and group.method != 'none'][:1]
    return {group.label: group.runs[0] for group in (*whole, *shown)[:MAX_RUNS]} if shown else {}


def visits(run: Summary) -> np.ndarray | None:
    """i64[E, K]: points of each class that each epoch trained on; None where the run has no record of it."""
    folder = run_folder(run)
    totals = [entry['by_class'] for entry in (read_metrics(folder) if folder else []) if entry.get('kind') == 'visits']
    if not totals or len({len(total) for total in totals}) > 1:
        return None
    return np.diff(np.asarray(totals, np.int64), axis=0, prepend=np.zeros((1, len(totals[0])), np.int64))


def class_accuracy(run: Summary) -> np.ndarray | None:
    """f64[K] of a run, NaN for a class without test images; None where it was not measured."""
    values = run.get('class_accuracy')
    return None if not values else np.array([np.nan if value is None else value for value in values], float)


def distances(runs: Mapping[str, Summary]) -> Drawing | None:
    """How far from their class's centre the points trained on lie."""
    read = {label: read_points(run_folder(run)) for label, run in runs.items()}
    points = {
        label: (arrays['distance'], arrays['count'])
        for label, arrays in read.items()
        if 'distance' in arrays and arrays['count'].any()
    }
    if not points:
        return None
    means = ', '.join(f'{label} {np.average(d, weights=n) / np.mean(d):.2f}' for label, (d, n) in points.items())
    alt = f"Densities of the distance to the class's centre, every visit counted; all points: 1. Means: {means}."
    return Drawing(
        'distance_to_centre', 'Where the points trained on lie', alt, class_figures.distance_to_centre(points)
    )


def teacher_entropies(runs: Mapping[str, Summary]) -> Drawing | None:
    """How hard the teacher finds what each epoch trains on."""
    curves = {}
    for label, run in runs.items():
        folder = run_folder(run)
        epochs, entropy = series(read_metrics(folder), 'train', 'teacher_entropy') if folder else ([], [])
        if epochs:
            curves[label] = (np.array(epochs), np.array(entropy))
    if not curves:
        return None
    ends = ', '.join(f'{label} {entropy[-1]:.3f}' for label, (_, entropy) in curves.items())
    alt = f'Line chart of the entropy of the teacher on what was trained on, by epoch. Last, in nats: {ends}.'
    figure = class_figures.teacher_entropy_over_training(curves)
    return Drawing('teacher_entropy', 'How hard the teacher finds it', alt, figure)


def classes(runs: Mapping[str, Summary]) -> list[Drawing]:
    """Sampling and accuracy by class; [] where no run recorded both."""
    counts = {label: visits(run) for label, run in runs.items()}
    accuracy = {label: class_accuracy(run) for label, run in runs.items()}
    known = [label for label in runs if counts[label] is not None and accuracy[label] is not None]
    known = [label for label in known if np.isfinite(accuracy[label]).all()]
    if not known:
        return []
    totals = {label: (counts[label].sum(axis=0), accuracy[label]) for label in known}
    spread = ', '.join(f'{label} from {visited.min():,} to {visited.max():,}' for label, (visited, _) in totals.items())
    drawn = [
        Drawing(
            'sampling_and_accuracy',
            'Are hard classes trained on more often?',
            f'Scatter plot of the visits and the test accuracy of each class. Visits: {spread}.',
            class_figures.sampling_and_accuracy(totals),
        ),
        Drawing(
            'sorted_class_accuracy',
            'Which classes gain',
            'Line chart of the test accuracy by class. Worst class: '
            + ', '.join(f'{label} {100 * accuracy[label].min():.1f} %' for label in known)
            + '.',
            class_figures.sorted_class_accuracy({label: accuracy[label] for label in known}),
        ),
    ]
    choosing = [label for label in known if runs[label]['policy'] != 'none'][:MAX_PANELS]
    if choosing:
        drawn.append(
            Drawing(
                'class_heat_map',
                'What each epoch trained on',
                f'Heat map of the points of each class in each epoch, for {", ".join(choosing)}.',
                class_figures.class_heat_map(
                    {label: counts[label] for label in choosing}, {label: accuracy[label] for label in choosing}
                ),
            )
        )
    return drawn


def ratios(groups: Sequence[Group]) -> Drawing | None:
    """Accuracy against the share that is kept; None unless a policy ran with several."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    level = None
    for group in groups:
        sample, ratio = group.sample('accuracy'), number(group.runs[0], 'config', 'policy', 'ratio')
        if sample.mean is None:
            continue
        if (group.method, group.policy) == ('kd', 'none') and level is None:
            level = sample.mean
        elif ratio is not None and group.policy != 'none':
            name = names.display_name(group.method, group.policy)
            found.setdefault(name, []).append((ratio, sample.mean, np.nan if sample.sd is None else sample.sd))
    runs = {name: np.array(sorted(rows)).T for name, rows in found.items() if len({row[0] for row in rows}) > 1}
    if not runs:
        return None
    said = '; '.join(
        f'{name}: ' + ', '.join(f'{100 * y:.2f} % at ratio {x:g}' for x, y in zip(rows[0], rows[1], strict=True))
        for name, rows in runs.items()
    )
    figure = class_figures.accuracy_against_ratio({name: tuple(rows) for name, rows in runs.items()}, level)
    return Drawing('accuracy_against_ratio', 'Accuracy against the share kept', f'Line chart. {said}.', figure)


def reuse(groups: Sequence[Group]) -> Drawing | None:
    """Runs that start from another run's set, beside the others; None where there are none."""
    if not any(group.policy == 'reuse' for group in groups):
        return None
    rows = [(group.label, group.sample('accuracy')) for group in groups]
    rows = [(label, sample) for label, sample in rows if sample.mean is not None]
    labels = [label for label, _ in rows]
    said = '; '.join(f'{label} {100 * sample.mean:.2f} %' for label, sample in rows)
    level = next((group.label for group in groups if (group.method, group.policy) == ('kd', 'none')), '')
    figure = figures.accuracies(labels, [sample.mean for _, sample in rows], [sample.sd for _, sample in rows], level)
    return Drawing('reuse', 'Reuse of condensed sets', f'Dot plot of the accuracy. {said}.', figure)


def of_points(run: Summary, label: str) -> list[Drawing]:
    """What the teacher makes of the kept and of the dropped points, and what the student took over from it."""
    folder = run_folder(run)
    arrays, stages = read_points(folder), read_stages(folder, 1) if folder else []
    drawn = []
    if stages and 'teacher_entropy' in arrays and len(arrays['teacher_entropy']) == len(stages[-1].kept):
        entropy, kept = arrays['teacher_entropy'], stages[-1].kept
        means = [f'{np.mean(entropy[mask]):.3f}' if mask.any() else 'none' for mask in (kept, ~kept)]
        alt = f"Histograms of the teacher's entropy. Means in nats: kept {means[0]}, dropped {means[1]}."
        figure = figures.teacher_entropy_by_label(entropy, kept)
        drawn.append(Drawing('teacher_entropy_by_label', 'Does the teacher agree?', alt, figure))
    if 'correlation_difference' in arrays:
        difference = arrays['correlation_difference']
        alt = f'Heat map by class. Mean difference of the correlations {np.mean(np.abs(difference)):.3f}.'
        figure = class_figures.correlation_difference(difference, label)
        drawn.append(Drawing('correlation_difference', 'What the student took over', alt, figure))
    return drawn


def of_experiment(groups: Sequence[Group]) -> list[Drawing]:
    """All that can be drawn of the classes and points of runs that can be compared."""
    runs = chosen_runs(groups)
    drawn = [ratios(groups), reuse(groups), distances(runs), teacher_entropies(runs), *classes(runs)]
    return [drawing for drawing in drawn if drawing]
