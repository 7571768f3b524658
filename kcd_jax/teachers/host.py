"""Teachers that answer on the host: a function of NumPy images, an ensemble; `outputs` has stored ones.

They are asked only before the steps of an epoch (`training.teacher_pass`), never inside a compiled program, so a
function may use any framework. In place of a network they have a `placeholder`, which has their shapes alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Network, Outputs, PyTree
from kcd_jax.runtime import distributed

NO_VARIABLES: Mapping[str, Any] = {'params': {}, 'batch_stats': {}, 'constants': {}}
PROBES = 8  # fixed images whose answers are part of a function's identity
MEANS = ('probabilities', 'logits')
_SUM = 1e-2  # by which probabilities, also of 16 bits, may miss a sum of 1
_SHOWN = 3  # points that a line names
_REASON = 300  # characters of a function's error in a line
_NEIGHBOURS = 1e-2  # by which answers may depend on the batch, as a share of the largest: rounding of 16 bits


@dataclasses.dataclass(frozen=True)
class Query:
    """Images that a teacher is asked about.

    Attributes:
      index: i32[P], their points in the training set, or their places among the held-out images.
      images: f32[P, H, W, 3] in [0, 1]; None for a teacher that reads none.
      view: i64[P], the number of each image's view; None where a point has no finite set of views.
      held_out: whether the images are held-out ones instead of training points.
    """

    index: np.ndarray
    images: np.ndarray | None = None
    view: np.ndarray | None = None
    held_out: bool = False


class Host(Protocol):
    """What answers on the host.

    Attributes:
      name: in lines and tables.
      kind: 'callable', 'outputs' or 'ensemble'.
      num_classes: K.
      embed_dim: D; 0 without embeddings.
      identity: of everything that decides an answer; '' while the size of the images is not known.
      macs: multiply-accumulates per image; None: not known.
      reads_images: whether `Query.images` is read.
      notes: lines for the user.
    """

    name: str
    kind: str
    num_classes: int
    embed_dim: int
    identity: str
    macs: int | None
    reads_images: bool
    notes: tuple[str, ...]

    def answer(self, query: Query, embed: bool = False) -> np.ndarray:
        """f32[P, K], or f32[P, K + D] with the embeddings.

        Raises:
          ValueError: in one line: an answer of another shape, or one that is not finite.
        """

    def bound(self, image_shape: tuple[int, int, int]) -> Host:
        """The same for images of a size, with its identity."""

    def recheck(self) -> None:
        """ValueError, on every process, if its answers changed since it was created; collective."""


def placeholder(host: Host) -> Network:
    """A network with the shapes of the host's answers. It answers NaN: nothing may compute with it."""

    classes, width = host.num_classes, host.embed_dim  # shapes are kept by network: that must not keep the host

    def apply(variables: PyTree, image: jax.Array, train: bool) -> tuple[Outputs, PyTree]:
        del train
        rows = image.shape[0]
        embed = jnp.full((rows, width), jnp.nan) if width else None
        return Outputs(jnp.full((rows, classes), jnp.nan), embed=embed), variables

    return Network(host.name, lambda *_: dict(NO_VARIABLES), apply)


def class_count(classes: int | Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """(K, class names or ()) of what the user gave as the classes.

    >>> class_count(['cat', 'dog']), class_count(10)
    ((2, ('cat', 'dog')), (10, ()))
    """
    number = classes if isinstance(classes, int | np.integer) and not isinstance(classes, bool) else None
    named = isinstance(classes, Sequence | np.ndarray) and not isinstance(classes, str) and np.ndim(classes) == 1
    names = tuple(map(str, classes)) if named else ()
    count = len(names) if number is None else int(number)
    if count < 2 or len({*names}) < len(names):
        raise ValueError(f'classes is {classes!r}; use at least two different class names, or their number')
    return count, names


def probes(image_shape: tuple[int, int, int]) -> np.ndarray:
    """f32[8, H, W, 3] in [0, 1]: the fixed images, the same on every machine."""
    count = PROBES * int(np.prod(image_shape))
    pixels = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(13)) % np.uint64(256)
    return (pixels.astype(np.float32) / np.float32(255)).reshape(PROBES, *image_shape)


# ---------------------------------------------------------------------------------------------------------- a function


@dataclasses.dataclass(frozen=True, eq=False)
class HostFunction:
    """A function f32[P, H, W, 3] -> logits f32[P, K] or (logits, embeddings f32[P, D]), as `Teacher.from_callable`.

    With `num_classes` 0 it returns embeddings alone.
    """

    function: Callable[[np.ndarray], Any]
    version: str
    num_classes: int
    embed_dim: int = 0
    macs: int | None = None
    image_shape: tuple[int, int, int] | None = None
    identity: str = ''
    kind: str = 'callable'
    reads_images: bool = True
    notes: tuple[str, ...] = ()
    _known: dict[Any, HostFunction] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Its version."""
        return self.version

    def bound(self, image_shape: tuple[int, int, int]) -> HostFunction:
        """As `Host.bound`; the function is called once per size."""
        if image_shape not in self._known:
            what = f'the teacher {self.version}, asked about {PROBES} images of {image_shape}'
            logits, embed = self._called(probes(image_shape), what)
            refuse_probabilities(logits, what)
            width = 0 if embed is None else embed.shape[1]
            found = dataclasses.replace(self, image_shape=image_shape, embed_dim=width)
            self._known[image_shape] = dataclasses.replace(found, identity=found._digest(logits, embed))
        return self._known[image_shape]

    def recheck(self) -> None:
        """As `Host.recheck`."""
        with distributed.together():
            self._recheck()

    def _recheck(self) -> None:
        what = f'the teacher {self.version}'
        images, asked = probes(self.image_shape), f'{what}, asked about {PROBES} images'
        answers = self._called(images, asked)
        if self._digest(*answers) != self.identity:
            raise ValueError(
                f'{what} gives other answers to the same {PROBES} images than when it was created; put its model into '
                'evaluation mode and make it deterministic'
            )
        half = PROBES // 2
        images[half:] *= 0.1  # dark neighbours shift whatever is a mean over the batch
        for known, found in zip(answers, self._called(images, asked), strict=True):
            if known is not None and known.size:
                difference = np.abs(known[:half] - found[:half]).max()
                if difference > _NEIGHBOURS * np.abs(known).max():
                    raise ValueError(
                        f'{what} gives answers that depend on the rest of the batch (by up to {difference:.3g}); '
                        'put its model into evaluation mode, as model.eval() in PyTorch'
                    )

    def _digest(self, logits: np.ndarray, embed: np.ndarray | None) -> str:
        digest = hashlib.sha256(json.dumps([self.version, self.num_classes, self.image_shape]).encode())
        for part in (logits,) if embed is None else (logits, embed):
            digest.update(f'{part.shape}'.encode() + np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def answer(self, query: Query, embed: bool = False) -> np.ndarray:
        """As `Host.answer`."""
        images = 'held-out images' if query.held_out else 'points'
        asked = list(dict.fromkeys(query.index.tolist()))
        first = ', '.join(map(str, asked[:_SHOWN])) + (', ...' if len(asked) > _SHOWN else '')
        what = f'the teacher {self.version}, asked about {len(query.index)} {images} ({first})'
        logits, found = self._called(query.images, what, query.index)
        return np.concatenate([logits, found], axis=1) if embed else logits

    def _called(
        self, images: np.ndarray, what: str, index: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(f32[P, K], f32[P, D] or None) of images, which the function may keep or change; `index`: their numbers."""
        try:
            found = self.function(np.array(images, np.float32))
        except Exception as error:
            reason = ' '.join(str(error).split())[:_REASON]
            raise ValueError(f'{what}, raised {type(error).__name__}{reason and f": {reason}"}') from error
        parts = found if isinstance(found, tuple | list) else (found,)
        if not self.num_classes:
            parts = (np.zeros((len(images), 0), np.float32), *parts)
        if len(parts) not in (1, 2):
            raise ValueError(f'{what}, returned {len(parts)} arrays; return logits, or (logits, embeddings)')
        try:
            arrays = [np.array(part, np.float32) for part in parts]  # copies: the function may use its memory again
        except Exception as error:
            kinds = ', '.join(type(part).__name__ for part in parts)
            of_torch = any(hasattr(part, 'detach') for part in parts)
            remedy = 'model(x).detach().cpu().float().numpy()' if of_torch else 'logits [P, K]'
            raise ValueError(f'{what}, returned {kinds}, which is no array of numbers; return {remedy}') from error
        widths = [self.num_classes, self.embed_dim or None]
        for name, array, width in zip(('logits', 'embeddings'), arrays, widths, strict=False):
            rows = f'[{len(images)}, {"D" if width is None else width}]'
            if array.ndim != 2 or len(array) != len(images) or (width and array.shape[1] != width):
                raise ValueError(f'{what}, returned {name} of shape {list(array.shape)} instead of {rows}')
            if not np.isfinite(array).all():
                row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
                where = 'in ' if index is None else f'for {index[row]}, '
                raise ValueError(f'{what}, returned {name} that are not finite, first {where}row {row} of the batch')
        if self.embed_dim and len(arrays) == 1:
            raise ValueError(f'{what}, returned logits alone; return (logits, embeddings), or leave out embed_dim')
        return arrays[0], arrays[1] if len(arrays) == 2 else None


def refuse_probabilities(logits: np.ndarray, what: str) -> None:
    """ValueError for rows f32[P, K] that are probabilities: their softmax would teach almost nothing."""
    if (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=_SUM):
        raise ValueError(f'{what}: every row is positive and sums to 1; give logits, e.g. log(p + 1e-8), not p')


# -------------------------------------------------------------------------------------------------------- an ensemble


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Several teachers that answer as one, as `Teacher.ensemble`.

    Attributes:
      members: `Teacher`s.
      weights: their shares; they sum to 1.
      mean: 'probabilities' or 'logits'.
    """

    members: tuple[Any, ...]
    weights: tuple[float, ...]
    mean: str
    num_classes: int
    kind: str = 'ensemble'
    embed_dim: int = 0

    @property
    def name(self) -> str:
        """Of all members."""
        return '+'.join(member.network.name for member in self.members)

    @property
    def macs(self) -> int | None:
        """None: the ledger adds up the members'."""
        return None

    @property
    def reads_images(self) -> bool:
        """Whether any member does."""
        return any(member.host is None or member.host.reads_images for member in self.members)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the members."""
        shares = ', '.join(f'{weight:g}' for weight in self.weights)
        of_members = (line for member in self.members for line in member.card.get('notes', ()))
        return (f'{self.name} is the mean of {self.mean} with weights {shares}', *of_members)

    @property
    def identity(self) -> str:
        """Of members, weights and mean."""
        known = [member.identity for member in self.members]
        text = json.dumps([known, self.weights, self.mean])
        return hashlib.sha256(text.encode()).hexdigest() if all(known) else ''

    @functools.cached_property
    def _variables(self) -> dict[Any, PyTree]:
        """{member: its variables on the device}, put there once."""
        return {member: jax.device_put(member.variables) for member in self.members if member.host is None}

    def bound(self, image_shape: tuple[int, int, int]) -> Ensemble:
        """As `Host.bound`."""
        return dataclasses.replace(self, members=tuple(member.for_images(image_shape) for member in self.members))

    def recheck(self) -> None:
        """As `Host.recheck`."""
        for member in self.members:
            if member.host is not None:
                member.host.recheck()

    def answer(self, query: Query, embed: bool = False) -> np.ndarray:
        """As `Host.answer`."""
        del embed
        total = np.zeros((len(query.index), self.num_classes), np.float64)
        for member, weight in zip(self.members, self.weights, strict=True):
            if member.host is not None:
                logits = member.host.answer(query)
            else:
                logits = np.asarray(_forward(member.network)(self._variables[member], query.images))
            total += weight * (_softmax(logits) if self.mean == 'probabilities' else logits.astype(np.float64))
        if self.mean == 'probabilities':
            total = np.log(np.maximum(total, np.finfo(np.float32).tiny))
        return total.astype(np.float32)


def of_members(members: Sequence[Any], weights: Sequence[float] | None, mean: str) -> Ensemble:
    """The ensemble of some teachers.

    Raises:
      ValueError: no two teachers, other classes, a weight that is not positive, an unknown mean.
    """
    members = list(members) if isinstance(members, Iterable) else [members]
    if not all(hasattr(member, 'card') for member in members):
        raise ValueError(f'the teachers of an ensemble are {members!r:.60}; give a list of Teachers')
    if len(members) < 2:
        raise ValueError(f'an ensemble of {len(members)} teachers; give at least two')
    if mean not in MEANS:
        raise ValueError(f'mean is {mean!r}; use one of {", ".join(MEANS)}')
    try:
        shares = np.ones(len(members)) if weights is None else np.array(weights, np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(0)
    if shares.shape != (len(members),) or not np.isfinite(shares).all() or (shares <= 0).any():
        raise ValueError(f'weights is {weights!r}; use one positive number for each of the {len(members)} teachers')
    counts = [member.card['num_classes'] for member in members]
    if len({*counts}) > 1:
        raise ValueError(f'the teachers of the ensemble know {", ".join(map(str, counts))} classes; use equal ones')
    names = [list(map(str, member.card['class_names'])) for member in members if member.card.get('class_names')]
    if not counts[0]:
        raise ValueError('the teachers of the ensemble give embeddings alone; an ensemble is a mean of logits')
    if any(one != names[0] for one in names):
        raise ValueError('the teachers of the ensemble name other classes, or in another order')
    shares = shares / shares.sum()
    return Ensemble(tuple(members), tuple(shares.tolist()), mean, counts[0])


@functools.lru_cache(maxsize=32)
def _forward(network: Network) -> Callable[[PyTree, np.ndarray], jax.Array]:
    """(variables, f32[P, H, W, 3]) -> f32[P, K], compiled once per network."""
    return jax.jit(lambda variables, images: network.apply(variables, images, False)[0].logits.astype(jnp.float32))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """f64[P, K]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
