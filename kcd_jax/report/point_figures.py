"""Figures of points and classes: functions of plain arrays that return a `Drawing`.

Values of points are in nats, or losses where a student predicts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

from kcd_jax.report.statistics import hamming
from kcd_jax.report.style import GRID, HEAT, LINES, PALETTE, SIZE, Drawing, looks, new_figure, styled

# Up to this many classes get a line each.
FEW_CLASSES = 25


@styled
def value_heat_map(
    values: np.ndarray,
    kept: np.ndarray,
    epochs: Sequence[int],
    max_points: int = 300,
    seed: int = 0,
    unit: str = 'nats',
) -> Drawing:
    """The values of sampled points over the stages (KCD Fig. 3b), sorted by their last value.

    Args:
      values: f[T, N]; NaN if a point has not been visited.
      kept: bool[T, N], the value label.
      epochs: [T], the epoch after which each stage was condensed.
      max_points: number of points drawn, sampled without replacement.
      seed: of the sampling.
      unit: of the values.
    """
    stages, num_points = values.shape
    chosen = np.random.default_rng(seed).choice(num_points, min(max_points, num_points), replace=False)
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
    back = np.zeros((stages, num_points), bool)
    back[1:] = kept[1:] & ~kept[:-1]
    stage, row = np.nonzero(back[:, chosen])
    if len(stage):
        axes.scatter(stage, row, s=13, color='white', edgecolors='black', linewidths=0.6, label='re-admitted', zorder=3)
        axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), borderaxespad=0.1, handletextpad=0.1)
    axes.set_xticks(range(stages), [str(epoch) for epoch in epochs])
    axes.set_yticks([])
    axes.set_xlabel('epoch of the condensation')
    axes.set_ylabel(f'{len(chosen)} points, most valuable last value on top')
    figure.colorbar(image, ax=axes, label=f'value ({unit})', pad=0.02, extend='max')
    means = [np.nanmean(one) if np.isfinite(one).any() else np.nan for one in (values[0], values[-1])]
    alt = (
        f'Heat map of the values of sampled points at {stages} condensations. The mean value goes from {means[0]:.3f} '
        f'to {means[1]:.3f} {unit}; dropped points were re-admitted {back.sum():,} times.'
    )
    return Drawing('value_heat_map', 'Values of points over training', alt, figure)


@styled
def value_histogram(values: Sequence[np.ndarray], labels: Sequence[str], bins: int = 40, unit: str = 'nats') -> Drawing:
    """Distribution of the points' values at each stage.

    Args:
      values: one array f[n] per stage, visited points only.
      labels: one per stage.
      bins: shared by all stages; the last one holds the highest hundredth.
      unit: of the values.
    """
    figure, axes = new_figure()
    top = float(np.quantile(np.concatenate([*values, [0.0]]), 0.99)) or 1.0
    edges = np.linspace(0, top, bins + 1)
    # Not shades of one colour: the ends of a scale vanish on a light or a dark page.
    for place, (stage, label) in enumerate(zip(values, labels, strict=True)):
        counts = np.histogram(np.minimum(stage, top), edges)[0]
        keys = {'color': PALETTE[place % len(PALETTE)], 'linestyle': LINES[place % len(LINES)]}
        axes.stairs(counts, edges, linewidth=1.6, label=label, **keys)
    axes.set_xlabel(f'value ({unit}; {top:.2g} and above in the last bin)')
    axes.set_ylabel('points')
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.legend(loc='best')
    medians = ', '.join(f'{np.median(one):.3f} {label}' for one, label in zip(values, labels, strict=True) if len(one))
    alt = f'Histograms of the values of all visited points at each condensation. Medians ({unit}): {medians}.'
    return Drawing('value_histogram', 'Distribution of values', alt, figure)


@styled
def hamming_distances(kept: np.ndarray, labels: Sequence[str]) -> Drawing:
    """Hamming distances of value labels between runs (KCD Fig. 3c), with those expected of random sets of their sizes.

    Args:
      kept: bool[R, N], the final value label of every point, for at least two runs.
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
    data = [
        {'run': labels[j], 'other': labels[i], 'differ': measured[i, j] / 100, 'by_chance': expected[i, j] / 100}
        for i in range(len(labels))
        for j in range(i)
    ]
    said = '; '.join(
        f'{word}: {pair["run"]} and {pair["other"]} {100 * pair["differ"]:.1f} % (by chance '
        f'{100 * pair["by_chance"]:.1f} %)'
        for word, pick in (('closest', min), ('furthest', max))
        for pair in [pick(data, key=lambda pair: pair['differ'])]
    )
    alt = f'Matrix of the share of points whose final value label differs between {len(labels)} runs; {said}.'
    return Drawing('hamming_distances', 'Do runs keep the same points?', alt, figure, data)


@styled
def teacher_entropy_by_label(entropy: np.ndarray, kept: np.ndarray, bins: int = 24) -> Drawing:
    """The teacher's prediction entropy on kept and on dropped points (KCD Fig. 5b), as shares, with their means.

    A good teacher is certain about most points, so the shares are on a logarithmic scale to show the others.

    Args:
      entropy: f[N] in nats, of the teacher's softmax.
      kept: bool[N], the value label.
    """
    figure, axes = new_figure()
    edges = np.linspace(0, float(np.max(entropy)) or 1.0, bins + 1)
    shares, labels = [], []
    for name, mask, color, line in (('kept', kept, PALETTE[1], '-'), ('dropped', ~kept, PALETTE[0], '--')):
        if mask.any():
            share = 100 * np.histogram(entropy[mask], edges)[0] / np.sum(mask)
            mean = float(np.mean(entropy[mask]))
            labels.append(f'{name}: mean {mean:.3f} nats')
            axes.stairs(share, edges, color=color, linewidth=1.7, linestyle=line, label=labels[-1])
            axes.axvline(mean, color=color, linestyle=line, linewidth=1)
            shares.append(share[share > 0].min())
    axes.set_yscale('log')
    axes.set_ylim(bottom=0.6 * min(shares))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.set_xlabel('entropy of the teacher (nats)')
    axes.set_ylabel('points (% of the kept, of the dropped)')
    axes.legend(loc='best')
    alt = f"Histograms of the teacher's entropy on the points; {', '.join(labels)}."
    return Drawing('teacher_entropy_by_label', 'Does the teacher agree?', alt, figure)


@styled
def gallery(halves: Sequence[Sequence[np.ndarray]], titles: Sequence[Sequence[str]], columns: int = 8) -> Drawing:
    """The most and the least valued images (KCD Fig. 5a), one block above the other.

    Args:
      halves: (most, least): images u8[H, W, 3], or f[H, W, 3] in [0, 1].
      titles: a caption for each image of each half.
      columns: images per row.
    """
    # One axes with all images, in units of an image's width: one axes per image takes seconds to lay out.
    figure, axes = new_figure()
    axes.set_axis_off()
    row = 0.0
    for title, images, captions in zip(('most valued', 'least valued'), halves, titles, strict=True):
        axes.text(0, row, title, va='bottom', fontsize=9.5)
        for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
            left, top = place % columns, row + 0.1 + 1.45 * (place // columns)
            axes.imshow(image, cmap='gray', interpolation='none', extent=(left, left + 0.92, top + 0.92, top))
            axes.text(left, top + 0.96, caption, va='top', fontsize=5.5)
        row += 0.4 + 1.45 * -(-len(images) // columns)
    axes.set_xlim(0, columns)
    axes.set_ylim(row - 0.3, -0.3)
    figure.set_size_inches(SIZE[0], SIZE[0] / columns * row)
    alt = f'The {len(halves[0])} most and the {len(halves[1])} least valued images.'
    return Drawing('gallery', 'Most and least valued images', alt, figure)


@styled
def class_accuracy(accuracy: Mapping[str, np.ndarray], visits: Mapping[str, np.ndarray]) -> Drawing:
    """Test accuracy of each class, sorted by the first run's, the best on top (UNIX Fig. 5b).

    The legend gives the correlation with the visits to the points of a class (UNIX Fig. 5a).

    Args:
      accuracy: {run: [K] in [0, 1]}.
      visits: {run: [K]}.
    """
    first = next(iter(accuracy))
    order = np.argsort(accuracy[first], kind='stable')
    few = len(order) <= FEW_CLASSES
    figure, axes = new_figure(min(1.1 + 0.24 * len(order), 6.0))
    rows, said, data = np.arange(len(order)), [], []
    for label, keys in looks(list(accuracy)).items():
        values, count = accuracy[label], visits[label]
        keys |= {'linestyle': 'none', 'alpha': 0.85, 'markersize': 6 if few else 3.5}
        varied = np.std(count) > 0 and np.std(values) > 0
        related = f', r = {np.corrcoef(count, values)[0, 1]:.2f}' if varied else ''
        axes.plot(100 * values[order], rows, **keys, label=f'{label}: mean {100 * np.mean(values):.1f} %{related}')
        said.append(f'{label}: {100 * values.min():.1f} %, visits from {count.min():,.0f} to {count.max():,.0f}')
        for place, (visited, value) in enumerate(zip(count, values, strict=True)):
            data.append({'run': label, 'class': place, 'visits': visited, 'accuracy': value})
    axes.set_yticks(rows if few else [], [str(place) for place in order] if few else [])
    axes.set_ylabel('class' if few else f'{len(order)} classes, by the accuracy of {first}')
    axes.set_xlabel('test accuracy (%); r: correlation with the visits to the class')
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0))
    alt = f'Dot plot of the test accuracy of each class. Worst class: {"; ".join(said)}.'
    return Drawing('class_accuracy', 'Which classes gain', alt, figure, data)
