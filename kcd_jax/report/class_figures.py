"""Figures of what a policy chooses, by class and by point (UNIX Fig. 4 to 6), and of what a student has taken over.

As in `figures`: functions of plain arrays that return a matplotlib Figure; the first run is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kcd_jax.report.figures import HEAT, INK, looks, new_figure, styled, whole_numbers

# More classes than these are drawn as means over neighbours.
FEW_CLASSES = 25
Pair = tuple[np.ndarray, np.ndarray]


@styled
def distance_to_centre(points: Mapping[str, Pair], bins: int = 24) -> Figure:
    """How far the points trained on lie from the mean of their class, every visit counted (UNIX Fig. 4a).

    Each student has an embedding, and so a scale, of its own: distances are relative to the mean over all points.

    Args:
      points: {run: (distance f[N] in the student's embedding, visits i[N])}.
      bins: of all runs together; the last one takes the highest hundredth.
    """
    figure, axes = new_figure()
    points = {label: (distance / (np.mean(distance) or 1.0), visits) for label, (distance, visits) in points.items()}
    top = float(np.quantile(np.concatenate([distance for distance, _ in points.values()]), 0.99)) or 1.0
    edges = np.linspace(0, top, bins + 1)
    style = looks(list(points))
    for label, (distance, visits) in points.items():
        density = np.histogram(np.minimum(distance, top), edges, weights=visits, density=True)[0]
        mean = float(np.average(distance, weights=visits))
        keys = {key: style[label][key] for key in ('color', 'linestyle')}
        axes.stairs(density, edges, linewidth=1.7, label=f'{label}: mean {mean:.2f}', **keys)
        axes.axvline(mean, linewidth=1, **keys)
    axes.set_xlabel("distance to the class's centre (mean of all points: 1)")
    axes.set_ylabel('density of the visits')
    axes.legend(loc='best')
    return figure


@styled
def teacher_entropy_over_training(curves: Mapping[str, Pair]) -> Figure:
    """How hard the teacher finds what is trained on, by epoch (UNIX Fig. 4b).

    Args:
      curves: {run: (epochs [E], entropy [E] in nats, the mean over the rows that were trained on)}.
    """
    figure, axes = new_figure()
    style = looks(list(curves))
    for label, (epochs, entropy) in curves.items():
        keys = {key: style[label][key] for key in ('color', 'linestyle')}
        axes.plot(epochs, entropy, label=label, **keys)
    axes.set_xlabel('epoch')
    axes.set_ylabel('entropy of the teacher (nats)')
    axes.set_ylim(bottom=0)
    whole_numbers(axes.xaxis)
    axes.legend(loc='best')
    return figure


@styled
def sampling_and_accuracy(classes: Mapping[str, Pair]) -> Figure:
    """A mark a class: how often its points were trained on, and how well it is recognised (UNIX Fig. 5a).

    Args:
      classes: {run: (visits [K], test accuracy [K] in [0, 1])}.
    """
    figure, axes = new_figure()
    style = looks(list(classes))
    for label, (visits, accuracy) in classes.items():
        varied = np.std(visits) > 0 and np.std(accuracy) > 0
        said = f', r = {np.corrcoef(visits, accuracy)[0, 1]:.2f}' if varied else ''
        keys = {'color': style[label]['color'], 'marker': style[label]['marker']}
        axes.plot(visits, 100 * accuracy, linestyle='none', alpha=0.75, label=f'{label}{said}', **keys)
    axes.set_xlabel('times that points of the class were trained on')
    axes.set_ylabel('test accuracy of the class (%)')
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    # Above: marks may lie anywhere.
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2, columnspacing=1.0)
    return figure


@styled
def sorted_class_accuracy(accuracy: Mapping[str, np.ndarray]) -> Figure:
    """Test accuracy of each class, in the order of the first run's, the best first (UNIX Fig. 5b).

    Args:
      accuracy: {run: [K] in [0, 1]}.
    """
    figure, axes = new_figure()
    style = looks(list(accuracy))
    order = np.argsort(-next(iter(accuracy.values())), kind='stable')
    places = np.arange(1, len(order) + 1)
    window = len(order) // 10 if len(order) > FEW_CLASSES else 1
    for label, values in accuracy.items():
        keys = {part: style[label][part] for part in ('color', 'linestyle')}
        mark = {'color': style[label]['color'], 'marker': style[label]['marker'], 'linestyle': 'none'}
        if window > 1:
            # Single classes jump up and down: they are left as faint marks behind a mean over their neighbours.
            axes.plot(places, 100 * values[order], alpha=0.3, markersize=2.5, **mark)
            smooth = np.convolve(values[order], np.full(window, 1 / window), 'valid')
            axes.plot(places[: len(smooth)] + (window - 1) / 2, 100 * smooth, label=label, **keys)
        else:
            axes.plot(places, 100 * values[order], label=label, **keys, marker=style[label]['marker'])
    mean = f' (lines: means of {window} neighbours)' if window > 1 else ''
    axes.set_xlabel(f'classes, by the accuracy of {next(iter(accuracy))}{mean}')
    axes.set_ylabel('test accuracy (%)')
    whole_numbers(axes.xaxis)
    axes.legend(loc='best')
    return figure


@styled
def class_heat_map(counts: Mapping[str, np.ndarray], accuracy: Mapping[str, np.ndarray]) -> Figure:
    """Points of each class that each epoch trained on, classes by final accuracy (UNIX Fig. 6), a panel a run.

    Args:
      counts: {run: [E, K]}. accuracy: {run: [K] in [0, 1]}.
    """
    figure, panels = new_figure(1.1 + 1.5 * len(counts), len(counts), sharex=True)
    top = max(float(np.max(count)) for count in counts.values())
    image = None
    for axes, (label, count) in zip(np.atleast_1d(panels), counts.items(), strict=True):
        order = np.argsort(-accuracy[label], kind='stable')
        axes.grid(False)
        extent = (0.5, len(order) + 0.5, len(count) + 0.5, 0.5)
        image = axes.imshow(count[:, order], aspect='auto', interpolation='nearest', cmap=HEAT, vmin=0, vmax=top,
                            extent=extent)  # fmt: skip
        axes.set_title(label, loc='left')
        axes.set_ylabel('epoch')
        whole_numbers(axes.yaxis)
    axes.set_xlabel('classes, the best recognised first')
    figure.colorbar(image, ax=panels, label='points trained on', pad=0.02)
    return figure


@styled
def accuracy_against_ratio(
    runs: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], level: float | None
) -> Figure:
    """Accuracy against the share of points kept at the end (KCD Fig. 3a).

    Args:
      runs: {policy: (ratio [R] in (0, 1], accuracy [R] in [0, 1], standard deviation [R], NaN where n = 1)}.
      level: accuracy of the method on everything, a level line.
    """
    figure, axes = new_figure()
    style = looks(list(runs))
    for place, (label, (ratio, accuracy, deviation)) in enumerate(runs.items()):
        bars = None if np.isnan(deviation).all() else 100 * np.nan_to_num(deviation)
        # A little apart, so that no bar hides another's.
        x = 100 * ratio + 0.8 * (place - (len(runs) - 1) / 2)
        axes.errorbar(x, 100 * accuracy, bars, capsize=3, elinewidth=1.0, label=label, **style[label])
    if level is not None:
        axes.axhline(100 * level, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label='all points')
    axes.set_xlabel('points kept in the last stage (%)')
    axes.set_ylabel('accuracy (%)')
    axes.margins(0.08)
    axes.legend(loc='best')
    return figure


@styled
def correlation_difference(difference: np.ndarray, label: str) -> Figure:
    """Where the student's logits vary together otherwise than the teacher's do.

    Args:
      difference: [K, K], correlation of the teacher's logits over the test images less that of the student's.
      label: of the run.
    """
    figure, axes = new_figure(3.9)
    axes.grid(False)
    top = float(np.quantile(np.abs(difference), 0.99)) or 1.0
    colors = matplotlib.colormaps['PuOr']
    image = axes.imshow(difference, interpolation='nearest', cmap=colors, vmin=-top, vmax=top)
    axes.set_xlabel('class')
    axes.set_ylabel('class')
    mean = float(np.mean(np.abs(difference)))
    axes.set_title(f'{label}: mean difference {mean:.3f}', loc='left')
    for axis in (axes.xaxis, axes.yaxis):
        whole_numbers(axis)
    figure.colorbar(image, ax=axes, label='correlation, teacher - student', pad=0.02, extend='both')
    return figure
