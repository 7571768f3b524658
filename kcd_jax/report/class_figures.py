"""Figures by class and by point: what a policy selects (UNIX Fig. 4 to 6) and what a student learns from its teacher.

As in `figures`, functions of plain arrays that return a matplotlib Figure. The first run is the reference.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from kcd_jax.report.style import HEAT, looks, new_figure, styled, whole_numbers

# Up to this many classes get a line each.
FEW_CLASSES = 25
Pair = tuple[np.ndarray, np.ndarray]


@styled
def distance_to_centre(points: Mapping[str, Pair], bins: int = 24) -> Figure:
    """Distance of the points trained on from the mean of their class, weighted by visits (UNIX Fig. 4a).

    Every student has its own embedding and scale, so distances are relative to the mean over all points.

    Args:
      points: {run: (distance f[N] in the student's embedding, visits i[N])}.
      bins: shared by all runs; the last one holds the highest hundredth.
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
    axes.set_xlabel('distance from the class mean (mean over all points: 1)')
    axes.set_ylabel('density of the visits')
    axes.legend(loc='best')
    return figure


@styled
def sampling_and_accuracy(classes: Mapping[str, Pair]) -> Figure:
    """Visits and test accuracy of each class, one mark per class (UNIX Fig. 5a).

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
    axes.set_xlabel('visits to points of the class')
    axes.set_ylabel('test accuracy of the class (%)')
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    # Outside the axes: marks may lie anywhere.
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2, columnspacing=1.0)
    return figure


@styled
def class_accuracy(accuracy: Mapping[str, np.ndarray]) -> Figure:
    """Dot plot of the test accuracy of each class, sorted by the first run's, the best on top (UNIX Fig. 5b).

    Args:
      accuracy: {run: [K] in [0, 1]}.
    """
    first = next(iter(accuracy))
    order = np.argsort(accuracy[first], kind='stable')
    few = len(order) <= FEW_CLASSES
    figure, axes = new_figure(min(1.1 + 0.24 * len(order), 6.0))
    style = looks(list(accuracy))
    rows = np.arange(len(order))
    for label, values in accuracy.items():
        keys = {'color': style[label]['color'], 'marker': style[label]['marker'], 'alpha': 0.85}
        mean = f'{label}: mean {100 * np.mean(values):.1f} %'
        axes.plot(100 * values[order], rows, linestyle='none', markersize=6 if few else 3.5, label=mean, **keys)
    axes.set_yticks(rows if few else [], [str(place) for place in order] if few else [])
    axes.set_ylabel('class' if few else f'{len(order)} classes, by the accuracy of {first}')
    axes.set_xlabel('test accuracy (%)')
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1.0), ncols=2, columnspacing=1.0)
    return figure


@styled
def class_heat_map(counts: Mapping[str, np.ndarray], accuracy: Mapping[str, np.ndarray]) -> Figure:
    """Points of each class trained on in each epoch, classes sorted by final accuracy (UNIX Fig. 6); one panel per run.

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
    axes.set_xlabel('classes, most accurate first')
    figure.colorbar(image, ax=panels, label='points trained on', pad=0.02)
    return figure


@styled
def correlation_difference(difference: np.ndarray, label: str) -> Figure:
    """Difference between the correlations of the teacher's and the student's logits.

    Args:
      difference: [K, K], correlation of the teacher's logits over the test images minus that of the student's.
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
