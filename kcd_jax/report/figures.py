"""Figures as functions of plain arrays: each returns a matplotlib Figure and reads no file.

Accuracies are passed as fractions and drawn in percent; values of points are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from kcd_jax.report.statistics import hamming
from kcd_jax.report.style import (
    GRID,
    HEAT,
    INK,
    LINES,
    PALETTE,
    SIZE,
    band,
    look,
    looks,
    new_figure,
    styled,
    whole_numbers,
)

# Relative costs closer than this hide each other's marks.
NEAR = 0.015
# From this many epochs, learning curves get a second panel with their last quarter.
CLOSER_FROM = 40


@styled
def learning_curves(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    teacher: float | None = None,
    condensations: Sequence[int] = (),
    quantity: str = 'test accuracy',
) -> Figure:
    """Accuracy by epoch: the mean over seeds with a band of one sample standard deviation.

    Args:
      curves: {run: (epochs [E], accuracy [seeds, E] in [0, 1])}; NaN if a seed has no value.
      teacher: the teacher's accuracy, drawn as a level line.
      condensations: epochs after which the set was condensed, drawn as ticks along the bottom.
      quantity: label of the vertical axis.
    """
    style = looks(list(curves))
    last = max(float(np.max(epochs)) for epochs, _ in curves.values())
    # Curves often lie close together; the end of training is what matters.
    closer = 0.75 * last if last >= CLOSER_FROM else None
    figure, parts = new_figure(*((SIZE[1], 1) if closer is None else (4.6, 2)))
    for axes, start in zip(np.atleast_1d(parts), (0, closer), strict=False):
        for label, (epochs, accuracy) in curves.items():
            shown = np.asarray(epochs) >= start
            band(axes, np.asarray(epochs)[shown], 100 * np.atleast_2d(accuracy)[:, shown], label, style[label])
        if teacher is not None:
            axes.axhline(100 * teacher, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label='Teacher')
        for epoch in condensations:
            if epoch >= start:
                axes.plot([epoch, epoch], [0, 0.04], transform=axes.get_xaxis_transform(), color=INK, linewidth=1.2)
        axes.set_ylabel(f'{quantity} (%)')
        whole_numbers(axes.xaxis)
    axes.set_xlabel('epoch' + (' (ticks: condensations)' if len(condensations) else ''))
    np.atleast_1d(parts)[0].legend(loc='best')
    return figure


@styled
def training_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], over: str = 'epoch') -> Figure:
    """Several numbers over training, one panel each: means over seeds, bands of one sample standard deviation.

    Args:
      panels: {label of the vertical axis: {run: (epochs [E], values [seeds, E])}}.
      over: label of the horizontal axis.
    """
    height = 3.4 if len(panels) == 1 else 0.5 + 1.7 * len(panels)
    figure, parts = new_figure(height, len(panels), sharex=True, squeeze=False)
    style = looks(list(dict.fromkeys(label for curves in panels.values() for label in curves)))
    for axes, (title, curves) in zip(parts[:, 0], panels.items(), strict=True):
        for label, (epochs, values) in curves.items():
            band(axes, epochs, np.atleast_2d(values), label, style[label])
        low = min(np.nanmin(values) for _, values in curves.values())
        if low > 0 and max(np.nanmax(values) for _, values in curves.values()) > 10 * low:
            axes.set_yscale('log')
            for write in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                write(lambda value, _: f'{value:g}')
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.set_ylabel(title)
        whole_numbers(axes.xaxis)
    parts[0, 0].legend(loc='best')
    parts[-1, 0].set_xlabel(over)
    return figure


@styled
def condensation_history(
    num_points: int, epochs: int, after: Sequence[int], kept: Sequence[int], augmented: Sequence[int]
) -> Figure:
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
    mixed = {'color': PALETTE[3], 'alpha': 0.9, 'label': 'kept, a dropped point mixed in'}
    top.stairs(
        plain, edges, fill=True, color=PALETTE[0], alpha=0.85, label='kept as they are' if any(augmented) else 'kept'
    )
    if any(augmented):
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
    return figure


@styled
def value_heat_map(
    values: np.ndarray, kept: np.ndarray, epochs: Sequence[int], max_points: int = 300, seed: int = 0
) -> Figure:
    """The values of sampled points over the stages (KCD Fig. 3b), sorted by their last value.

    Args:
      values: f[T, N] in nats; NaN if a point has not been visited.
      kept: bool[T, N], the value label.
      epochs: [T], the epoch after which each stage was condensed.
      max_points: number of points drawn, sampled without replacement.
      seed: of the sampling.
    """
    stages, num_points = values.shape
    rng = np.random.default_rng(seed)
    chosen = rng.choice(num_points, min(max_points, num_points), replace=False)
    # Points never visited rank as the most valuable, as they do in the condensation.
    last = np.nan_to_num(values[-1, chosen], nan=np.inf)
    chosen = chosen[np.argsort(-last, kind='stable')]
    figure, axes = new_figure(3.9)
    axes.grid(False)
    colors = matplotlib.colormaps[HEAT].with_extremes(bad=GRID)
    drawn = values[:, chosen].T
    # Clip the scale: a few points far above the rest would leave one colour for all others.
    top = float(np.nanquantile(drawn, 0.98)) if np.isfinite(drawn).any() else 1.0
    image = axes.imshow(drawn, aspect='auto', interpolation='nearest', cmap=colors, vmin=0, vmax=top or 1.0)
    back = np.zeros((stages, len(chosen)), bool)
    back[1:] = kept[1:, chosen] & ~kept[:-1, chosen]
    stage, row = np.nonzero(back)
    if len(stage):
        axes.scatter(stage, row, s=13, color='white', edgecolors='black', linewidths=0.6, label='re-admitted', zorder=3)
        axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), borderaxespad=0.1, handletextpad=0.1)
    axes.set_xticks(range(stages), [str(epoch) for epoch in epochs])
    axes.set_yticks([])
    axes.set_xlabel('epoch of the condensation')
    axes.set_ylabel(f'{len(chosen)} points, most valuable last value on top')
    figure.colorbar(image, ax=axes, label='value (nats)', pad=0.02, extend='max')
    return figure


@styled
def value_histogram(values: Sequence[np.ndarray], labels: Sequence[str], bins: int = 40) -> Figure:
    """Distribution of the points' values at each stage.

    Args:
      values: one array f[n] in nats per stage, visited points only.
      labels: one per stage.
      bins: shared by all stages; the last one holds the highest hundredth.
    """
    figure, axes = new_figure()
    together = np.concatenate([*values, [0.0]])
    top = float(np.quantile(together, 0.99)) or 1.0
    edges = np.linspace(0, top, bins + 1)
    # Not shades of one colour: the ends of a scale vanish on a light or a dark page.
    for place, (stage, label) in enumerate(zip(values, labels, strict=True)):
        counts = np.histogram(np.minimum(stage, top), edges)[0]
        keys = {'color': PALETTE[place % len(PALETTE)], 'linestyle': LINES[place % len(LINES)]}
        axes.stairs(counts, edges, linewidth=1.6, label=label, **keys)
    axes.set_xlabel(f'value (nats; {top:.2g} and above in the last bin)')
    axes.set_ylabel('points')
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.legend(loc='best')
    return figure


@styled
def accuracy_against_cost(
    labels: Sequence[str],
    cost: Sequence[float],
    accuracy: Sequence[float],
    deviation: Sequence[float | None],
    quantity: str,
    apart: float = 0.0,
    level: float | None = None,
) -> Figure:
    """Accuracy against cost or the ratio kept: one mark per row, with one sample standard deviation over its seeds.

    Args:
      labels: [R]; rows with the same label are joined by a line.
      cost: [R], relative to training on every point.
      accuracy: [R] in [0, 1].
      deviation: [R] in [0, 1]; None if n = 1.
      quantity: label of the horizontal axis.
      apart: horizontal distance, in percent, between labels of equal cost, which would hide each other.
      level: accuracy of the method on every point, drawn as a level line.
    """
    figure, axes = new_figure()
    style = looks(list(dict.fromkeys(labels)))
    rows_of = {label: sorted((r for r, other in enumerate(labels) if other == label), key=cost.__getitem__)
               for label in style}  # fmt: skip
    for label, rows in rows_of.items():
        near = [other for other in style if any(abs(cost[a] - cost[b]) < NEAR for a in rows for b in rows_of[other])]
        shift = apart * (near.index(label) - (len(near) - 1) / 2)
        errors = [deviation[row] for row in rows]
        known = any(error is not None for error in errors)
        bars = [np.nan if error is None else 100 * error for error in errors] if known else None
        keys = {'color': style[label]['color'], 'marker': style[label]['marker'], 'linewidth': 1.0}
        keys['linestyle'] = style[label]['linestyle'] if len(rows) > 1 else 'none'
        x, y = (100 * np.array([part[row] for row in rows]) for part in (cost, accuracy))
        axes.errorbar(x + shift, y, bars, capsize=3, markersize=6, label=label, **keys)
    if level is not None:
        axes.axhline(100 * level, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label='all points')
    axes.set_xlabel(quantity)
    axes.set_ylabel('accuracy (%)')
    axes.margins(0.12)
    axes.legend(loc='best')
    return figure


@styled
def accuracies(
    labels: Sequence[str],
    accuracy: Sequence[float],
    deviation: Sequence[float | None],
    level: str = '',
    quantity: str = '',
) -> Figure:
    """Accuracies from top to bottom, each with one sample standard deviation over its seeds.

    Args:
      labels: [R].
      accuracy: [R] in [0, 1].
      deviation: [R] in [0, 1]; None if n = 1.
      level: the label that the others are compared with; a line is drawn through its mark.
      quantity: what the labels give in brackets, in percent of training on every point.
    """
    figure, axes = new_figure(0.9 + (0.36 if len(labels) <= 8 else 0.27) * len(labels))
    axes.grid(False, axis='y')
    rows = np.arange(len(labels))[::-1]
    for row, label, mean, error in zip(rows, labels, accuracy, deviation, strict=True):
        color = look(label.partition(' (')[0], 1 if label == level else 0)['color']
        bars = None if error is None else [100 * error]
        axes.errorbar([100 * mean], [row], xerr=bars, capsize=3, markersize=6, marker='o', color=color)
        axes.annotate(f'{100 * mean:.2f}', (1.02, row), xycoords=('axes fraction', 'data'), va='center', fontsize=8.5)
        if label == level:
            axes.axvline(100 * mean, color=color, linestyle=':', linewidth=1.2)
    axes.set_yticks(rows, labels)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    words = ['accuracy (%)', *([f'dotted: {level.partition(" (")[0]}'] if level in labels else [])]
    costs = f'\n(in brackets: {quantity}, % of training on every point)' if quantity else ''
    axes.set_xlabel('; '.join(words) + costs, loc='right')
    axes.margins(x=0.08)
    return figure


@styled
def hamming_distances(kept: np.ndarray, labels: Sequence[str]) -> Figure:
    """Hamming distances of value labels between runs (KCD Fig. 3c), with those expected of random sets of their sizes.

    Args:
      kept: bool[R, N], the final value label of every point.
      labels: [R].
    """
    measured, expected = (100 * part for part in hamming(kept))
    figure, axes = new_figure(4.2)
    axes.grid(False)
    off = ~np.eye(len(labels), dtype=bool)
    top = max(float(expected[off].max(initial=0)), float(measured[off].max(initial=0)), 1e-9)
    image = axes.imshow(measured, aspect='auto', cmap=HEAT, vmin=0, vmax=top)
    size = 8.5 if len(labels) <= 5 else 6.5
    for row, column in zip(*np.nonzero(off), strict=True):
        dark = measured[row, column] < 0.55 * top
        text = f'{measured[row, column]:.1f}\n({expected[row, column]:.1f})'
        axes.text(column, row, text, ha='center', va='center', fontsize=size, color='white' if dark else 'black')
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, ax=axes, label='labels that differ (% of points);\nin brackets: by chance', pad=0.02)
    return figure


@styled
def teacher_entropy_by_label(entropy: np.ndarray, kept: np.ndarray, bins: int = 24) -> Figure:
    """The teacher's prediction entropy on kept and on dropped points (KCD Fig. 5b), as shares, with their means.

    A good teacher is certain about most points, so the shares are on a logarithmic scale to show the others.

    Args:
      entropy: f[N] in nats, of the teacher's softmax.
      kept: bool[N], the value label.
    """
    figure, axes = new_figure()
    edges = np.linspace(0, float(np.max(entropy)) or 1.0, bins + 1)
    shares = []
    for name, mask, color, line in (('kept', kept, PALETTE[1], '-'), ('dropped', ~kept, PALETTE[0], '--')):
        if mask.any():
            share = 100 * np.histogram(entropy[mask], edges)[0] / np.sum(mask)
            mean = float(np.mean(entropy[mask]))
            axes.stairs(share, edges, color=color, linewidth=1.7, linestyle=line, label=f'{name}: mean {mean:.3f} nats')
            axes.axvline(mean, color=color, linestyle=line, linewidth=1)
            shares.append(share[share > 0].min())
    axes.set_yscale('log')
    axes.set_ylim(bottom=0.6 * min(shares))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.set_xlabel('entropy of the teacher (nats)')
    axes.set_ylabel('points (% of the kept, of the dropped)')
    axes.legend(loc='best')
    return figure


@styled
def gallery(
    most: np.ndarray, least: np.ndarray, most_titles: Sequence[str], least_titles: Sequence[str], columns: int = 8
) -> Figure:
    """The most and the least valued images (KCD Fig. 5a), one block above the other.

    Args:
      most: u8[M, H, W, 3] or f[M, H, W, 3] in [0, 1].
      least: the same.
      most_titles: one caption per image.
      least_titles: one caption per image.
      columns: images per row.
    """
    blocks = (('most valued', most, most_titles), ('least valued', least, least_titles))
    heights = [-(-max(len(images), 1) // columns) for _, images, _ in blocks]
    figure = Figure(figsize=(0.95 * columns, 1.15 * sum(heights) + 0.6))
    parts = figure.subfigures(2, 1, height_ratios=heights)
    for part, rows, (title, images, titles) in zip(parts, heights, blocks, strict=True):
        part.suptitle(title, fontsize=10)
        grid = part.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            axes.set_axis_off()
            if place < len(images):
                axes.imshow(images[place], interpolation='nearest')
                axes.set_title(titles[place], fontsize=7, pad=2)
    return figure
