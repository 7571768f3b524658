"""PyTorch state dicts as variables of our networks, and back.

Our modules carry the names of the public PyTorch code, so a name is translated by its last word: kernel and scale are
'weight', mean and var are 'running_mean' and 'running_var'; kernels HWIO are stored OIHW. Public codes differ among
themselves: the classifier is 'fc', 'linear' or 'classifier', a projection 'downsample' or 'shortcut', and every name
may begin with the attributes that wrap the network ('module.', '_orig_mod.', 'model.', 'student.'). Names are matched
by meaning. A parameter with a name of its own ('pos_embed', 'gamma') keeps it.
"""

from __future__ import annotations

import collections
import difflib
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
_TO_TORCH = {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}  # axes of a leaf by its rank
_FROM_TORCH = {4: (2, 3, 1, 0), 3: (0, 1, 2), 2: (1, 0), 1: (0,), 0: ()}
# Where checkpoints keep the weights, in the order of preference: averaged weights are what their authors evaluate.
_AVERAGED = ('state_dict_ema', 'model_ema', 'ema_state_dict')
_CONTAINERS = ('model', 'state_dict', 'net', 'model_state_dict', 'student')
_HEAD = re.compile(r'^(fc|linear|head|head\.fc|classifier(\.\d)?)\.(weight|bias)$')
_WRAPPERS = re.compile(r'^((module|_orig_mod|model|net|student)\.)*$')
_COUNTERS = ('num_batches_tracked', 'n_averaged')  # counts that mean nothing for the outputs
_LISTED = 8


def torch_name(path: str) -> str:
    """'layer1.0/conv1/kernel' -> 'layer1.0.conv1.weight'; `path` is inside 'params' or 'batch_stats'."""
    *module, leaf = path.split('/')
    return '.'.join([*module, _LEAVES.get(leaf, leaf)])


def to_torch(variables: PyTree) -> dict[str, np.ndarray]:
    """The state dict of a network: {PyTorch's name: array in PyTorch's layout}, with 'num_batches_tracked' of zero."""
    tensors: dict[str, np.ndarray] = {}
    statistics = {path: leaf for part in _stored(variables)[1:] for path, leaf in leaf_paths(variables[part]).items()}
    for path, leaf in {**leaf_paths(variables['params']), **statistics}.items():
        value = np.asarray(leaf)
        tensors[torch_name(path)] = np.ascontiguousarray(value.transpose(_TO_TORCH[value.ndim]))
        if path in statistics and path.endswith('/var'):
            tensors[torch_name(path).replace('running_var', 'num_batches_tracked')] = np.zeros((), np.int64)
    return dict(sorted(tensors.items()))


def from_torch(tensors: Mapping[str, np.ndarray], network: Network, image_shape: tuple[int, int, int]) -> PyTree:
    """The variables of `network` with the values of a state dict.

    Every tensor of the network is used exactly once, except 'num_batches_tracked'. The normalization constants are
    those of `network`: a state dict does not hold them.

    Args:
      tensors: {name: array}; all names of the network may have one prefix, found by what it leaves.
      network: what the tensors are the weights of.
      image_shape: (H, W, 3).

    Raises:
      ValueError: in one line that names what is missing, left over, of another shape, or not finite.
    """
    variables = network.init(jax.random.key(0), image_shape)
    wanted = {path: leaf for part in _stored(variables) for path, leaf in leaf_paths({part: variables[part]}).items()}
    names = {path: torch_name(path.partition('/')[2]) for path in wanted}
    prefix = find_prefix(tensors, {_canonical(name) for name in names.values()})
    given: dict[str, tuple[str, np.ndarray]] = {}
    for name, value in inside(tensors, prefix).items():
        if _canonical(name) in given:
            raise ValueError(f'{name} and {given[_canonical(name)][0]} are the same tensor of {network.name}')
        given[_canonical(name)] = (name, value)
    missing, shapes, values = [], [], {}
    for path, leaf in wanted.items():
        name = names[path]
        found, value = given.pop(_canonical(name), (name, None))
        if value is None:
            missing.append(name)
            continue
        if value.ndim == 2 and leaf.ndim == 4:  # a linear layer where ours is a convolution of size one
            value = value[:, :, None, None]
        order = _FROM_TORCH.get(value.ndim)
        if order is None or tuple(value.shape[axis] for axis in order) != leaf.shape:
            expected = tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim])
            shapes.append(f'{found} {value.shape} instead of {expected}')
            continue
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f'{found} holds NaN or infinity; the checkpoint is unusable')
        if name.endswith('running_var') and (value < 0).any():
            raise ValueError(f'{found} holds a negative variance; the checkpoint is unusable')
        values[path] = jnp.asarray(np.ascontiguousarray(value.transpose(order)))
    left_over = [name for name, _ in given.values()]
    lists = {'missing': _with_nearest(missing, left_over), 'left over': left_over, 'of another shape': shapes}
    problems = [f'{len(listed)} {word}: {_some(listed)}' for word, listed in lists.items() if listed]
    if problems:
        raise ValueError(f'these are not the weights of {network.name}: {"; ".join(problems)}')
    return merge(variables, values)


def _stored(variables: PyTree) -> list[str]:
    """The collections of a network's variables that PyTorch's files hold, parameters first."""
    others = [part for part in variables if part not in ('params', 'constants', 'dropout')]
    return ['params', *others]


def find_prefix(tensors: Mapping[str, np.ndarray], wanted: set[str]) -> str:
    """The prefix, '' or 'module.model.' or the like, under which the most `wanted` canonical names lie.

    Raises:
      ValueError: several that are no usual wrapper fit equally well ('teacher.' and 'momentum_teacher.').
    """
    counts: collections.Counter[str] = collections.Counter()
    for name in tensors:
        words = name.split('.')
        for cut in range(len(words)):
            if _canonical('.'.join(words[cut:])) in wanted:
                counts[''.join(f'{word}.' for word in words[:cut])] += 1
    if not counts:
        return ''
    most = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == most]
    usual = [prefix for prefix in best if _WRAPPERS.match(prefix)]
    if not usual and len(best) > 1:
        raise ValueError(f'it holds several networks, under {_some(sorted(best))}; save the one to use by itself')
    return min(usual or best, key=len)


def inside(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors under a prefix, without it and without counters."""
    short = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    return {name: value for name, value in short.items() if name.rpartition('.')[2] not in _COUNTERS}


def count_classes(tensors: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes by the classifier's bias; None where no tensor, or more than one, has its name."""
    suffixes = {name: name.split('.') for name in tensors}
    found = {
        len(tensors[name])
        for name, words in suffixes.items()
        if tensors[name].ndim == 1
        and any(_canonical('.'.join(words[cut:])) == 'head.bias' for cut in range(len(words)))
    }
    return found.pop() if len(found) == 1 else None


def outside(tensors: Mapping[str, np.ndarray], network: Network, image_shape: tuple[int, int, int]) -> list[str]:
    """The names that `from_torch` passes over because they lie outside the network's prefix."""
    shapes = network.variable_shapes(image_shape)
    paths = [path for part in _stored(shapes) for path in leaf_paths(shapes[part])]
    prefix = find_prefix(tensors, {_canonical(torch_name(path)) for path in paths})
    return [n for n in tensors if not n.startswith(prefix) and n.rpartition('.')[2] not in _COUNTERS]


def _canonical(name: str) -> str:
    """The same for names that mean the same in different public codes."""
    head = _HEAD.match(name)
    return f'head.{head[3]}' if head else name.replace('.shortcut.', '.downsample.')


def _with_nearest(missing: list[str], left_over: list[str]) -> list[str]:
    """The missing names, each listed one with the most similar name of the file."""
    near = {name: difflib.get_close_matches(name, left_over, n=1) for name in missing[:_LISTED]}
    return [f'{name} (nearest: {near[name][0]})' if near.get(name) else name for name in missing]


def _some(names: list[str]) -> str:
    more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
    return ', '.join(names[:_LISTED]) + more


def unwrap(content: Any) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tensors by name in a decoded checkpoint, and lines on what was chosen.

    Args:
      content: a state dict, or what holds one as 'state_dict', 'model' or the like; averaged weights
        ('state_dict_ema') are preferred.

    Raises:
      ValueError: when there are no weights.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f'no weights found: it holds a {type(content).__name__}, not a dictionary')
    if content and all(isinstance(value, np.ndarray) for value in content.values()):
        return content, ()
    for key in (*_AVERAGED, *_CONTAINERS):
        if isinstance(content.get(key), Mapping) and content[key]:
            tensors, notes = unwrap(content[key])
            others = [other for other in _CONTAINERS if isinstance(content.get(other), Mapping)]
            if key in _AVERAGED and others:
                notes = (f'read the averaged weights in {key!r}, not those in {others[0]!r}', *notes)
            return tensors, notes
    arrays = {key: value for key, value in content.items() if isinstance(value, np.ndarray)}
    if arrays:  # weights next to counters, in one dictionary
        return arrays, ()
    keys = _some([str(key) for key in content])
    raise ValueError(f'no weights found: none of {", ".join((*_AVERAGED, *_CONTAINERS))} among its keys ({keys})')


def state_dict(content: Any) -> dict[str, np.ndarray]:
    """The tensors of `unwrap`."""
    return dict(unwrap(content)[0])


def read(path: str | pathlib.Path, network: Network, image_shape: tuple[int, int, int]) -> PyTree:
    """The variables of `network` from a file of `torch.save`; nothing in the file is executed.

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
    """Writes a network's state dict as a file of `torch.save`, without a card."""
    pathlib.Path(path).write_bytes(torch_file.encode(to_torch(variables)))
