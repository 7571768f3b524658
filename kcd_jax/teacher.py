"""Teachers: saved with a card, restored from a file or from the folder of a run, and refused when they know nothing."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kcd_jax import networks
from kcd_jax.spec import Network, PyTree, leaf_paths, merge

FILE = 'student.safetensors'  # what a run leaves of its student: the teacher of the next run


def save(path: str | os.PathLike[str], variables: PyTree, card: dict[str, Any]) -> None:
    """Writes the variables as safetensors, whole or not at all.

    Args:
      path: of the file. variables: {'params', 'batch_stats', 'constants'}.
      card: 'network', 'num_classes', 'image_shape', 'dataset', 'accuracy', ...; kept as JSON in the file's metadata.
    """
    path = pathlib.Path(path)
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in leaf_paths(jax.device_get(variables)).items()}
    partial = path.with_name(f'.{path.name}.partial')
    save_file(tensors, partial, metadata={'card': json.dumps(card, sort_keys=True, default=str)})
    os.replace(partial, path)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """({path of a leaf: array}, card) of a file of `save`.

    Raises:
      ValueError: the file is missing, damaged, or not one of `save`'s.
    """
    path = pathlib.Path(path)
    try:
        with safe_open(path, framework='numpy') as file:
            card = json.loads((file.metadata() or {})['card'])
            return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise ValueError(f'there is no teacher at {path}; train one, or name its file in teacher.checkpoint') from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f'{path} cannot be read as a teacher ({error}); it may be damaged: export it again') from error


def restore(
    name: str, source: str | os.PathLike[str], *, num_classes: int, image_shape: tuple[int, int, int], dtype: Any = jnp.float32
) -> tuple[Network, PyTree, dict[str, Any]]:
    """The teacher in a file, or the student that a run left in its folder.

    Args:
      name: the network that it must be; '' takes the card's word. source: .safetensors file or a run's folder.
      num_classes, image_shape: of the data it will teach on. dtype: of its computation.

    Returns:
      (network, variables, card).

    Raises:
      ValueError: another network, another number of classes, a missing, damaged or incomplete file.
    """
    path = pathlib.Path(source)
    path = path / FILE if path.is_dir() else path
    tensors, card = load(path)
    if name and card['network'] != name:
        raise ValueError(f'{path} holds a {card["network"]}, not a {name}; set teacher.name={card["network"]}')
    if card['num_classes'] != num_classes:
        raise ValueError(
            f'the teacher in {path} knows {card["num_classes"]} classes and the data has {num_classes}; '
            'use a teacher of these classes'
        )
    network = networks.get(card['network'])(num_classes, dtype=dtype)
    abstract = jax.eval_shape(lambda key: network.init(key, image_shape), jax.random.PRNGKey(0))
    expected = leaf_paths(abstract)
    wrong = sorted(
        {*expected} ^ {*tensors} | {n for n in {*expected} & {*tensors} if expected[n].shape != tensors[n].shape}
    )
    if wrong:
        raise ValueError(f'{path} does not fit a {card["network"]}: {len(wrong)} tensors differ, the first is {wrong[0]}')
    bad = next((n for n, array in tensors.items() if not np.isfinite(array).all()), None)
    if bad:
        raise ValueError(f'{path} holds numbers that are not finite, first in {bad}; export it again')
    return network, merge(abstract, tensors), card


def refuse_near_chance(accuracy: float, num_classes: int) -> None:
    """ValueError for a teacher that knows little more than chance: a student would learn that.

    The bound is twice chance, or 1.5 times where there are few classes.
    """
    chance = 1 / num_classes
    bound = min(2 * chance, 0.5 * (1 + chance))
    if not accuracy >= bound:
        raise ValueError(
            f'the teacher is right on {100 * accuracy:.2f} % of the test images, and chance is {100 * chance:.2f} %; '
            'check its normalization, the order of its labels and its data set, or train it longer'
        )
