"""The common style of all figures, and the type of a drawn figure.

Colours are Okabe and Ito's, which can be told apart with all common kinds of colour blindness; line style or marker
repeats the distinction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Blue, vermilion, green, orange, purple, sky.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#E69F00', '#CC79A7', '#56B4E9')
NEUTRAL = '#7f7f7f'
LINES = ('-', '--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ('o', 's', '^', 'D', 'v', 'P')
HEAT = 'cividis'
# The fonts, lines and colours of axes.
STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name('figures.mplstyle'), use_default_template=False)
# A page replaces these two by its own colours, so that figures follow its light or dark theme.
INK, GRID = STYLE['text.color'], STYLE['grid.color']
SIZE = (5.0, 3.4)
# Colour, line and marker distinguish at most this many runs.
MAX_LINES = len(PALETTE)
Arguments, Drawn = ParamSpec('Arguments'), TypeVar('Drawn')


@dataclasses.dataclass
class Drawing:
    """A figure with its words and its numbers.

    Attributes:
      name: for a file or an anchor.
      title: a few words.
      alt: what the figure shows, with its numbers, for readers who cannot see it.
      figure: the figure.
      data: the numbers drawn, mappings with equal keys; empty for images and for one mark per point.
    """

    name: str
    title: str
    alt: str
    figure: Figure
    data: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def of_one_run(self, label: str) -> Drawing:
        """Marks the figure as that of a single run."""
        self.figure.suptitle(f'single run: {label}', fontsize=8.5, x=0.01, ha='left', color=INK)
        self.alt += f' Single run: {label}.'
        return self

    def save(self, path: str | Path) -> None:
        """Writes the figure in the format of the file's name, as the same bytes for the same numbers."""
        date = {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}.get(Path(path).suffix.lower())
        with matplotlib.rc_context({'svg.hashsalt': self.name}):
            self.figure.savefig(path, dpi=200, metadata=date)


def styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Draws in the common style."""

    @functools.wraps(draw)
    def with_style(*args: Arguments.args, **keywords: Arguments.kwargs) -> Drawn:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **keywords)

    return with_style


def new_figure(height: float = SIZE[1], rows: int = 1, /, **keywords: Any) -> tuple[Figure, Any]:
    """A figure of the page's width, and its axes."""
    figure = Figure(figsize=(SIZE[0], height))
    return figure, figure.subplots(rows, 1, **keywords)


def look(label: str, place: int) -> dict[str, Any]:
    """Colour, line and marker of a run; the usual names look the same in every figure."""
    place %= MAX_LINES
    fixed = {'Student alone': (NEUTRAL, ':', 'x'), 'Teacher': (INK, (0, (1, 2)), '*')}
    color, line, marker = fixed.get(label, (PALETTE[place], LINES[place], MARKERS[place]))
    return {'color': color, 'linestyle': line, 'marker': marker}


def looks(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`look` of every label; labels with a fixed look use up no colour."""
    own = [label for label in labels if label not in ('Student alone', 'Teacher')]
    return {label: look(label, own.index(label) if label in own else 0) for label in labels}


def whole_numbers(axis: Any) -> None:
    """Ticks at round whole numbers: epochs, classes."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def band(axes: Any, x: np.ndarray, values: np.ndarray, label: str, style: Mapping[str, Any]) -> None:
    """A line of the means over seeds of values [seeds, E] at x [E], with a band of one sample standard deviation.

    NaN if a seed has no value. The number of seeds is added to the label; `style` is as returned by `look`.
    """
    values = np.asarray(values, float)
    shown = np.isfinite(values).any(axis=0)
    x, values = np.asarray(x)[shown], values[:, shown]
    n = np.isfinite(values).sum(axis=0)
    marker = style['marker'] if len(x) <= 15 else ''
    axes.plot(x, np.nanmean(values, axis=0), label=f'{label}, n = {len(values)}', **{**style, 'marker': marker})
    if (n > 1).any():
        middle, spread = np.nanmean(values[:, n > 1], axis=0), np.nanstd(values[:, n > 1], axis=0, ddof=1)
        axes.fill_between(x[n > 1], middle - spread, middle + spread, color=style['color'], alpha=0.18, linewidth=0)
