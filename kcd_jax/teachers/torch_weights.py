"""Weights of the field's public PyTorch teachers in our networks, and back.

Our modules carry the names of the public code, so a name is translated by its last word: kernel and scale are
'weight', mean and var are 'running_mean' and 'running_var'; kernels HWIO are stored OIHW. Where public codes differ
among themselves (the classifier is 'fc', 'linear' or 'classifier', a projection 'downsample' or 'shortcut', everything
may stand under 'module.'), the names are matched by what they mean.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Network, PyTree
from kcd_jax.teachers import torch_file
from kcd_jax.trees import leaf_paths, merge

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
_CONTAINERS = ('model', 'state_dict', 'net', 'model_state_dict')
_HEAD = re.compile(r'^(fc|linear|classifier(\.\d)?)\.(weight|bias)$')
_LISTED = 8


def torch_name(path: str) -> str:
    """'layer1.0/conv1/kernel' -> 'layer1.0.conv1.weight'; `path` is inside 'params' or 'batch_stats'."""
    *module, leaf = path.split('/')
    return '.'.join([*module, _LEAVES[leaf]])


def to_torch(variables: PyTree) -> dict[str, np.ndarray]:
    """The state_dict of a network: {PyTorch's name: array in PyTorch's layout}, with 'num_batches_tracked' of zero."""
    tensors: dict[str, np.ndarray] = {}
    statistics = leaf_paths(variables['batch_stats'])
    for path, leaf in {**leaf_paths(variables['params']), **statistics}.items():
        value = np.asarray(leaf)
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        tensors[torch_name(path)] = np.ascontiguousarray(value.transpose(order))
        if path in statistics and path.endswith('/var'):
            tensors[torch_name(path).replace('running_var', 'num_batches_tracked')] = np.zeros((), np.int64)
    return dict(sorted(tensors.items()))


def from_torch(tensors: Mapping[str, np.ndarray], network: Network, image_shape: tuple[int, int, int]) -> PyTree:
    """The variables of `network` with the values of a state_dict.

    Every tensor is used exactly once, but for 'num_batches_tracked', which has no meaning here. The normalisation
    constants are those of `network`: a state_dict does not hold them.

    Raises:
      ValueError: in one line that names what is missing, left over, of another shape, or not finite.
    """
    variables = network.init(jax.random.key(0), image_shape)
    given: dict[str, tuple[str, np.ndarray]] = {}
    prefix = 'module.' if all(name.startswith('module.') for name in tensors) else ''
    for name, value in tensors.items():
        short = name[len(prefix) :]
        if short.endswith('num_batches_tracked'):
            continue
        if _canonical(short) in given:
            raise ValueError(f'{name} and {given[_canonical(short)][0]} are the same tensor of {network.name}')
        given[_canonical(short)] = (short, value)
    missing, shapes, values = [], [], {}
    for part in ('params', 'batch_stats'):
        for path, leaf in leaf_paths(variables[part]).items():
            name = torch_name(path)
            found, value = given.pop(_canonical(name), (name, None))
            if value is None:
                missing.append(name)
                continue
            order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,), 0: ()}.get(value.ndim)
            if order is None or tuple(value.shape[axis] for axis in order) != leaf.shape:
                inverse = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
                shapes.append(f'{found} {value.shape} instead of {tuple(leaf.shape[axis] for axis in inverse)}')
                continue
            value = np.asarray(value, np.float32)
            if not np.isfinite(value).all():
                raise ValueError(f'{found} holds NaN or infinity; the checkpoint is of no use')
            if name.endswith('running_var') and (value < 0).any():
                raise ValueError(f'{found} holds a negative variance; the checkpoint is of no use')
            values[f'{part}/{path}'] = jnp.asarray(np.ascontiguousarray(value.transpose(order)))
    left_over = [name for name, _ in given.values()]
    lists = {'missing': missing, 'left over': left_over, 'of another shape': shapes}
    problems = [f'{len(names)} {word}: {_some(names)}' for word, names in lists.items() if names]
    if problems:
        raise ValueError(f'these are not the weights of {network.name}: {"; ".join(problems)}')
    return merge(variables, values)


def _canonical(name: str) -> str:
    """The same for names that mean the same in different public codes."""
    head = _HEAD.match(name)
    return f'head.{head[3]}' if head else name.replace('.shortcut.', '.downsample.')


def _some(names: list[str]) -> str:
    more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
    return ', '.join(names[:_LISTED]) + more


def state_dict(content: Any) -> dict[str, np.ndarray]:
    """The tensors by name in a decoded checkpoint: it itself, or what it holds as 'model', 'state_dict' or the like.

    Raises:
      ValueError: when there is none.
    """
    if isinstance(content, Mapping):
        if content and all(isinstance(value, np.ndarray) for value in content.values()):
            return dict(content)
        for key in _CONTAINERS:
            if isinstance(content.get(key), Mapping):
                return state_dict(content[key])
        keys = _some([str(key) for key in content])
        raise ValueError(f'no weights found: none of {", ".join(_CONTAINERS)} among its keys ({keys})')
    raise ValueError(f'no weights found: it holds a {type(content).__name__}, not a dictionary')


def read(path: str | pathlib.Path, network: Network, image_shape: tuple[int, int, int]) -> PyTree:
    """The variables of `network` from a PyTorch checkpoint; nothing of the file is executed.

    Raises:
      ValueError: in one line that begins with the file's name.
    """
    try:
        return from_torch(state_dict(torch_file.decode(pathlib.Path(path).read_bytes())), network, image_shape)
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def write(path: str | pathlib.Path, variables: PyTree) -> None:
    """Writes a network's state_dict as a file of `torch.save`."""
    pathlib.Path(path).write_bytes(torch_file.encode(to_torch(variables)))
