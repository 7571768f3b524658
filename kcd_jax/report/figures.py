"""Figures of training and of accuracy: functions of plain numbers that return a `Drawing`.

Accuracies are passed as fractions and drawn in percent. Bands and error bars are one sample standard deviation over
seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from kcd_jax.report import style
from kcd_jax.report.statistics import Sample
from kcd_jax.report.style import INK, PALETTE, SIZE, Drawing, band, look, looks, new_figure, styled, whole_numbers

# Relative costs closer than this hide each other's marks.
NEAR = 0.015
# At most this many rows with one cost are drawn above each other.
MAX_CROWD = 3
# From this many epochs, learning curves get a second panel with their last quarter.
CLOSER_FROM = 40
# The numbers of at most this many condensations, or rows, are listed in a description.
MAX_LISTED = 12
# (epochs [E], values [seeds, E]); NaN if a seed has no value.
Curve = tuple[np.ndarray, np.ndarray]
# (label, cost or ratio relative to training on every point, accuracy).
Mark = tuple[str, float, Sample]


def _as_data(quantity: str, curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    return [
        {'quantity': quantity, 'run': label, 'curve': place, 'epoch': int(epoch), 'value': value}
        for label, (epochs, values) in curves.items()
        for place, of_seed in enumerate(values)
        for epoch, value in zip(epochs, of_seed, strict=True)
        if np.isfinite(value)
    ]


@styled
def learning_curves(
    curves: Mapping[str, Curve],
    teacher: float | None = None,
    condensations: Sequence[int] = (),
    on: str = 'test',
    measure: str = 'accuracy',
) -> Drawing:
    """Accuracy by epoch, or another measure.

    Args:
      curves: {run: the measure in [0, 1]}.
      teacher: the teacher's accuracy, drawn as a level line.
      condensations: epochs after which the set was condensed, drawn as ticks along the bottom.
      on: the set that was evaluated.
      measure: what the curves show.
    """
    looks_of = looks(list(curves))
    last = max(float(np.max(epochs)) for epochs, _ in curves.values())
    # Curves often lie close together; the end of training is what matters.
    starts = [0, 0.75 * last] if last >= CLOSER_FROM else [0]
    figure, parts = new_figure(SIZE[1] if len(starts) == 1 else 4.6, len(starts), squeeze=False)
    for axes, start in zip(parts[:, 0], starts, strict=True):
        for label, (epochs, accuracy) in curves.items():
            shown = np.asarray(epochs) >= start
            band(axes, np.asarray(epochs)[shown], 100 * np.asarray(accuracy)[:, shown], label, looks_of[label])
        if teacher is not None:
            axes.axhline(100 * teacher, **look('Teacher', 0) | {'marker': ''}, linewidth=1.2, label='Teacher')
        for epoch in condensations:
            if epoch >= start:
                axes.plot([epoch, epoch], [0, 0.04], transform=axes.get_xaxis_transform(), color=INK, linewidth=1.2)
        axes.set_ylabel(f'{on} {measure} (%)')
        whole_numbers(axes.xaxis)
    axes.set_xlabel('epoch' + (' (ticks: condensations)' if len(condensations) else ''))
    parts[0, 0].legend(loc='lower left', bbox_to_anchor=(0, 1.0))  # inside it would lie on the curves
    ends = ', '.join(f'{label} {100 * np.nanmean(one[1][:, -1]):.2f} %' for label, one in curves.items())
    level = f'; teacher {100 * teacher:.2f} %' if teacher is not None else ''
    alt = f'Line chart of {on} {measure} by epoch. Last epoch: {ends}{level}.'
    return Drawing('learning_curves', f'{measure.capitalize()} by epoch', alt, figure, _as_data(measure, curves))


@styled
def training_curves(panels: Mapping[str, Mapping[str, Curve]]) -> Drawing:
    """Losses, the learning rate and other numbers by epoch, one panel each.

    Args:
      panels: {label of the vertical axis: {run: curve}}.
    """
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    height = SIZE[1] if len(panels) == 1 else 0.5 + 1.7 * len(panels) + 0.1 * len(labels)
    figure, parts = new_figure(height, len(panels), sharex=True, squeeze=False)
    looks_of = looks(labels)
    ends = []
    for axes, (title, curves) in zip(parts[:, 0], panels.items(), strict=True):
        for label, (epochs, values) in curves.items():
            band(axes, epochs, np.asarray(values), label, looks_of[label])
        low = min(np.nanmin(values) for _, values in curves.values())
        high = max(np.nanmax(values) for _, values in curves.values())
        if 0 < 10 * low < high:
            axes.set_yscale('log')
            for write in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                write(lambda value, _: f'{value:g}')
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.set_ylabel(title)
        whole_numbers(axes.xaxis)
        last = ', '.join(f'{label} {np.nanmean(values[:, -1]):.4g}' for label, (_, values) in curves.items())
        ends.append(f'{title} between {low:g} and {high:g}' if title == 'learning rate' else f'{title} {last}')
    parts[0, 0].legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2)  # inside it would lie on the curves
    parts[-1, 0].set_xlabel('epoch')
    alt = f'Line charts by epoch. Last epoch: {"; ".join(ends)}.'
    data = [record for title, curves in panels.items() for record in _as_data(title, curves)]
    return Drawing('training_curves', 'Losses and learning rate', alt, figure, data)


@styled
def condensation_history(
    num_points: int, epochs: int, after: Sequence[int], kept: Sequence[int], augmented: Sequence[int]
) -> Drawing:
    """Points trained on in each epoch, and their sum relative to training on every point.

    Args:
      num_points: points of the full set.
      epochs: epochs of the run.
      after: [T], the epoch (counted from 1) after which each condensation took place.
      kept: [T], points kept by each condensation.
      augmented: [T], kept points with a dropped point mixed in.
    """
    figure, (top, bottom) = new_figure(4.4, 2, sharex=True, height_ratios=(3, 2))
    edges = np.array([0, *after, epochs])
    sizes = np.array([num_points, *kept])
    plain = sizes - np.array([0, *augmented])
    label = 'kept as they are' if any(augmented) else 'kept'
    top.stairs(plain, edges, fill=True, color=PALETTE[0], alpha=0.85, label=label)
    if any(augmented):
        mixed = {'color': PALETTE[3], 'alpha': 0.9, 'label': 'kept, a dropped point mixed in'}
        top.stairs(sizes, edges, baseline=plain, fill=True, **mixed)
    top.axhline(num_points, color=INK, linewidth=1, linestyle=':', label='all points')
    top.set_ylabel('points')
    top.set_ylim(0, 1.28 * num_points)
    top.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    top.legend(loc='upper right', ncols=2, columnspacing=1.0, handlelength=1.4)
    total = np.concatenate([[0], np.cumsum(sizes * np.diff(edges))]) / (num_points * epochs)
    bottom.plot([0, epochs], [0, 100], color=INK, linestyle=':', linewidth=1.2, label='all points')
    bottom.plot(edges, 100 * total, color=PALETTE[1], label=f'condensed: {100 * total[-1]:.2f} %')
    bottom.set_xlabel('epoch')
    bottom.set_ylabel('samples (%)')
    whole_numbers(bottom.xaxis)
    bottom.legend(loc='upper left')
    said = [f'{size:,} after epoch {epoch}' for size, epoch in zip(kept, after, strict=True)]
    said = said if len(said) <= MAX_LISTED else [said[0], '...', said[-1]]
    alt = f'Step chart: of {num_points:,} points, {", ".join(said)}.'
    alt += f' {augmented[-1]:,} of the last have a dropped point mixed in.' if augmented[-1] else ''
    data = [
        {'epoch': epoch, 'kept': size, 'augmented': mixed}
        for epoch, size, mixed in zip(after, kept, augmented, strict=True)
    ]
    return Drawing('condensation_history', 'Points trained on', alt, figure, data)


def accuracy_against_cost(marks: Sequence[Mark], counted: str, level: str = '') -> Drawing | None:
    """Accuracy against cost; None for fewer than two rows.

    Rows called 'KC-KD, 60 %' and 'KC-KD, 80 %' are joined. If there are more rows than colours can distinguish, or many
    with one cost, each gets a line of text and a mark of its own.

    Args:
      marks: one per row.
      counted: what the cost counts.
      level: label of the row that the others are compared with.
    """
    if len(marks) < 2:
        return None
    kinds = [label.partition(', ')[0] for label, _, _ in marks]
    labels = [kind if kinds.count(kind) > 1 else mark[0] for kind, mark in zip(kinds, marks, strict=True)]
    cost = [x for _, x, _ in marks]
    single = [x for x, label in zip(cost, labels, strict=True) if labels.count(label) == 1]
    crowd = max((sum(abs(x - other) < NEAR for other in single) for x in single), default=0)
    title = 'Accuracy against cost'
    if len(set(labels) - {'Student alone'}) > style.MAX_LINES or crowd > MAX_CROWD:
        title = 'Accuracy of each run'
        figure = _accuracies(marks, level, '' if max(cost) - min(cost) < NEAR else counted)
    else:
        joined = [(label, *mark[1:]) for label, mark in zip(labels, marks, strict=True)]
        figure = _scatter(joined, f'{counted}, % of training on every point')
    alt = f'Accuracy, and cost in {counted} of training on every point'
    alt += ', with standard deviations over seeds. ' if any(sample.n > 1 for *_, sample in marks) else '. '
    alt += '' if all(sample.n > 1 for *_, sample in marks) else 'Rows with a single seed have no deviation. '
    return _of_marks('accuracy_against_cost', title, alt, figure, marks, 'relative_cost')


def accuracy_against_ratio(marks: Sequence[Mark], level: float | None = None) -> Drawing:
    """Accuracy against the fraction of the points that is kept (KCD Fig. 3a).

    Args:
      marks: rows with the same label are joined by a line.
      level: accuracy of the method on every point, drawn as a level line.
    """
    figure = _scatter(marks, 'points kept in the last stage (%)', level)
    title = 'Accuracy against the fraction kept'
    return _of_marks('accuracy_against_ratio', title, 'Line chart. ', figure, marks, 'ratio')


def _of_marks(name: str, title: str, alt: str, figure: Figure, marks: Sequence[Mark], x_name: str) -> Drawing:
    said = [f'{label} {100 * sample.mean:.2f} % at {100 * x:.1f} %' for label, x, sample in marks]
    if len(marks) > MAX_LISTED:
        low, high = (pick(range(len(marks)), key=lambda row: marks[row][2].mean) for pick in (min, max))
        said = [f'{len(marks)} rows; highest: {said[high]}; lowest: {said[low]}']
    data = [
        {'run': label, x_name: x, 'accuracy_mean': sample.mean, 'accuracy_sd': sample.sd, 'n': sample.n}
        for label, x, sample in marks
    ]
    return Drawing(name, title, f'{alt}{"; ".join(said)}.', figure, data)


@styled
def _scatter(marks: Sequence[Mark], quantity: str, level: float | None = None) -> Figure:
    figure, axes = new_figure()
    looks_of = looks(list(dict.fromkeys(label for label, *_ in marks)))
    rows_of = {
        label: sorted((mark[1:] for mark in marks if mark[0] == label), key=lambda row: row[0]) for label in looks_of
    }
    apart = False
    for label, rows in rows_of.items():
        near = [
            other for other in looks_of if any(abs(one[0] - two[0]) < NEAR for one in rows for two in rows_of[other])
        ]
        apart |= len(near) > 1
        # One percent apart, so that equal costs do not hide each other.
        x = 100 * np.array([row[0] for row in rows]) + near.index(label) - (len(near) - 1) / 2
        y = 100 * np.array([sample.mean for _, sample in rows])
        known = any(sample.sd is not None for _, sample in rows)
        bars = [np.nan if sample.sd is None else 100 * sample.sd for _, sample in rows] if known else None
        keys = looks_of[label] | ({'linestyle': 'none'} if len(rows) == 1 else {})
        axes.errorbar(x, y, bars, capsize=3, markersize=6, linewidth=1.0, label=label, **keys)
    if level is not None:
        axes.axhline(100 * level, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label='all points')
    axes.set_xlabel(quantity + ('\n(equal ones side by side)' if apart else ''))
    axes.set_ylabel('accuracy (%)')
    axes.margins(0.12)
    axes.legend(loc='best')
    return figure


@styled
def _accuracies(marks: Sequence[Mark], level: str, quantity: str) -> Figure:
    """Accuracies from top to bottom; `quantity` is what the labels give in brackets, '' for nothing."""
    figure, axes = new_figure(0.9 + (0.36 if len(marks) <= 8 else 0.27) * len(marks))
    axes.grid(False, axis='y')
    rows = np.arange(len(marks))[::-1]
    for row, (label, _, sample) in zip(rows, marks, strict=True):
        color = look(label, 1 if label == level else 0)['color']
        bars = None if sample.sd is None else [100 * sample.sd]
        mean = 100 * sample.mean
        axes.errorbar([mean], [row], xerr=bars, capsize=3, markersize=6, marker='o', color=color)
        axes.annotate(f'{mean:.2f}', (1.02, row), xycoords=('axes fraction', 'data'), va='center', fontsize=8.5)
        if label == level:
            axes.axvline(mean, color=color, linestyle=':', linewidth=1.2)
    axes.set_yticks(rows, [f'{label} ({100 * x:.0f} %)' if quantity else label for label, x, _ in marks])
    axes.set_ylim(-0.7, len(marks) - 0.3)
    words = 'accuracy (%)' + (f'; dotted: {level}' if level in [label for label, *_ in marks] else '')
    costs = f'\n(in brackets: {quantity}, % of training on every point)' if quantity else ''
    axes.set_xlabel(words + costs, loc='right')
    axes.margins(x=0.08)
    return figure
