"""Teachers: restored from any file of weights, or made of what answers on the host, and what is known of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import data, networks
from kcd_jax.contracts import NEEDS, Network, PyTree
from kcd_jax.networks._foreign import NOISE
from kcd_jax.networks.layers import Normalization, constants
from kcd_jax.teachers import fit, name_maps, torch_weights, weights_file
from kcd_jax.teachers import host as hosts
from kcd_jax.teachers import outputs as stored_outputs
from kcd_jax.teachers.chance import refuse_near_chance
from kcd_jax.teachers.weights_file import FILE, is_whole, save
from kcd_jax.trees import leaf_paths, merge

__all__ = ['FILE', 'Teacher', 'accuracy', 'is_whole', 'load', 'refuse_near_chance', 'save']

_LISTED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """What teaches: a frozen network, or what answers on the host.

    Attributes:
      network: the architecture; of a teacher on the host, a placeholder with its shapes.
      variables: {'params', 'batch_stats', 'constants'}; of a teacher on the host, empty.
      card: what is known about it: 'network', 'num_classes', 'class_names', 'image_shape', 'normalization' ('mean',
        'std'), 'dataset', 'accuracy', 'best_accuracy', 'epochs', 'seed', 'method', 'policy', 'commit'; a teacher from
        elsewhere has fewer entries.
      source: the path as given to `restore`; '' for a teacher built in Python.
      identity: sha256 of the tensors, the network's name, the normalization and the class names; computed when empty.
      host: what answers on the host; None for a network.
    """

    network: Network
    variables: PyTree
    card: dict[str, Any]
    source: str = ''
    identity: str = ''
    host: hosts.Host | None = None

    def __post_init__(self) -> None:
        if not self.identity and self.host is None:
            object.__setattr__(self, 'identity', _identity(self.network.name, self.variables, self.card))

    def __repr__(self) -> str:
        return f'Teacher({self.network.name}{", from " if self.source else ""}{self.source})'

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        network: str | Network = '',
        num_classes: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        normalization: Normalization | None = None,
        dtype: Any = jnp.float32,
        names: str | os.PathLike[str] | Mapping[str, str] = '',
    ) -> Teacher:
        """The teacher in a file, or the student that a run left in its folder.

        Args:
          path: a file of `save`; a run's folder; a PyTorch or safetensors state dict under any name.
          network: the network that the file must hold, by name; '' takes the file's word. One that was built in Python
            (`networks.from_linen`, ...) is given itself.
          num_classes: of the data; None takes the file's.
          image_shape: (H, W, 3) of the data; None takes the file's.
          normalization: what a file that does not say it was trained with: a name or (mean, std). None: the network's
            usual one, noted in the card, and `fits` refuses it for data that has its own.
          dtype: of the computation.
          names: how a PyTorch file's names become ours: a file of lines 'pattern -> name' (`name_maps`), or a mapping;
            '' knows PyTorch's own, timm's and Hugging Face's.

        Raises:
          ValueError: in one line: another network, number of classes or image size; a missing, damaged or incomplete
            file; a file that does not say what it is where that is not given.
        """
        file = weights_file.locate(path)
        content = weights_file.read(file)
        tensors = _named(content, names, file)
        card = dict(content.card)
        name = network.name if isinstance(network, Network) else network or card.get('network', '')
        if not name:
            known = ', '.join(networks.names())
            raise ValueError(
                f'{file} does not say which network it is; set teacher.name to one of {known} (for a member of an '
                'ensemble, import the file first: python -m kcd_jax teacher import)'
            )
        if card.get('network', name) != name:
            raise ValueError(f'{file} holds a {card["network"]}, not a {name}; set teacher.name={card["network"]}')
        classes = _agreed('num_classes', num_classes, card, file)
        if classes is None:
            classes = torch_weights.count_classes(tensors)
        shape = _agreed('image_shape', image_shape, card, file)
        if classes is None or shape is None:
            lacking = 'number of classes' if classes is None else 'image size'
            raise ValueError(f'{file} does not say its {lacking}; give num_classes and image_shape')
        pixels = _normalization(normalization, card, file)
        if isinstance(network, Network):
            built = network
        elif not network and name not in networks.names():
            raise ValueError(
                f'{file} holds a {name}, which is not an installed network; give the one that was built in '
                'Python (network=networks.from_linen(...), ...), or set KCD_JAX_PLUGINS to the folder of its file'
            )
        else:
            build = functools.partial(networks.get(name), classes, dtype=dtype)
            built = build() if pixels is None else build(normalization=pixels)
        try:
            if content.is_torch:
                variables = torch_weights.from_torch(tensors, built, shape)
                notes = [*content.notes, *_passed_over(tensors, built, shape)]
            else:
                variables, notes = _from_paths(tensors, built, shape), []
        except ValueError as error:
            raise ValueError(f'{file}: {error}') from None
        known = {
            'network': name,
            'num_classes': classes,
            'image_shape': list(shape),
            'normalization': weights_file.normalization(variables),
        }
        if content.is_torch:
            known |= {'source': file.name, 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()}
            known |= {'notes': notes} if notes else {}
            if pixels is None:
                known['normalization_assumed'] = True
        return cls(built, variables, {**card, **known}, os.fspath(path))

    @classmethod
    def from_network(
        cls,
        network: Network,
        image_shape: tuple[int, int, int],
        *,
        classes: int | Sequence[str] | None = None,
        variables: PyTree | None = None,
    ) -> Teacher:
        """A network that was built in Python, with the weights that it holds.

        Args:
          network: of `networks.from_nnx` or the like.
          image_shape: (H, W, 3) of the images.
          classes: the class names in the order of the logits, or their number; None: not known.
          variables: other ones than those that `network.init` returns; needed where that draws them at random, as for a
            linen module that was given without its own.

        Raises:
          ValueError: another number of class names than outputs; variables without a part that the network has.
        """
        if variables is None:
            variables = network.init(jax.random.key(0), tuple(image_shape))
        if lacking := sorted({*network.variable_shapes(tuple(image_shape))} - {*variables, NOISE}):
            raise ValueError(f'variables of {network.name} have no {lacking[0]!r}; give what network.init returns')
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        outputs = jax.eval_shape(lambda v, x: network.apply(v, x, False)[0], variables, image)
        count = outputs.logits.shape[1]
        unknown = classes is None or (np.ndim(classes) == 1 and not len(classes))
        known, names = (count, ()) if unknown else hosts.class_count(classes)
        if known != count:
            raise ValueError(f'{network.name} has {count} outputs and there are {known} classes')
        card: dict[str, Any] = {'network': network.name, 'num_classes': count, 'image_shape': list(image_shape)}
        card |= {'class_names': list(names)} if names else {}
        return cls(network, variables, {**card, 'normalization': weights_file.normalization(variables)})

    @classmethod
    def from_callable(
        cls,
        fn: Callable[[np.ndarray], Any],
        *,
        classes: int | Sequence[str] | None = None,
        version: str,
        image_shape: tuple[int, int, int] | None = None,
        embed_dim: int | None = None,
        macs: int | None = None,
    ) -> Teacher:
        """A function of NumPy images, in any framework; it is called on the host, before the steps of an epoch.

        Args:
          fn: f32[P, H, W, 3] in [0, 1] -> logits f32[P, K], or (logits, embeddings f32[P, D]). It normalises the
            images itself; the answer of an image must not depend on the others.
          classes: the class names in the order of the logits, or their number. None: `fn` returns embeddings alone.
          version: what the model is, in words; a new model needs a new one.
          image_shape: (H, W, 3); None takes the data's.
          embed_dim: D, checked if it is given.
          macs: multiply-accumulates per image, for the costs; None: not known.
        """
        if not callable(fn):
            raise ValueError(f'fn is {fn!r}; use a function of images')
        if not isinstance(version, str) or not version.strip():
            raise ValueError(f'version is {version!r}; use some words that name the model')
        count, names = (0, ()) if classes is None else hosts.class_count(classes)
        function = hosts.HostFunction(fn, version, count, embed_dim or 0, macs)
        return _of_host(function if image_shape is None else function.bound(tuple(image_shape)), names)

    @classmethod
    def from_outputs(
        cls,
        train: Any = None,
        test: Any = None,
        *,
        embed: Any = None,
        test_embed: Any = None,
        classes: int | Sequence[str] | None = None,
        name: str = '',
    ) -> Teacher:
        """Logits or embeddings that were computed before, anywhere.

        Args:
          train: [N, K], one answer per training point, used for all of its views; or [N, V, K] for its V views in the
            order of docs/teachers.md; or a .npz or .safetensors file with arrays of these names. None: no logits.
          test: [M, K] of the held-out images, next to `train`; without them the teacher's accuracy is not known.
          embed: [N, D] or [N, V, D], the embeddings of the training points, for methods that read them.
          test_embed: [M, D] of the held-out images, which method embed is evaluated on.
          classes: the class names in the order of the logits, or their number; None: K.
          name: in lines and tables.
        """
        found, names, source = stored_outputs.stored(train, test, embed, test_embed, classes, name)
        return _of_host(found, names, source)

    @classmethod
    def ensemble(
        cls, teachers: Sequence[Teacher], weights: Sequence[float] | None = None, mean: str = 'probabilities'
    ) -> Teacher:
        """Several teachers of any kind that answer as one.

        Args:
          teachers: of the same classes.
          weights: their shares, positive; None: equal ones.
          mean: of 'probabilities' (their logarithm is the answer) or of 'logits'.
        """
        found = hosts.of_members(teachers, weights, mean)
        return _of_host(found, next((t.card['class_names'] for t in teachers if t.card.get('class_names')), ()))

    @property
    def members(self) -> tuple[Teacher, ...]:
        """Those of an ensemble."""
        return getattr(self.host, 'members', ())

    @property
    def serves(self) -> frozenset[str]:
        """What it can give, from `contracts.NEEDS`."""
        if self.host is None:
            return frozenset(NEEDS)
        found = {'logits': self.host.num_classes, 'embed': self.host.embed_dim}
        return frozenset(name for name, width in found.items() if width)

    def for_images(self, image_shape: tuple[int, int, int]) -> Teacher:
        """Itself; a teacher on the host that does not know the size of its images yet, with that."""
        if self.host is None or self.host.identity:
            return self
        return _of_host(self.host.bound(tuple(image_shape)), self.card.get('class_names', ()), self.source)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the teacher as one safetensors file that holds its card, whole or not at all."""
        if self.host is not None:
            raise ValueError(f'the teacher {self.network.name} is no network of this package and cannot be saved')
        save(path, self.variables, self.card)

    def fits(self, dataset: data.Dataset) -> list[str]:
        """Compares what the teacher was trained on with the data that it will teach on.

        Returns:
          Warnings: what differs or cannot be checked, and may be harmless.

        Raises:
          ValueError: another number of classes, other class names or another order, another image size, or a
            normalization that is only assumed where the data has its own; of any member, for an ensemble.
        """
        of_members = [line for member in self.members for line in member.fits(dataset)]
        own = [*fit.compare_classes(self, dataset), *fit.compare_images(self, dataset)]
        return list(dict.fromkeys([*own, *of_members]))


def _of_host(host: hosts.Host, class_names: Sequence[str], source: str = '') -> Teacher:
    card: dict[str, Any] = {'network': host.name, 'kind': host.kind, 'num_classes': host.num_classes}
    card |= {'class_names': list(class_names)} if class_names else {}
    card |= {'notes': list(host.notes)} if host.notes else {}
    if shape := getattr(host, 'image_shape', None):
        card['image_shape'] = list(shape)
    return Teacher(hosts.placeholder(host), dict(hosts.NO_VARIABLES), card, source, host.identity, host)


def _named(
    content: weights_file.Weights, names: str | os.PathLike[str] | Mapping[str, str], file: pathlib.Path
) -> dict[str, np.ndarray]:
    """A file's tensors under our names; those of our own format have them."""
    if not content.is_torch:
        if names:
            raise ValueError(f'{file} has the names of this package; a map of names is for the files of others')
        return content.tensors
    rules = name_maps.read(names) if names else name_maps.usual(content.tensors)
    try:
        return name_maps.renamed(content.tensors, rules)
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from None


def _agreed(key: str, given: Any, card: dict[str, Any], file: pathlib.Path) -> Any:
    """The card's value or the given one, as a number or a tuple; ValueError where they differ."""
    plain = tuple if key == 'image_shape' else int
    found = card.get(key)
    if found is None or given is None:
        chosen = given if found is None else found
        return None if chosen is None else plain(chosen)
    if plain(found) != plain(given):
        if key == 'num_classes':
            raise ValueError(
                f'the teacher in {file} knows {found} classes and the data has {given}; use a teacher of these classes'
            )
        raise ValueError(
            f'the teacher in {file} was trained on images of {fit.size_text(found)} and the data has '
            f'{fit.size_text(given)}; use a teacher of this size, or load the data at its size'
        )
    return plain(found)


def _normalization(given: Normalization | None, card: dict[str, Any], file: pathlib.Path) -> Normalization | None:
    """(mean, std) of the card, or the given one; None where nobody says."""
    if not card.get('normalization'):
        return given
    pixels = tuple(tuple(float(x) for x in card['normalization'][part]) for part in ('mean', 'std'))
    if given is not None:
        wanted = constants(given)
        for part, ours in zip(('mean', 'std'), pixels, strict=True):
            if not np.allclose(wanted[part], ours, atol=1e-4):
                raise ValueError(
                    f'{file} was trained with {part} {ours}, not with the given normalization; leave that out'
                )
    return pixels


def _from_paths(tensors: dict[str, np.ndarray], network: Network, image_shape: tuple[int, int, int]) -> PyTree:
    """The variables in a file of `save`; ValueError where they are not this network's, or not finite."""
    abstract = network.variable_shapes(image_shape)
    expected = leaf_paths(abstract)
    wrong = {*expected} ^ {*tensors} | {n for n in {*expected} & {*tensors} if expected[n].shape != tensors[n].shape}
    if wrong:
        differ = f'{len(wrong)} tensors differ, the first is {min(wrong)}'
        raise ValueError(f'the file does not fit a {network.name}: {differ}')
    bad = next((name for name, array in tensors.items() if not np.isfinite(array).all()), None)
    if bad:
        raise ValueError(f'the file holds numbers that are not finite, first in {bad}; export it again')
    return merge(abstract, tensors)


def _passed_over(tensors: dict[str, np.ndarray], network: Network, image_shape: tuple[int, int, int]) -> list[str]:
    names = torch_weights.outside(tensors, network, image_shape)
    if not names:
        return []
    more = ', ...' if len(names) > _LISTED else ''
    return [f'{len(names)} tensors of the file are not of the network: {", ".join(names[:_LISTED])}{more}']


def _identity(name: str, variables: PyTree, card: dict[str, Any]) -> str:
    classes = card.get('class_names')
    digest = hashlib.sha256(json.dumps([name, None if classes is None else list(map(str, classes))]).encode())
    for path, leaf in sorted(leaf_paths(jax.device_get(variables)).items()):  # 'constants' holds the normalization
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path} {array.dtype} {array.shape}'.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- what it knows


def accuracy(network: Network, variables: PyTree, images: np.ndarray, labels: np.ndarray, batch: int = 500) -> float:
    """The fraction of images u8[N, H, W, 3] whose label i32[N] has the largest logit, each counted once."""

    @functools.partial(jax.jit, static_argnums=2)
    def predict(variables: PyTree, images: jax.Array, network: Network) -> jax.Array:
        outputs, _ = network.apply(variables, images.astype(jnp.float32) / 255.0, False)
        return jnp.argmax(outputs.logits, axis=-1)

    hits = 0
    for start in range(0, len(labels), batch):
        part = np.asarray(images[start : start + batch])
        padded = np.pad(part, ((0, min(batch, len(labels)) - len(part)), (0, 0), (0, 0), (0, 0)))
        predicted = np.asarray(predict(variables, padded, network))[: len(part)]
        hits += int(np.sum(predicted == labels[start : start + batch]))
    return hits / len(labels)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """({path of a leaf: array}, card) of a file of `save`.

    Raises:
      ValueError: the file is missing, damaged, or not one of `save`'s.
    """
    content = weights_file.read(path)
    if content.is_torch:
        raise ValueError(f'{path} cannot be read as a teacher (it has no card); it may be damaged: export it again')
    return content.tensors, content.card
