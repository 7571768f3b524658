"""From the files of runs to the figures of a run or of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kcd_jax.report import figures, names, point_figures, style
from kcd_jax.report.comparisons import Comparison, Row, judged_by, rows_of, split
from kcd_jax.report.records import Files, Stage, number, series
from kcd_jax.report.style import Drawing

Summary = Mapping[str, Any]
# A Hamming figure of more sets than these is unreadable.
MAX_SEEDS, MAX_SETS = 3, 9
# Number of stages drawn: a policy that selects in every epoch has one per epoch.
MAX_STAGES = 8
MAX_TICKS = 40
# A figure by class of more runs than this is unreadable.
MAX_RUNS = 4
# Images in each half of the gallery.
MAX_IMAGES = 16
# (label of the axis, kind of record, name in the record) of each panel of the training curves. `prior` is KR's second
# loss (KR Fig. 5).
PANELS = (
    ('training loss', 'train', 'loss'),
    ('prior loss', 'train', 'prior'),
    ('evaluation loss', 'eval', 'loss'),
    ('learning rate', 'train', 'lr'),
)


class Pictures(NamedTuple):
    """The training images u8[num_points, H, W, 3] of runs by point, for a gallery, with their classes if known."""

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: Sequence[str] | None = None

    def name(self, point: int) -> str:
        """The point's class, or its number if classes are unknown."""
        if self.labels is None:
            return f'point {point}'
        label = int(self.labels[point])
        return f'class {label}' if self.class_names is None else str(self.class_names[label]).replace('_', ' ')


def _curves(rows: Sequence[Row], files: Files, kind: str, name: str) -> dict[str, figures.Curve]:
    """{label: curve} of a number in the metrics of the rows that have it."""
    curves = {}
    for row in rows:
        found = [dict(zip(*series(files.metrics(run), kind, name), strict=True)) for run in row.runs]
        epochs = sorted({epoch for one in found for epoch in one})
        values = [[one.get(epoch, np.nan) for epoch in epochs] for one in found if one]
        if epochs:
            curves[row.label] = (np.array(epochs), np.array(values))
    return curves


def learning_curves(rows: Sequence[Row], files: Files, teacher: float | None = None) -> list[Drawing]:
    """Accuracy, losses and learning rate by epoch, of rows that have metrics; `teacher` is the teacher's accuracy.

    Without labels, agreement with the teacher or the cosine to its embeddings stand for the accuracy.
    """
    measure = judged_by(run for row in rows for run in row.runs)
    curves = _curves(rows, files, 'eval', measure)
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
        on = next((run['evaluated_on'] for run in runs if run.get('evaluated_on')), 'test')
        ticks, level = ticks if len(ticks) <= MAX_TICKS else [], teacher if measure == 'accuracy' else None
        drawn.append(figures.learning_curves(curves, level, ticks, on, measure))
        if found > len(curves):
            drawn[0].alt += f' Of {found} rows: the first two and the most accurate others.'
    shown = [row for row in rows if row.label in curves] or list(rows[: style.MAX_LINES])
    panels = {title: _curves(shown, files, kind, name) for title, kind, name in PANELS}
    panels = {title: one for title, one in panels.items() if one}
    return [*drawn, figures.training_curves(panels)] if panels else drawn


def condensation_history(run: Summary) -> list[Drawing]:
    """Points kept in each epoch; [] for a run without condensations."""
    needed = ('epoch', 'kept', 'augmented')
    records = [r for r in run.get('condensations') or [] if all(number(r, key) is not None for key in needed)]
    num_points, epochs = number(run, 'num_points'), number(run, 'epochs')
    if not records or num_points is None or epochs is None:
        return []
    lists = ([int(record[key]) for record in records] for key in needed)
    return [figures.condensation_history(int(num_points), int(epochs), *lists)]


def values(run: Summary, stages: Sequence[Stage]) -> list[Drawing]:
    """Values of points over the stages, as a heat map and as histograms; [] without stages."""
    if not stages:
        return []
    epoch_of = {record.get('number'): record.get('epoch') for record in run.get('condensations') or []}
    epochs = [epoch_of.get(stage.number, stage.number) for stage in stages]
    drawn = []
    if len(stages) > 1:
        by_stage = np.stack([np.where(stage.count > 0, stage.value, np.nan) for stage in stages])
        kept = np.stack([stage.kept for stage in stages])
        drawn.append(point_figures.value_heat_map(by_stage, kept, epochs, unit=unit_of(run)))
    seen = [stage.value[stage.count > 0] for stage in stages]
    labels = [f'after epoch {epoch}' for epoch in epochs]
    return [*drawn, point_figures.value_histogram(seen, labels, unit=unit_of(run))]


def unit_of(run: Summary) -> str:
    """The unit of the points' values: a student that predicts nothing has losses in place of entropies."""
    return 'loss' if run.get('value') == 'loss' else 'nats'


def teacher_entropy(run: Summary, files: Files) -> list[Drawing]:
    """The teacher's entropy on kept and dropped points; [] if it was not recorded."""
    entropy, stages = files.points(run).get('teacher_entropy'), files.stages(run, 1)
    if entropy is None or not stages or len(entropy) != len(stages[-1].kept):
        return []
    return [point_figures.teacher_entropy_by_label(entropy, stages[-1].kept)]


def ranked_points(stage: Stage, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(most, least): up to `count` visited points each by value, the most and the least valuable first."""
    visited = np.nonzero(stage.count > 0)[0]
    order = visited[np.argsort(-stage.value[visited], kind='stable')]
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]


def gallery(run: Summary, pictures: Pictures | None, files: Files) -> list[Drawing]:
    """The most and the least valued images of a run's last condensation; [] without images or stages.

    Raises:
      ValueError: the images are not those of the run's points.
    """
    stages = files.stages(run, 1) if pictures else []
    if not stages:
        return []
    value = stages[-1].value
    for what, array in zip(('images', 'labels'), pictures, strict=False):
        if array is not None and len(array) != len(value):
            raise ValueError(
                f'{len(array)} {what} do not belong to a run of {len(value)} points; give its training set'
            )
    halves = ranked_points(stages[-1], MAX_IMAGES)
    # A longer name would run into the next image.
    titles = [
        [f'{pictures.name(point):.13}\n{value[point]:.3f} {unit_of(run)}' for point in points] for points in halves
    ]
    drawn = point_figures.gallery([[pictures.images[point] for point in points] for points in halves], titles)
    means = ' and '.join(f'{value[points].mean():.3f}' for points in halves if len(points))
    quantity = {'nats': 'entropy of the predictions', 'loss': 'loss'}[unit_of(run)]
    drawn.alt += f' Value: mean {quantity} over all visits; means of the halves in {unit_of(run)}: {means}.'
    drawn.data = [
        {'half': half, 'point': int(point), 'name': pictures.name(point), 'value': float(value[point])}
        for half, points in zip(('most', 'least'), halves, strict=True)
        for point in points
    ]
    return [drawn]


def label_of(run: Summary) -> str:
    """'KC-KD, seed 0'."""
    return f'{names.display_name(run["method"], run["policy"])}, seed {run["seed"]}'


def of_points(run: Summary, files: Files, pictures: Pictures | None = None) -> list[Drawing]:
    """The points of one run: which were trained on, their values, and the teacher's entropy."""
    drawn = [*condensation_history(run), *values(run, files.stages(run, MAX_STAGES)), *teacher_entropy(run, files)]
    return [one.of_one_run(label_of(run)) for one in (*drawn, *gallery(run, pictures, files))]


def of_run(run: Summary, files: Files, pictures: Pictures | None = None) -> list[Drawing]:
    """All figures of one run."""
    rows = rows_of([run]) or [Row('teacher', 'Teacher', [run])]
    return [*learning_curves(rows, files, number(run, 'teacher', 'accuracy')), *of_points(run, files, pictures)]


def costs(comparison: Comparison) -> list[Drawing]:
    """Accuracy against cost: in multiply-accumulates if they were counted for every row and samples are not all.

    In a sweep, the student trained alone is left out: its cost is of another kind.
    """
    rows = [row for row in comparison.rows if not comparison.sweep or row.method != 'none']
    base = next((base for row in rows if (base := comparison.base(row))), None)
    cost = [comparison.cost(row) for row in rows]
    counts_macs = comparison.full_macs() is not None
    if not comparison.sweep and (comparison.samples_are_not_all() or comparison.whole() is not None):
        relative = [comparison.relative_macs(row) for row in rows]
        counts_macs = None not in relative
        cost = relative if counts_macs else cost
    marks = [(row.label, x, row.sample('accuracy')) for row, x in zip(rows, cost, strict=True)]
    marks = [mark for mark in marks if mark[1] is not None and mark[2].mean is not None]
    counted = 'multiply-accumulates' if counts_macs else 'samples processed'
    drawn = figures.accuracy_against_cost(marks, counted, base.label if base else '')
    return [drawn] if drawn else []


def ratios(rows: Sequence[Row]) -> list[Drawing]:
    """Accuracy against the fraction kept; [] unless a policy ran with several fractions."""
    found: dict[str, list[figures.Mark]] = {}
    measured = [row for row in rows if row.sample('accuracy').mean is not None]
    whole = [row.sample('accuracy').mean for row in measured if (row.method, row.policy) == ('kd', 'none')]
    for row in measured:
        ratio = number(row.runs[0], 'run', 'policy', 'ratio')
        if ratio is not None and row.policy != 'none':
            label = names.display_name(row.method, row.policy)
            found.setdefault(label, []).append((label, ratio, row.sample('accuracy')))
    marks = [mark for own in found.values() if len({ratio for _, ratio, _ in own}) > 1 for mark in own]
    return [figures.accuracy_against_ratio(marks, next(iter(whole), None))] if marks else []


def hamming_distances(rows: Sequence[Row], files: Files) -> list[Drawing]:
    """Final value labels of up to three seeds per row against each other; [] for fewer than two sets."""
    found = []
    for row in rows:
        for run in row.runs[:MAX_SEEDS]:
            stages = files.stages(run, 1)
            # A policy that keeps everything at the end (InfoBatch) has no set of its own.
            if stages and not stages[-1].kept.all():
                found.append((f'{row.label}, seed {run["seed"]}', stages[-1].kept))
    labels, kept = [label for label, _ in found[:MAX_SETS]], [mask for _, mask in found[:MAX_SETS]]
    if len(kept) < 2 or len({len(mask) for mask in kept}) > 1:
        return []
    return [point_figures.hamming_distances(np.stack(kept), labels)]


def visits(run: Summary, files: Files) -> np.ndarray | None:
    """i64[K]: visits to the points of each class; None if the run did not record them."""
    totals = [entry.get('by_class') for entry in files.metrics(run) if entry.get('kind') == 'visits']
    known = totals and isinstance(totals[-1], list) and all(isinstance(count, int) for count in totals[-1])
    return np.asarray(totals[-1], np.int64) if known else None


def by_class(rows: Sequence[Row], files: Files) -> list[Drawing]:
    """Visits and accuracy by class of rows that select points and of the first that does not, means over the seeds.

    [] if no row selects points, or none recorded both.
    """
    finished = [row for row in rows if row.runs]
    selecting = [row for row in finished if row.policy != 'none']
    whole = [row for row in finished if row.policy == 'none' and row.method != 'none'][:1]
    counts, accuracy = {}, {}
    for row in [*whole, *selecting][:MAX_RUNS] if selecting else ():
        known = []
        for run in row.runs:
            count, values = visits(run, files), run.get('class_accuracy')
            # A class without test images has no accuracy.
            if count is not None and values and None not in values and len(values) == len(count):
                known.append((count, np.array(values, float)))
        if known:
            label = f'{row.label}, n = {len(known)}'
            counts[label], accuracy[label] = (np.mean(part, axis=0) for part in zip(*known, strict=True))
    return [point_figures.class_accuracy(accuracy, counts)] if counts else []


def shown_run(comparison: Comparison) -> Summary | None:
    """The run whose points are shown: condensed by value if there is one, of the first seed; None in a sweep."""
    condensed = [run for row in comparison.rows for run in row.runs if run.get('condensations')]
    by_value = [run for run in condensed if run['policy'] != 'random'] or condensed
    shown = min(by_value, key=lambda run: (run['policy'] != 'kcd', run['seed']), default=None)
    return None if comparison.sweep else shown


def of_comparison(comparison: Comparison, files: Files, pictures: Pictures | None = None) -> list[Drawing]:
    """All figures of a comparison."""
    rows = comparison.rows
    if comparison.sweep:
        return [*costs(comparison), *ratios(rows)]
    teacher = comparison.teacher.sample('accuracy').mean if comparison.teacher else None
    shown = shown_run(comparison)
    return [
        *learning_curves(rows, files, teacher),
        *costs(comparison),
        *ratios(rows),
        *(of_points(shown, files, pictures) if shown else ()),
        *hamming_distances(rows, files),
        *by_class(rows, files),
    ]


def of_summaries(summaries: Sequence[Summary], reference: str = 'kd') -> list[Drawing]:
    """All figures of all comparisons among collected summaries, for a notebook; `reference` as for `split`."""
    files = Files()
    return [drawing for comparison in split(summaries, reference) for drawing in of_comparison(comparison, files)]
