"""Teachers: saved with a card, restored from a file or from the folder of a run, and refused when they know nothing.

python -m kcd_jax teacher import FILE.pth --network=wrn_40_2 --dataset=cifar100 --out=FILE.safetensors
python -m kcd_jax teacher export RUN_FOLDER_OR_FILE --out=FILE.pth
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import pathlib
import sys
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from kcd_jax import data, networks
from kcd_jax.contracts import Network, PyTree
from kcd_jax.networks.layers import NORMALIZATIONS, Normalization
from kcd_jax.runtime import files
from kcd_jax.teachers import torch_weights
from kcd_jax.trees import leaf_paths, merge

SMOKE_STEPS = 100  # a teacher of fewer is trained to see that the program works
FILE = 'student.safetensors'  # what a run leaves of its student: the teacher of the next run
_TORCH = ('.pth', '.pt', '.tar')


def save(path: str | os.PathLike[str], variables: PyTree, card: dict[str, Any]) -> None:
    """Writes the variables as safetensors, whole or not at all.

    Args:
      path: of the file. variables: {'params', 'batch_stats', 'constants'}.
      card: 'network', 'num_classes', 'image_shape', 'dataset', 'accuracy', ...; kept as JSON in the file's metadata.
    """
    path = pathlib.Path(path)
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in leaf_paths(jax.device_get(variables)).items()}
    text = json.dumps(card, sort_keys=True, default=str)
    files.write_bytes(path, to_bytes(tensors, {'card': text, 'crc32': _digest(text, tensors)}))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """({path of a leaf: array}, card) of a file of `save`.

    Raises:
      ValueError: the file is missing, damaged, or not one of `save`'s.
    """
    path = pathlib.Path(path)
    try:
        with safe_open(path, framework='numpy') as file:
            metadata = file.metadata() or {}
            card, tensors = json.loads(metadata['card']), {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get('crc32', found := _digest(metadata['card'], tensors)) != found:
            raise ValueError('it does not agree with its digest')
        return tensors, card
    except FileNotFoundError:
        raise ValueError(f'there is no teacher at {path}; train one, or name its file in teacher.checkpoint') from None
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ValueError(f'{path} cannot be read as a teacher ({error}); it may be damaged: export it again') from error


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file of `save` that agrees with its digest."""
    try:
        load(path)
    except ValueError:
        return False
    return True


def _digest(card: str, tensors: dict[str, np.ndarray]) -> str:
    """CRC-32 of the card and of the tensors' bytes, by name: safetensors itself notices no flipped byte."""
    result = zlib.crc32(card.encode())
    for _, tensor in sorted(tensors.items()):
        result = zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data, result)
    return str(result)


def restore(
    name: str,
    source: str | os.PathLike[str],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: Any = jnp.float32,
    normalization: Normalization | None = None,
) -> tuple[Network, PyTree, dict[str, Any]]:
    """The teacher in a file, or the student that a run left in its folder.

    Args:
      name: the network that it must be; '' takes the card's word.
      source: .safetensors file, a run's folder, or a PyTorch checkpoint (.pth, .pt, .tar), which has no card.
      num_classes, image_shape: of the data it will teach on. dtype: of its computation.
      normalization: what a PyTorch checkpoint was trained with, a name or (mean, std); None: the network's usual one.
        A .safetensors file brings its own.

    Returns:
      (network, variables, card).

    Raises:
      ValueError: another network, another number of classes, a missing, damaged or incomplete file.
    """
    path = _file(source)
    if path.suffix in _TORCH:
        return _restore_torch(name, path, num_classes, image_shape, dtype, normalization)
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
        differ = f'{len(wrong)} tensors differ, the first is {wrong[0]}'
        raise ValueError(f'{path} does not fit a {card["network"]}: {differ}')
    bad = next((n for n, array in tensors.items() if not np.isfinite(array).all()), None)
    if bad:
        raise ValueError(f'{path} holds numbers that are not finite, first in {bad}; export it again')
    return network, merge(abstract, tensors), card


def like(card: dict[str, Any], image_shape: tuple[int, int, int], dtype: Any) -> tuple[Network, PyTree]:
    """(network, variables of zeros) of the teacher that a card describes."""
    network = networks.get(card['network'])(card['num_classes'], dtype=dtype)
    abstract = jax.eval_shape(lambda key: network.init(key, image_shape), jax.random.PRNGKey(0))
    return network, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)


def _restore_torch(
    name: str,
    path: pathlib.Path,
    num_classes: int,
    image_shape: tuple[int, int, int],
    dtype: Any,
    normalization: Normalization | None,
) -> tuple[Network, PyTree, dict[str, Any]]:
    """`restore` of a PyTorch checkpoint, with a card made up of what is known."""
    if not name:
        known = ', '.join(networks.names())
        raise ValueError(f'{path} does not say which network it is; set teacher.name to one of {known}')
    chosen = {} if normalization is None else {'normalization': normalization}
    network = networks.get(name)(num_classes, dtype=dtype, **chosen)
    variables = torch_weights.read(path, network, image_shape)
    card = {
        'network': name,
        'num_classes': num_classes,
        'image_shape': list(image_shape),
        'normalization': _pixels(variables),
        'source': path.name,
        'sha256': hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return network, variables, card


def refuse_near_chance(accuracy: float, num_classes: int, steps: int | None = None) -> str:
    """ValueError for a teacher that knows little more than chance: a student would learn that.

    The bound is twice chance, or 1.5 times where there are few classes. `steps`: how many it was trained for by the run
    itself; fewer than SMOKE_STEPS are a test of the program.

    Returns:
      A line that says so of such a test, else ''.
    """
    chance = 1 / num_classes
    bound = min(2 * chance, 0.5 * (1 + chance))
    if accuracy >= bound:
        return ''
    found = f'the teacher is right on {100 * accuracy:.2f} % of the test images, and chance is {100 * chance:.2f} %'
    if steps is not None and steps < SMOKE_STEPS:
        return f'{found}, after {steps} steps: this run tests the program, and its numbers mean nothing'
    raise ValueError(f'{found}; check its normalization, the order of its labels and its data set, or train it longer')


def accuracy(network: Network, variables: PyTree, images: np.ndarray, labels: np.ndarray, batch: int = 500) -> float:
    """The share of u8[N, H, W, 3] images whose label i32[N] the network's largest logit names, each counted once."""

    @functools.partial(jax.jit, static_argnums=2)
    def correct(variables: PyTree, images: jax.Array, network: Network) -> jax.Array:
        outputs, _ = network.apply(variables, images.astype(jnp.float32) / 255.0, False)
        return jnp.argmax(outputs.logits, axis=-1)

    hits = 0
    for start in range(0, len(labels), batch):
        part = np.asarray(images[start : start + batch])
        padded = np.pad(part, ((0, min(batch, len(labels)) - len(part)), (0, 0), (0, 0), (0, 0)))
        predicted = np.asarray(correct(variables, padded, network))[: len(part)]
        hits += int(np.sum(predicted == labels[start : start + batch]))
    return hits / len(labels)


# -------------------------------------------------------------------------------------------------------- command line


def import_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    network: str,
    dataset: data.Dataset,
    normalization: Normalization | None = None,
) -> dict[str, Any]:
    """Imports a PyTorch checkpoint as a .safetensors teacher, evaluated on the test images.

    Args:
      source: the checkpoint. out: the file to write. network: its name.
      dataset: what it was trained on. normalization: what it was trained with; None: the network's usual one.

    Returns:
      The card, with 'accuracy' on the test images.

    Raises:
      ValueError: the file is refused, or its accuracy is near chance; then nothing is written.
    """
    restored, variables, card = restore(
        network,
        source,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        normalization=normalization,
    )
    card['dataset'] = dataset.name
    card['accuracy'] = accuracy(restored, variables, dataset.test.images, dataset.test.labels)
    refuse_near_chance(card['accuracy'], dataset.num_classes)
    save(out, variables, card)
    return card


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    about = 'Teachers in from PyTorch and out to it.'
    parser = argparse.ArgumentParser(prog='python -m kcd_jax teacher', description=about)
    commands = parser.add_subparsers(dest='command', required=True)
    entry = commands.add_parser('import', help='a PyTorch checkpoint becomes a .safetensors teacher')
    entry.add_argument('file')
    entry.add_argument('--network', required=True, help='its name, as wrn_40_2')
    entry.add_argument('--dataset', required=True, help='what it was trained on; its test images are evaluated')
    entry.add_argument('--data_dir', default='', help="where the data is; default: the data set's usual place")
    sets = ', '.join(NORMALIZATIONS)
    entry.add_argument('--normalization', default='', help=f"one of {sets}; default: the network's")
    entry.add_argument('--out', default='', help='default: beside the checkpoint, as .safetensors')
    way_out = commands.add_parser('export', help="a teacher or a run's student becomes a PyTorch state_dict")
    way_out.add_argument('file', help=".safetensors file or a run's folder")
    way_out.add_argument('--out', required=True, help='the .pth file to write')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; a user's mistake is one line and status 1."""
    arguments = _arguments(argv)
    try:
        if arguments.command == 'export':
            _, card = load(_file(arguments.file))
            shape = {'num_classes': card['num_classes'], 'image_shape': tuple(card['image_shape'])}
            _, variables, _ = restore('', arguments.file, **shape)
            torch_weights.write(arguments.out, variables)
            print(f'{card["network"]} written to {arguments.out}; a state_dict holds no normalization, keep it:')
            print(_pixels(variables))
            return 0
        out = arguments.out or str(pathlib.Path(arguments.file).with_suffix('.safetensors'))
        dataset = data.load(arguments.dataset, arguments.data_dir or None)
        chosen = arguments.normalization or None
        card = import_file(arguments.file, out, network=arguments.network, dataset=dataset, normalization=chosen)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{card["network"]} from {card["source"]}, sha256 {card["sha256"]}')
    print(f'test accuracy on {card["dataset"]}: {100 * card["accuracy"]:.2f} %')
    print(f'written to {out}; use it with --config.teacher.checkpoint={out}')
    return 0


def _file(source: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(source)
    return path / FILE if path.is_dir() else path


def _pixels(variables: PyTree) -> dict[str, list[float]]:
    """{'mean', 'std'} of the channels, for people to read."""
    return {part: [round(float(x), 5) for x in value] for part, value in variables['constants'].items()}


if __name__ == '__main__':
    sys.exit(main())
