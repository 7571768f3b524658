"""The model card of an exported file: what it is, how good, what it cost, and how it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kcd_jax.teachers.model import Model

if TYPE_CHECKING:
    from kcd_jax.export.writing import Exported

_NAMES = 20  # classes that are listed


def text(model: Model, exported: Exported, usage: str, command: str) -> str:
    """The card in Markdown.

    Args:
      model: that was exported.
      exported: its file.
      usage: lines of Python that use {file} and name {network}.
      command: that made the file; '' where it was a call.
    """
    name, shape = model.network.name, f'[N, {", ".join(map(str, model.input_shape))}]'
    rows = [*_about(model), ('made by', f'`{command}`' if command else ''), ('license', '')]
    return '\n'.join(
        [
            f'# {name} ({exported.format})',
            '',
            *(f'- **{key}**: {value}'.rstrip() for key, value in rows if value or key == 'license'),
            '',
            '## The file and the student',
            '',
            *(f'- {line}' for line in exported.lines()),
            '',
            '## Use',
            '',
            f'`images` are uint8 pixels, {shape}, channels last; the logits are in the order of the classes.',
            '',
            '```python',
            usage.strip().format(file=exported.path.name, network=name),
            '```',
            '',
        ]
    )


def _about(model: Model) -> list[tuple[str, str]]:
    card = model.card
    parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(model.variables['params']))
    names = ', '.join(model.classes[:_NAMES]) + (', ...' if len(model.classes) > _NAMES else '')
    run = card.get('run') or {}
    rows = [
        ('network', f'{model.network.name}, {parameters:,} parameters'),
        ('input', 'uint8 images of {}x{} pixels, {} channels'.format(*model.input_shape)),
        ('classes', f'{len(model.classes)} ({names})'),
        ('data', _joined(card.get('dataset'), _points(run))),
        ('accuracy', _accuracy(card)),
        ('teacher', _teacher(card.get('teacher'))),
        ('training', _training(card)),
        ('cost', _cost(card.get('cost'))),
        ('trained by', f'`{card["command"]}`' if card.get('command') else ''),
        ('commit', card.get('commit') or ''),
    ]
    if normalization := card.get('normalization'):
        rows.insert(
            2, ('normalization', f'mean {normalization["mean"]}, std {normalization["std"]}, of pixels in [0, 1]')
        )
    return rows


def _joined(*parts: str | None) -> str:
    return ', '.join(part for part in parts if part)


def _points(run: dict[str, Any]) -> str:
    count = (run.get('data') or {}).get('num_points')
    return f'{count:,} training points' if count else ''


def _accuracy(card: dict[str, Any]) -> str:
    if card.get('accuracy') is None:
        return ''
    return f'{100 * card["accuracy"]:.2f} % on the {card.get("evaluated_on", "test")} images'


def _teacher(teacher: dict[str, Any] | None) -> str:
    if not teacher:
        return ''
    accuracy = '' if teacher.get('accuracy') is None else f'{100 * teacher["accuracy"]:.2f} %'
    return _joined(teacher.get('network'), accuracy)


def _training(card: dict[str, Any]) -> str:
    named = [f'{key} {card[key]}' for key in ('method', 'policy') if card.get(key)]
    epochs = f'{card["epochs"]} epochs' if card.get('epochs') else ''
    seed = f'seed {card["seed"]}' if card.get('seed') is not None else ''
    return _joined(*named, epochs, seed)


def _cost(cost: dict[str, Any] | None) -> str:
    if not cost:
        return ''
    return f'{cost["macs"]:.3g} multiply-accumulates, {100 * cost["relative_macs"]:.0f} % of training on all points'
