"""Whether a teacher fits the data that it will teach on: classes, image size, normalization."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from kcd_jax import data
from kcd_jax.networks.layers import NORMALIZATIONS, constants

if TYPE_CHECKING:
    from kcd_jax.teachers.teacher import Teacher

_LISTED = 3


def compare_classes(teacher: Teacher, dataset: data.Dataset) -> list[str]:
    """Lines on the classes; ValueError for another number, other names or another order."""
    card, what = teacher.card, f'the teacher {teacher.source or teacher.network.name}'
    if card.get('num_classes') == 0:
        return [f'{what} gives embeddings alone, and names no classes']
    if card.get('num_classes', dataset.num_classes) != dataset.num_classes:
        raise ValueError(
            f'{what} knows {card["num_classes"]} classes and {dataset.name} has {dataset.num_classes}; '
            'use a teacher of these classes'
        )
    if not card.get('class_names'):
        return [f'{what} does not name its classes: they are taken to be in the order of {dataset.name}']
    # The same letters can be composed in two ways; file systems differ in which they return.
    theirs, ours = (
        [unicodedata.normalize('NFC', str(name)) for name in names]
        for names in (card['class_names'], dataset.class_names)
    )
    differ = [number for number, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]]
    if not differ:
        return []
    shown = ', '.join(f'class {n} is {theirs[n]!r} there and {ours[n]!r} in the data' for n in differ[:_LISTED])
    shown += f' (and {len(differ) - _LISTED} more)' if len(differ) > _LISTED else ''
    if sorted(theirs) == sorted(ours):
        raise ValueError(
            f'{what} knows the same classes in another order: {shown}; its logits would teach the wrong classes. '
            'Order the data as the teacher was trained, or train a teacher on this data'
        )
    raise ValueError(
        f'{what} was trained on other classes: {shown}. Use a teacher of this data; if only the names differ and the '
        'order is the same, store them with: python -m kcd_jax teacher import FILE --rename_classes'
    )


def compare_images(teacher: Teacher, dataset: data.Dataset) -> list[str]:
    """Lines on the images; ValueError for another size, or a normalization that is only assumed."""
    card, lines = teacher.card, list(teacher.card.get('notes', ()))
    what = f'the teacher {teacher.source or teacher.network.name}'
    shape = tuple(card.get('image_shape') or dataset.image_shape)
    if shape != tuple(dataset.image_shape):
        raise ValueError(
            f'{what} was trained on images of {size_text(shape)} and {dataset.name} has '
            f'{size_text(dataset.image_shape)}; use a teacher of this size, or load the data at its size'
        )
    if card.get('normalization_assumed'):
        lines.append(refuse_assumed(dataset, what, card['normalization']))
    if card.get('dataset', dataset.name) != dataset.name:
        lines.append(f'{what} was trained on {card["dataset"]}, and this is {dataset.name}')
    return lines


def refuse_assumed(dataset: data.Dataset, what: str, assumed: dict[str, Any]) -> str:
    """ValueError for a normalization that is only assumed where the data has its own; else a line that names it."""
    public = [{part: np.asarray(value) for part, value in constants(name).items()} for name in NORMALIZATIONS]
    mean, std = dataset.normalization
    named = any(np.allclose(p['mean'], mean, atol=1e-4) and np.allclose(p['std'], std, atol=1e-4) for p in public)
    if not named:
        raise ValueError(
            f'{what} does not say with which mean and standard deviation it was trained, and {dataset.name} has its '
            f'own; name them by teacher.normalization (--normalization of the import): {", ".join(NORMALIZATIONS)}, '
            'or mean and standard deviation themselves'
        )
    return f'{what} does not say its normalization; the usual one is used: mean {assumed["mean"]}, std {assumed["std"]}'


def size_text(image_shape: Any) -> str:
    """'32x32 pixels'."""
    height, width = image_shape[:2]
    return f'{height}x{width} pixels'
