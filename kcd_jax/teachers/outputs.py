"""A teacher's outputs that were computed before, anywhere: arrays, or a file that holds them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from kcd_jax import paths
from kcd_jax.teachers import weights_file
from kcd_jax.teachers.host import Query, class_count, refuse_probabilities

_CHECKED = 4096  # rows checked at a time
# Shapes of the arrays; N training points, M held-out images, V views.
SHAPES = {
    'train': ('[N, K]', '[N, V, K]'),
    'test': ('[M, K]',),
    'embed': ('[N, D]', '[N, V, D]'),
    'test_embed': ('[M, D]',),
}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredOutputs:
    """Logits, embeddings or both that were computed anywhere, as `Teacher.from_outputs`; logits of width 0 for none."""

    train: np.ndarray
    test: np.ndarray | None
    name: str
    identity: str
    embed: np.ndarray | None = None
    test_embed: np.ndarray | None = None
    kind: str = 'outputs'
    macs: int | None = None
    reads_images: bool = False

    @property
    def num_classes(self) -> int:
        """K."""
        return self.train.shape[-1]

    @property
    def embed_dim(self) -> int:
        """D; 0 without embeddings."""
        return 0 if self.embed is None else self.embed.shape[-1]

    @property
    def num_views(self) -> int | None:
        """Views that are stored of each point; None where one answer stands for all of them."""
        return self.train.shape[1] if self.train.ndim == 3 else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user."""
        if self.num_views is not None:
            return ()
        return (f'{self.name} holds one answer per point, of the clean image: it is used for every view of the point',)

    def bound(self, image_shape: tuple[int, int, int]) -> StoredOutputs:
        """As `Host.bound`; the size of the images makes no difference."""
        del image_shape
        return self

    def recheck(self) -> None:
        """As `Host.recheck`: nobody else holds these arrays, but for those that are mapped from files."""

    def answer(self, query: Query, embed: bool = False) -> np.ndarray:
        """As `Host.answer`."""
        if query.held_out:
            parts = [self.test, self.test_embed] if embed else [self.test]
            return np.concatenate([part[query.index].astype(np.float32) for part in parts], axis=1)
        where = query.index if self.train.ndim == 2 else (query.index, query.view)
        parts = [self.train, self.embed] if embed else [self.train]
        return np.concatenate([part[where].astype(np.float32) for part in parts], axis=1)


def stored(
    train: Any, test: Any, embed: Any, test_embed: Any, classes: int | Sequence[str] | None, name: str
) -> tuple[StoredOutputs, tuple[str, ...], str]:
    """(stored outputs, class names or (), path or '') of arrays, or of a file that holds them.

    Raises:
      ValueError: in one line, what is wrong with the file or the arrays.
    """
    source, given = '', dict(zip(SHAPES, (train, test, embed, test_embed), strict=True))
    if isinstance(train, str | os.PathLike):
        if others := [key for key, part in given.items() if key != 'train' and part is not None]:
            raise ValueError(
                f'the outputs come from {train}: give no {others[0]}=, but an array {others[0]!r} in that file'
            )
        source, given = os.fspath(train), _read(paths.expand(train))
        name = name or pathlib.Path(source).name
    name = name or 'stored outputs'
    train, test, embed, test_embed = (_array(given.get(key), key, name, copy=not source) for key in SHAPES)
    if train is None and embed is None:
        raise ValueError(f'{name} has neither logits (train=) nor embeddings (embed=)')
    for held_out, key, training in ((test, 'test', train), (test_embed, 'test_embed', embed)):
        if held_out is not None and training is None:
            other = key.replace('test_', '').replace('test', 'train')
            raise ValueError(f'{name} has {key}, and no {other} of the training points; give both, or neither')
    if train is None:
        count, names = 0, ()
        train = np.zeros((*embed.shape[:-1], 0), np.float32)
        test = None if test_embed is None else np.zeros((len(test_embed), 0), np.float32)
    else:
        count, names = class_count(train.shape[-1] if classes is None else classes)
        _check_logits(train, 'train', count, name)
        if test is not None:
            _check_logits(test, 'test', count, name)
    if embed is not None and embed.shape[:-1] != train.shape[:-1]:
        rows = ', '.join(map(str, train.shape[:-1]))
        raise ValueError(f'embed of {name} has shape {list(embed.shape)}; use [{rows}, D]')
    if test_embed is not None:
        wanted = [len(test_embed if test is None else test), embed.shape[-1]]
        if [*test_embed.shape] != wanted:
            raise ValueError(f'test_embed of {name} has shape {list(test_embed.shape)}; use {wanted}')
    digest = hashlib.sha256(json.dumps([count, names]).encode())
    for array in (part for part in (train, test, embed, test_embed) if part is not None):
        digest.update(f'{array.shape} {array.dtype}'.encode())
        for start in range(0, len(array), _CHECKED):
            digest.update(np.ascontiguousarray(array[start : start + _CHECKED]).tobytes())
    return StoredOutputs(train, test, name, digest.hexdigest(), embed, test_embed), names, source


def is_outputs(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds outputs, not weights: any .npz, and a .safetensors file with an array 'train' or 'embed'."""
    path = paths.expand(path)
    if path.suffix != '.safetensors' or not path.is_file():
        return path.suffix == '.npz'
    try:
        with safetensors.safe_open(path, 'np') as file:
            return not {'train', 'embed'}.isdisjoint(file.keys())
    except safetensors.SafetensorError:
        return False


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file, 'train' or 'embed' among them."""
    try:
        if path.suffix == '.safetensors':
            content, _ = weights_file.decode_safetensors(path.read_bytes())
        elif path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                content = {key: file[key] for key in file.files if key in SHAPES or not {*SHAPES} & {*file.files}}
        else:
            raise ValueError('outputs are read from .npz and .safetensors')
    except FileNotFoundError:
        raise ValueError(f'there are no outputs at {path}') from None
    except Exception as error:  # a damaged file raises whatever its reader meets first
        raise ValueError(f'{path} cannot be read as outputs of a teacher ({error})') from None
    if not {'train', 'embed'} & content.keys():
        raise ValueError(f"{path} has no array 'train'; it holds {', '.join(sorted(content)) or 'nothing'}")
    return content


def _array(value: Any, key: str, name: str, copy: bool) -> np.ndarray | None:
    """The array that is called `key`, of floating point numbers that are finite; None for None.

    `copy`: whether it is another's, who may use its memory again; one that is mapped from a file stays there.
    """
    if value is None:
        return None
    what, shapes = f'{key} of {name}', SHAPES[key]
    usable = ' or '.join(shapes)
    try:
        array = np.asarray(value)
        array = array.copy() if copy and not isinstance(value, np.memmap) else array
    except Exception as error:  # ragged lists; tensors on an accelerator or with gradients
        usable = '.detach().cpu().float().numpy() of it' if hasattr(value, 'detach') else f'an array {usable}'
        raise ValueError(f'{what} is a {type(value).__name__} that is no array of numbers; use {usable}') from error
    if array.ndim not in range(2, 2 + len(shapes)) or not array.size:
        raise ValueError(f'{what} has shape {list(array.shape)}; use {usable}')
    if not jnp.issubdtype(array.dtype, jnp.floating):
        kind = 'numbers' if 'embed' in key else 'logits'
        raise ValueError(f'{what} is {array.dtype}; use {kind} as floating point numbers')
    for start in range(0, len(array), _CHECKED):
        part = array[start : start + _CHECKED]
        finite = np.isfinite(part.astype(np.float32)).reshape(len(part), -1).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise ValueError(f'{what} holds numbers that are not finite, first in row {row}')
    return array


def _check_logits(array: np.ndarray, key: str, num_classes: int, name: str) -> None:
    if array.shape[-1] != num_classes:
        usable = ' or '.join(SHAPES[key])
        raise ValueError(f'{key} of {name} has shape {list(array.shape)}; use {usable} with K = {num_classes} classes')
    refuse_probabilities(array[:_CHECKED].reshape(-1, num_classes).astype(np.float32), f'{key} of {name}')
