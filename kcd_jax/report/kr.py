"""The figures of the KR paper: penalties (Fig. 2), kernels (Fig. 4), convergence (Fig. 5), examples (Fig. 6).

The logs of the committed runs of Fig. 5 are not kept; `training_curves` condenses them into one JSON file that is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kcd_jax.report import figures
from kcd_jax.report.comparisons import Row
from kcd_jax.report.records import Files, number
from kcd_jax.report.statistics import describe
from kcd_jax.report.style import SIZE, Drawing, looks, new_figure, styled
from kcd_jax.report.tables import difference_in

# The losses of KR's two optimizers (`methods/kr.py`).
LOSSES = {'loss': 'posterior loss (A)', 'prior': 'prior loss (B)'}
Curves = dict[str, dict[str, Any]]


@styled
def penalty_curves(
    gradient: np.ndarray, penalties: Mapping[str, np.ndarray], thresholds: Mapping[str, np.ndarray]
) -> Figure:
    """The sparse recoding penalty next to L1 and L2, and for several thresholds (Fig. 2).

    Args:
      gradient: f[G], the values of one entry.
      penalties: {name: f[G]}.
      thresholds: {epsilon: f[G]}.
    """
    figure, parts = new_figure(5.2, 2, sharex=True)
    for axes, curves in zip(parts, (penalties, thresholds), strict=True):
        for label, style in looks(list(curves)).items():
            axes.plot(gradient, curves[label], label=label, color=style['color'], linestyle=style['linestyle'])
        axes.set_ylabel('penalty')
        axes.legend(loc='upper center')
    parts[-1].set_xlabel('entry of the gradient')
    return figure


def share_near_zero(kernel: np.ndarray, fraction: float = 0.1) -> float:
    """Sparsity of a kernel: the share of entries below `fraction` of the largest magnitude, in [0, 1]."""
    size = np.abs(kernel)
    return float(np.mean(size <= fraction * size.max()))


def mosaic(kernel: np.ndarray) -> np.ndarray:
    """A kernel [h, w, in, out] as one image, output channels across and input channels down, scaled to [-1, 1].

    Returns:
      f[in * (h + 1) - 1, out * (w + 1) - 1], NaN between the kernels.
    """
    height, width, inputs, outputs = kernel.shape
    cells = np.full((inputs, height + 1, outputs, width + 1), np.nan)
    cells[:, :height, :, :width] = kernel.transpose(2, 0, 3, 1) / (np.abs(kernel).max() or 1.0)
    return cells.reshape(inputs * (height + 1), outputs * (width + 1))[:-1, :-1]


@styled
def kernels(of_runs: Mapping[str, np.ndarray]) -> Figure:
    """One layer's kernels of students trained with different penalties (Fig. 4).

    Args:
      of_runs: {run: kernel [h, w, in, out]}, each scaled by its own largest magnitude.
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


@styled
def examples(images: Mapping[str, np.ndarray]) -> Figure:
    """The same points in several datasets, one row each (Fig. 6).

    Args:
      images: {dataset: u8[N, H, W, 3]}, with equal N.
    """
    figure, parts = new_figure(0.4 + 1.1 * len(images), len(images), squeeze=False)
    for axes, (label, row) in zip(parts[:, 0], images.items(), strict=True):
        axes.imshow(np.concatenate(list(row), axis=1), interpolation='nearest')
        axes.set_title(label, loc='left')
        axes.grid(False)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


# ------------------------------------------------------------------------------------------------------------- Fig. 5


def training_curves(rows: Sequence[Row], files: Files) -> Curves:
    """{label: {'iterations': [E], and for each of `LOSSES` {seed: [E]}}}: means over epochs, of KR's runs with a log.

    Raises:
      ValueError: runs of one row were logged at different iterations.
    """
    curves: Curves = {}
    for row in rows:
        for run in row.runs if row.method == 'kr' else ():
            records = [record for record in files.metrics(run) if record.get('kind') == 'train']
            if not records or any(number(record, key) is None for key in ('step', *LOSSES) for record in records):
                continue
            iterations = [record['step'] for record in records]
            own = curves.setdefault(row.label, {'iterations': iterations, **{key: {} for key in LOSSES}})
            if own['iterations'] != iterations:
                raise ValueError(f'the runs of {row.label} differ in their logged iterations; give runs of one length')
            for key in LOSSES:
                own[key][str(run['seed'])] = [round(record[key], 6) for record in records]
    return curves


def read_curves(path: str | Path) -> Curves:
    """The result of `training_curves` from its file; ValueError if the file holds something else."""
    try:
        curves = json.loads(Path(path).read_text(encoding='utf-8'))
        if all({'iterations', *LOSSES} <= set(own) for own in curves.values()):
            return curves
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError):
        pass
    raise ValueError(f'{path} holds no training curves; write them with: report figures FOLDER --kr=5 --curves=FILE')


def reading(curves: Curves, reference: str) -> list[str]:
    """Fig. 5 in numbers, one line per row: each loss at the end and its mean over training, against the reference."""
    lines = []
    for name, own in curves.items():
        words = []
        for key, title in LOSSES.items():
            of_seeds = {seed: np.asarray(values) for seed, values in own[key].items()}
            last, mean = (describe(float(f(v)) for v in of_seeds.values()).mean for f in (lambda v: v[-1], np.mean))
            text = f'{title} {last:.4f} at the end, {mean:.4f} on average'
            other = curves.get(reference, {}).get(key, {})
            gap = describe(float(np.mean(of_seeds[s] - np.asarray(other[s]))) for s in of_seeds if s in other)
            if name != reference and gap.sd is not None:
                text += f' ({difference_in(gap, ".4f")} against {reference}, n = {gap.n})'
            words.append(text)
        lines.append(f'{name}: {"; ".join(words)}')
    return lines


def convergence(curves: Curves) -> Figure:
    """Training losses by iteration (Fig. 5): means over seeds, bands of one sample standard deviation.

    Args:
      curves: as returned by `training_curves`.
    """
    panels = {
        title: {label: (own['iterations'], np.asarray(list(own[key].values()))) for label, own in curves.items()}
        for key, title in LOSSES.items()
    }
    return figures.training_curves(panels, over='iteration')


def training_losses(rows: Sequence[Row], files: Files, reference: str = 'dense') -> Drawing | None:
    """Both losses of KR's runs by iteration; None without such runs, or if a row's runs differ in length."""
    try:
        curves = training_curves(rows, files)
    except ValueError:
        return None
    if not curves:
        return None
    alt = f'Line chart of two losses by iteration. {"; ".join(reading(curves, reference))}.'
    data = [
        {'run': name, 'loss': title, 'seed': seed, 'iteration': step, 'value': value}
        for name, own in curves.items()
        for key, title in LOSSES.items()
        for seed, values in own[key].items()
        for step, value in zip(own['iterations'], values, strict=True)
    ]
    return Drawing('kr_convergence', 'Convergence of the two losses', alt, convergence(curves), data)
