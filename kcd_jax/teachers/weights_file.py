"""Files of weights: our own format, and every format that is read, recognised by content and never by suffix.

Our own files are safetensors whose metadata holds a card (JSON: network, classes, normalization, ...) and a digest.
Other safetensors files (timm, Hugging Face) and the files of `torch.save` are read as PyTorch state dicts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save as to_bytes

from kcd_jax import paths
from kcd_jax.contracts import PyTree
from kcd_jax.runtime import files
from kcd_jax.teachers import torch_file, torch_weights
from kcd_jax.trees import leaf_paths

FILE = 'student.safetensors'  # what a run leaves of its student: the teacher of the next run
CARD_KEY = 'kcd_jax'  # where a PyTorch state dict keeps the card
_LISTED = 8  # runs of an experiment that a message names

_DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U32': np.uint32,
    'U8': np.uint8,
    'BOOL': np.bool_,
}
# Formats that are recognised only to be named in the message: (first bytes, name).
_FOREIGN = (
    (b'\x89HDF\r\n', 'an HDF5 file (Keras)'),
    (b'\x1f\x8b', 'compressed by gzip; decompress it first'),
    (b'BZh', 'compressed by bzip2; decompress it first'),
    (b'GGUF', 'a GGUF file'),
    (b'\x93NUMPY', 'a single NumPy array'),
    (b'version https://git-lfs', 'a Git LFS pointer, not the file itself; fetch it with git lfs pull'),
    (b'<', 'a web page, not a checkpoint; download the file itself'),
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The content of a file.

    Attributes:
      tensors: {name: array}; names are paths of our variables, or PyTorch's where `is_torch`.
      card: what the file says about itself; {} where it says nothing.
      is_torch: whether names and layouts are PyTorch's.
      notes: lines for the user on what was chosen.
    """

    tensors: dict[str, np.ndarray]
    card: dict[str, Any]
    is_torch: bool
    notes: tuple[str, ...] = ()


def locate(source: str | os.PathLike[str]) -> pathlib.Path:
    """The file that `source` names: itself, or the student's file in a run's folder; '~' is expanded."""
    path = paths.expand(source)
    return path / FILE if path.is_dir() else path


def read(path: str | os.PathLike[str]) -> Weights:
    """Reads a file of weights of any known format; nothing in it is executed.

    Raises:
      ValueError: in one line that begins with the path, when the file is missing, damaged or of another format.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if path.name == FILE and path.parent.is_dir():
            raise ValueError(_without_student(path.parent)) from None
        raise ValueError(f'there is no teacher at {path}; train one, or name its file in teacher.checkpoint') from None
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}') from None
    try:
        return _read_safetensors(data) if _is_safetensors(data) else _read_torch(data)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as a teacher ({error})') from error


def _without_student(folder: pathlib.Path) -> str:
    """The message for a folder that is no finished run; that of an experiment holds some, two folders down."""
    runs = sorted(str(found.parent) for depth in ('*', '*/*') for found in folder.glob(f'{depth}/{FILE}'))
    if not runs:
        return f'{folder} has no {FILE}: no run has finished there'
    more = f' and {len(runs) - _LISTED} more' if len(runs) > _LISTED else ''
    return f'{folder} has no {FILE}; name one of the runs in it: {", ".join(runs[:_LISTED])}{more}'


def _is_safetensors(data: bytes) -> bool:
    """Eight bytes hold the length of a JSON object that follows."""
    return len(data) > 8 and data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < 100 * 2**20


def decode_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors by name, metadata) of the content of a safetensors file, also of bfloat16.

    Raises:
      ValueError: it is damaged, empty, or of a type that is not read.
    """
    try:
        size = int.from_bytes(data[:8], 'little')
        metadata = json.loads(data[8 : 8 + size]).get('__metadata__', {})
        parts = safetensors.deserialize(data)
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise ValueError(f'a damaged safetensors file: {error}') from None
    if not parts:
        raise ValueError('it holds no tensors')
    unknown = sorted({part['dtype'] for _, part in parts} - {*_DTYPES})
    if unknown:
        raise ValueError(f'it holds tensors of type {", ".join(unknown)}; convert them to float32')
    tensors = {
        name: np.frombuffer(part['data'], _DTYPES[part['dtype']]).reshape(part['shape']) for name, part in sorted(parts)
    }
    return tensors, metadata


def _read_safetensors(data: bytes) -> Weights:
    tensors, metadata = decode_safetensors(data)
    if 'card' in metadata:
        text = metadata['card']
        if metadata.get('crc32', found := _digest(text, tensors)) != found:
            raise ValueError('it does not agree with its digest: it is damaged, export it again')
        return Weights(tensors, _parsed(text), is_torch=False)
    return Weights(tensors, _parsed(metadata.get(CARD_KEY, '{}')), is_torch=True)


def _parsed(text: str) -> dict[str, Any]:
    card = json.loads(text)
    if not isinstance(card, dict):
        raise ValueError('its card is not a JSON object')
    return card


def _read_torch(data: bytes) -> Weights:
    for magic, what in _FOREIGN:
        if data.startswith(magic):
            raise ValueError(f'it is {what}')
    # Arrays of NumPy are a zip archive, as PyTorch's own files are; the name of its first member tells them apart.
    if data.startswith(b'PK\x03\x04') and data[30 : 30 + int.from_bytes(data[26:28], 'little')].endswith(b'.npy'):
        raise ValueError(
            'it is an archive of NumPy arrays, not of weights; outputs of a teacher are read as they are, by '
            'teacher.checkpoint=FILE.npz or Teacher.from_outputs'
        )
    content = torch_file.decode(data)
    tensors, notes = torch_weights.unwrap(content)
    entries = (getattr(tensors, 'metadata', {}), content)
    card = next((entry[CARD_KEY] for entry in entries if isinstance(entry.get(CARD_KEY), Mapping)), {})
    return Weights(tensors, json.loads(json.dumps(card, default=str)), is_torch=True, notes=notes)


# ------------------------------------------------------------------------------------------------------------- writing


def save(path: str | os.PathLike[str], variables: PyTree, card: Mapping[str, Any]) -> None:
    """Writes variables and card as one safetensors file, whole or not at all.

    Args:
      path: the file; its folder is created.
      variables: {'params', 'batch_stats', 'constants'}.
      card: 'network', 'num_classes', 'class_names', 'image_shape', 'dataset', 'accuracy', ...; JSON values. The
        normalization is added from the variables.
    """
    tensors = {name: np.asarray(leaf, order='C') for name, leaf in leaf_paths(jax.device_get(variables)).items()}
    text = json.dumps({'normalization': normalization(variables), **card}, sort_keys=True, default=str)
    content = to_bytes(tensors, {'card': text, 'crc32': _digest(text, tensors)})
    files.write_bytes(paths.expand(path), content)


def export(path: str | os.PathLike[str], variables: PyTree, card: Mapping[str, Any]) -> None:
    """Writes a PyTorch state dict: a file of `torch.save`, or safetensors where `path` ends so.

    The card travels with it: in PyTorch, `torch.load(FILE, weights_only=True)._metadata['kcd_jax']`; in safetensors,
    the metadata entry 'kcd_jax' as JSON.
    """
    path = paths.expand(path)
    text = json.dumps({'normalization': normalization(variables), **card}, sort_keys=True, default=str)
    tensors = torch_weights.to_torch(variables)
    if path.suffix == '.safetensors':
        files.write_bytes(path, to_bytes(tensors, {'format': 'pt', CARD_KEY: text}))
    else:
        files.write_bytes(path, torch_file.encode(tensors, {CARD_KEY: json.loads(text)}))


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a file of `save` that agrees with its digest."""
    try:
        return not read(path).is_torch
    except ValueError:
        return False


def normalization(variables: PyTree) -> dict[str, list[float]]:
    """{'mean', 'std'} of the channels of a network's input in [0, 1]."""
    # The shortest decimals that give the same float32.
    return {part: [float(str(x)) for x in np.asarray(value)] for part, value in variables['constants'].items()}


def _digest(card: str, tensors: Mapping[str, np.ndarray]) -> str:
    """CRC-32 of the card and of the tensors' bytes by name; safetensors itself checks no content."""
    result = zlib.crc32(card.encode())
    for _, tensor in sorted(tensors.items()):
        result = zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data, result)
    return str(result)
