"""The figures of the KR paper: penalties (Fig. 2), kernels (Fig. 4), convergence (Fig. 5), examples (Fig. 6).

As in `figures`: functions of plain arrays that return a matplotlib Figure. `training_curves` collects what Fig. 5 draws
from the runs' logs; it is kept as one JSON file, because the runs' own logs are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kcd_jax.report.figures import SIZE, looks, new_figure, styled
from kcd_jax.report.records import read_metrics, run_folder
from kcd_jax.report.statistics import describe

# What is drawn of a run: the losses of the two optimisers (`methods/kr.py`).
LOSSES = {'loss': 'posterior loss (A)', 'prior': 'prior loss (B)'}
Curves = dict[str, dict[str, Any]]


# ------------------------------------------------------------------------------------------------------------- Fig. 2


@styled
def penalty_curves(
    gradient: np.ndarray, penalties: Mapping[str, np.ndarray], thresholds: Mapping[str, np.ndarray]
) -> Figure:
    """The sparse recoding penalty beside L1 and L2, and for several thresholds (Fig. 2).

    Args:
      gradient: f[G], the values of one entry. penalties: {name: f[G]}. thresholds: {epsilon: f[G]}.
    """
    figure, parts = new_figure(5.2, 2, sharex=True)
    for axes, curves in zip(parts, (penalties, thresholds), strict=True):
        for label, style in looks(list(curves)).items():
            axes.plot(gradient, curves[label], label=label, color=style['color'], linestyle=style['linestyle'])
        axes.set_ylabel('penalty')
        axes.legend(loc='upper center')
    parts[-1].set_xlabel('entry of the gradient')
    return figure


# ------------------------------------------------------------------------------------------------------------- Fig. 4


def share_near_zero(kernel: np.ndarray, fraction: float = 0.1) -> float:
    """The share of entries below `fraction` of the largest magnitude, in [0, 1]: how sparse a kernel is."""
    size = np.abs(kernel)
    return float(np.mean(size <= fraction * size.max()))


def mosaic(kernel: np.ndarray) -> np.ndarray:
    """A kernel [h, w, in, out] as one picture, output channels across and input channels down, over its largest entry.

    Returns:
      f[in * (h + 1) - 1, out * (w + 1) - 1] in [-1, 1], NaN between the kernels.
    """
    height, width, inputs, outputs = kernel.shape
    cells = np.full((inputs, height + 1, outputs, width + 1), np.nan)
    cells[:, :height, :, :width] = kernel.transpose(2, 0, 3, 1) / (np.abs(kernel).max() or 1.0)
    return cells.reshape(inputs * (height + 1), outputs * (width + 1))[:-1, :-1]


@styled
def kernels(of_runs: Mapping[str, np.ndarray]) -> Figure:
    """One layer's kernels of students trained under different penalties (Fig. 4).

    Args:
      of_runs: {run: kernel [h, w, in, out]}, each drawn over its own largest magnitude.
    """
    columns = 1 if len(of_runs) <= 2 else 2
    rows = -(-len(of_runs) // columns)
    figure = Figure(figsize=(SIZE[0], 1.9 * rows + 0.9))
    parts = figure.subplots(rows, columns, squeeze=False)
    for axes in parts.flat:
        axes.set_axis_off()
    for axes, (label, kernel) in zip(parts.flat, of_runs.items(), strict=False):
        image = axes.imshow(mosaic(kernel), cmap='RdBu', vmin=-1, vmax=1, interpolation='nearest', aspect='auto')
        axes.set_title(f'{label}: {100 * share_near_zero(kernel):.0f} % near zero', loc='left')
    words = 'entry over the largest of its run (near zero: below a tenth)'
    figure.colorbar(image, ax=parts.ravel().tolist(), label=words, orientation='horizontal', shrink=0.8, pad=0.02)
    return figure


# ------------------------------------------------------------------------------------------------------------- Fig. 5


def training_curves(summaries: Sequence[Mapping[str, Any]]) -> Curves:
    """{run: {'iterations': [E], and for each of `LOSSES` {seed: [E]}}}: epoch means, by the last iteration of each.

    Raises:
      ValueError: a run has no log, or runs of one name have different iterations.
    """
    curves: Curves = {}
    for summary in summaries:
        folder, name = run_folder(summary), summary['name']
        records = [r for r in read_metrics(folder) if r.get('kind') == 'train'] if folder else []
        if not records:
            raise ValueError(f'run {name} has no log of its training; give the folder of the runs, or the curves kept')
        iterations = [record['step'] for record in records]
        own = curves.setdefault(name, {'iterations': iterations, **{key: {} for key in LOSSES}})
        if own['iterations'] != iterations:
            raise ValueError(f'the runs of {name} were logged at different iterations; give runs of one config')
        for key in LOSSES:
            own[key][str(summary['seed'])] = [round(record[key], 6) for record in records]
    return curves


def logged(summary: Mapping[str, Any]) -> bool:
    """Whether a run is KR's and its log has both losses."""
    folder = run_folder(summary) if summary['method'] == 'kr' else None
    records = [r for r in read_metrics(folder) if r.get('kind') == 'train'] if folder else []
    return bool(records) and all(key in record for key in LOSSES for record in records)


def read_curves(path: str | Path) -> Curves:
    """What `training_curves` gave, from the file it was kept in; ValueError where that is something else."""
    try:
        curves = json.loads(Path(path).read_text(encoding='utf-8'))
        if all({'iterations', *LOSSES} <= set(own) for own in curves.values()):
            return curves
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError):
        pass
    raise ValueError(f'{path} holds no training curves; make them with analysis kr --figure=5 FOLDER --curves=FILE')


def reading(curves: Curves, reference: str) -> list[str]:
    """Fig. 5 in numbers, a line a run: each loss at the end and its mean over training, against the reference.

    The differences are paired by seed: mean ± standard error.
    """
    lines = []
    for name, own in curves.items():
        words = []
        for key, title in LOSSES.items():
            of_seeds = {seed: np.asarray(values) for seed, values in own[key].items()}
            last, whole = (describe(float(f(v)) for v in of_seeds.values()).mean for f in (lambda v: v[-1], np.mean))
            text = f'{title} {last:.4f} at the end, {whole:.4f} on average'
            other = curves.get(reference, {}).get(key, {})
            gap = describe(float(np.mean(of_seeds[s] - np.asarray(other[s]))) for s in of_seeds if s in other)
            if name != reference and gap.sd is not None:
                text += f' ({gap.mean:+.4f} ± {gap.sd / gap.n**0.5:.4f} against {reference}, n = {gap.n})'
            words.append(text)
        lines.append(f'{name}: {"; ".join(words)}')
    return lines


@styled
def convergence(curves: Curves) -> Figure:
    """Training losses by iteration (Fig. 5): the mean over seeds, and one sample standard deviation around it.

    Args:
      curves: as of `training_curves`.
    """
    figure, parts = new_figure(5.6, len(LOSSES), sharex=True)
    style = looks(list(curves))
    for axes, (key, title) in zip(parts, LOSSES.items(), strict=True):
        for label, own in curves.items():
            losses = np.asarray(list(own[key].values()), float)
            keys = {part: style[label][part] for part in ('color', 'linestyle')}
            axes.plot(own['iterations'], losses.mean(axis=0), label=f'{label}, n = {len(losses)}', **keys)
            if len(losses) > 1:
                middle, spread = losses.mean(axis=0), losses.std(axis=0, ddof=1)
                band = (own['iterations'], middle - spread, middle + spread)
                axes.fill_between(*band, color=keys['color'], alpha=0.15, linewidth=0)
        axes.set_yscale('log')
        for write in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            write(lambda value, _: f'{value:g}')
        axes.set_ylabel(title)
    parts[0].legend(loc='upper right')
    parts[-1].set_xlabel('iteration')
    return figure


# ------------------------------------------------------------------------------------------------------------- Fig. 6


@styled
def examples(images: Mapping[str, np.ndarray]) -> Figure:
    """The same points in several data sets, one below the other (Fig. 6).

    Args:
      images: {data set: u8[N, H, W, 3]}, equal N.
    """
    figure, parts = new_figure(0.4 + 1.1 * len(images), len(images), squeeze=False)
    for axes, (label, row) in zip(parts[:, 0], images.items(), strict=True):
        axes.imshow(np.concatenate(list(row), axis=1), interpolation='nearest')
        axes.set_title(label, loc='left')
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
