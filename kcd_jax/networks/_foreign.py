"""Models of other frameworks as `Network`s: what `from_linen`, `from_nnx`, `from_equinox` and `from_keras` share.

A foreign model keeps its own parameters, initial values and layout. What is added: the normalisation of the image, the
feature maps and the embedding by the paths of its modules, and the random keys of its dropout, which are a pure
function of the network's key and of the number of training passes so far.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kcd_jax import networks
from kcd_jax.contracts import Array, Network, Outputs, PyTree
from kcd_jax.networks.layers import Normalization, constants

# (params, state, image, train, key) -> (what the model returned, {tap: its output}, the new state).
Forward = Callable[[PyTree, Mapping[str, PyTree], Array, bool, 'Array | None'], tuple[Any, Mapping[str, Any], PyTree]]
Embed = str | Callable[[tuple[Array, ...]], Array] | None

NOISE = 'dropout'  # the collection of the key and the counter
_NOISE_STREAM = 0x6B63
_TRAIN = ('train', 'training', 'is_training')
_EVAL = ('deterministic', 'inference', 'use_running_average')
_LISTED = 12


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is read of a model: its logits, and the outputs of some of its modules.

    Attributes:
      name: of the network.
      classes: K, compared with the logits; None takes theirs.
      taps: paths of the modules whose outputs are `Outputs.feats`, the first of which counts as the stem's.
      preacts: paths of those that are `Outputs.preacts`.
      embed: the path of a module, or a function of the tuple of the taps' outputs; None: no embedding.
    """

    name: str
    classes: int | None
    taps: Sequence[str]
    preacts: Sequence[str]
    embed: Embed

    def __post_init__(self) -> None:
        networks.refuse_name(self.name)
        for field in ('taps', 'preacts'):
            value = getattr(self, field)
            if isinstance(value, str) or not all(isinstance(path, str) and path for path in value):
                raise ValueError(f"{field} is {value!r}; use a tuple of the paths of modules, as ('block1', 'block4')")
            object.__setattr__(self, field, tuple(plain_path(path) for path in value))
        if isinstance(self.embed, str):
            object.__setattr__(self, 'embed', plain_path(self.embed))
        elif self.embed is not None and not callable(self.embed):
            raise ValueError(f'embed is {self.embed!r}; use the path of a module or a function of the taps')

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all modules whose outputs are read."""
        embed = (self.embed,) if isinstance(self.embed, str) else ()
        return tuple(dict.fromkeys((*self.taps, *self.preacts, *embed)))

    def outputs(self, returned: Any, tapped: Mapping[str, Any]) -> Outputs:
        """The outputs, float32; ValueError in one line where a shape is not what the methods take."""
        if isinstance(returned, Outputs):
            found = returned.replace(
                feats=tuple(self.as_map('feats', feat) for feat in returned.feats),
                preacts=tuple(self.as_map('preacts', feat) for feat in returned.preacts),
            )
        else:
            feats = tuple(tapped[path] for path in self.taps)
            embed = tapped[self.embed] if isinstance(self.embed, str) else self.embed and self.embed(feats)
            found = Outputs(
                logits=_logits(returned),
                feats=tuple(self.as_map(path, feat) for path, feat in zip(self.taps, feats, strict=True)),
                preacts=tuple(self.as_map(path, tapped[path]) for path in self.preacts),
                embed=None if embed is None else self._as_vector(embed),
            )
        if getattr(found.logits, 'ndim', 0) != 2:
            shape = list(getattr(found.logits, 'shape', ()))
            raise ValueError(f'{self.name} returns {shape or type(returned).__name__}; it must return logits [B, K]')
        if self.classes not in (None, found.logits.shape[1]):
            raise ValueError(f'{self.name} has {found.logits.shape[1]} outputs, not the {self.classes} of classes=')
        if not jnp.issubdtype(found.logits.dtype, jnp.floating):
            raise ValueError(f'{self.name} returns {found.logits.dtype}; it must return logits, which are floats')
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found)

    def as_map(self, path: str, x: Any) -> Array:
        """A feature map [B, h, w, c]; tokens [B, T, D], with or without a class token before them, become one."""
        shape = getattr(x, 'shape', ())
        if len(shape) == 4:
            return x
        if len(shape) == 3:
            for skipped in (0, 1):
                side = math.isqrt(max(shape[1] - skipped, 0))
                if side and side * side == shape[1] - skipped:
                    return x[:, skipped:].reshape(shape[0], side, side, shape[2])
            raise ValueError(f'the tap {path} of {self.name} gives {shape[1]} tokens, which are no square map')
        raise ValueError(
            f'the tap {path} of {self.name} gives {list(shape) or type(x).__name__}; feature maps are [B, h, w, c] or '
            'tokens [B, T, D]'
        )

    def _as_vector(self, x: Any) -> Array:
        shape = getattr(x, 'shape', ())
        if len(shape) == 4:
            return jnp.mean(x, (1, 2))
        if len(shape) == 2:
            return x
        raise ValueError(
            f'the embedding of {self.name} is {list(shape) or type(x).__name__}; give a module of vectors [B, D] or of '
            'maps, or a function of the taps: embed=lambda taps: taps[-1][:, 0]'
        )

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """ValueError for a path that is no module of the model: the nearest ones, or some of those there are."""
        known = sorted({plain_path(path) for path in known} - {''})
        for path in self.paths:
            if path not in known:
                near = difflib.get_close_matches(path, known, n=3)
                more = ', ...' if len(known) > _LISTED else ''
                hint = f'nearest: {", ".join(near)}' if near else f'it has {", ".join(known[:_LISTED])}{more}'
                raise ValueError(f'{self.name} has no module {path!r} that is called; {hint}')


def _logits(returned: Any) -> Any:
    """The logits in what a model returned: an array, or an object or mapping that has `logits`."""
    if isinstance(returned, Mapping):
        return returned.get('logits')
    return getattr(returned, 'logits', returned)


def plain_path(path: str) -> str:
    """'layers[0].conv' and 'layers.0.conv' as 'layers/0/conv'."""
    return re.sub(r'[./\[\]]+', '/', path).strip('/')


def network(
    reading: Reading,
    init: Callable[[Array, tuple[int, int, int]], tuple[PyTree, Mapping[str, PyTree], bool]],
    forward: Forward,
    normalization: Normalization,
    tail: tuple[str, ...] = (),
) -> Network:
    """A foreign model as a `Network`.

    Args:
      reading: its name, and what is read of it.
      init: (key, image_shape) -> (params, state, whether its training passes need a random key).
      forward: see `Forward`; it gets the normalised image in float32.
      normalization: see `layers.constants`.
      tail: see `Network.tail`.
    """
    pixels = constants(normalization)

    def own_init(key: Array, image_shape: tuple[int, int, int]) -> PyTree:
        if len(image_shape) != 3 or image_shape[2] != 3:
            raise ValueError(f'{reading.name} takes images of three channels, found {tuple(image_shape)}')
        with ordinary_promotion(), _one_line(reading.name, image_shape):
            params, state, noisy = init(key, tuple(image_shape))
        if taken := {'constants', NOISE} & {*state}:
            raise ValueError(f'the collection {taken.pop()!r} of {reading.name} has a name that is in use; rename it')
        # Copies: a run donates its state, and the user's model must live on.
        own = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), {'params': params, **state, 'constants': pixels})
        if noisy:
            data = key if key.dtype == jnp.uint32 else jax.random.key_data(key)
            noise = jax.random.fold_in(jax.random.wrap_key_data(data), _NOISE_STREAM)
            own[NOISE] = {'key': jax.random.key_data(noise), 'passes': jnp.zeros((), jnp.int32)}
        return own

    def apply(variables: PyTree, image: Array, train: bool) -> tuple[Outputs, PyTree]:
        state = {name: tree for name, tree in variables.items() if name != 'params'}
        inner = {name: tree for name, tree in state.items() if name not in ('constants', NOISE)}
        mean, std = (state['constants'][part].reshape(1, 1, 1, 3) for part in ('mean', 'std'))
        key = None
        if train and NOISE in state:
            noise = state[NOISE]
            key = jax.random.fold_in(jax.random.wrap_key_data(noise['key']), noise['passes'])
            state = {**state, NOISE: {**noise, 'passes': noise['passes'] + 1}}
        with ordinary_promotion(), _one_line(reading.name, image.shape[1:]):
            returned, tapped, changed = forward(variables['params'], inner, (image - mean) / std, train, key)
            outputs = reading.outputs(returned, tapped)
        if outputs.logits.shape[0] != image.shape[0]:
            found, given = outputs.logits.shape[0], image.shape[0]
            raise ValueError(f'{reading.name} returns {found} rows for {given} images; return one row per image')
        return outputs, {**state, **changed} if train else state

    return Network(name=reading.name, init=own_init, apply=apply, tail=tail)


@contextlib.contextmanager
def ordinary_promotion() -> Iterator[None]:
    """JAX's ordinary promotion of dtypes and ranks, which foreign models are written for."""
    with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
        yield


@contextlib.contextmanager
def _one_line(name: str, image_shape: Sequence[int]) -> Iterator[None]:
    """Converts what a framework or the model raises into one line that names the model, the images and the error."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip()
        if isinstance(error, ValueError) and '\n' not in reason:
            raise
        shown = f'{type(error).__name__}: {" ".join(reason.split())[:300]}'
        raise ValueError(f'{name} fails on images of {list(image_shape)}: {shown}') from error


def mode_argument(call: Callable[..., Any]) -> Callable[[bool], dict[str, bool]]:
    """train -> the argument by which a model's call is told; {} if it takes none."""
    known = inspect.signature(call).parameters
    for name in (*_TRAIN, *_EVAL):
        if name in known:
            return lambda train, name=name: {name: train if name in _TRAIN else not train}
    return lambda train: {}


# -------------------------------------------------------------------------------- the outputs of modules by identity


@functools.lru_cache(maxsize=256)
def _watched(cls: type) -> type:
    """A subclass whose calls leave their result in the watch that the object is part of."""

    def __call__(self: Any, *args: Any, **keywords: Any) -> Any:
        result = cls.__call__(self, *args, **keywords)
        for found, names in _WATCHES:
            if id(self) in names:
                found[names[id(self)]] = result
        return result

    return type(cls)(cls.__name__, (cls,), {'__call__': __call__, '__module__': cls.__module__, '__doc__': cls.__doc__})


_WATCHES: list[tuple[dict[str, Any], dict[int, str]]] = []


@contextlib.contextmanager
def watch(modules: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Records the last output of each module's `__call__` while it is open, by its name in `modules`.

    For the time being the modules are of a subclass of their class, which is what `isinstance` checks still accept.
    """
    found: dict[str, Any] = {}
    _WATCHES.append((found, {id(module): name for name, module in modules.items()}))
    classes = [(module, type(module)) for module in modules.values()]
    try:
        for module, cls in classes:
            object.__setattr__(module, '__class__', _watched(cls))
        yield found
    finally:
        for module, cls in classes:
            object.__setattr__(module, '__class__', cls)
        _WATCHES.pop()


# --------------------------------------------------------------------------------------------------- plain functions


def from_functions(
    init: Callable[[Array, tuple[int, int, int]], PyTree],
    apply: Callable[..., Any],
    *,
    name: str,
    classes: int | None = None,
    normalization: Normalization = 'none',
    tail: tuple[str, ...] = (),
) -> Network:
    """Two pure functions, of any JAX library, as a `Network`.

    Args:
      init: (key, image_shape (H, W, 3)) -> parameters, or a mapping of 'params' and further collections of state.
      apply: (what `init` returned, image f32[B, H, W, 3]) -> logits [B, K], an object or a mapping with `logits`, or
        `contracts.Outputs` with feature maps and embedding. An argument `train` (or `training`, `deterministic`) tells
        it the mode. An argument `key` gets a new key in every training pass, None in evaluation. With collections of
        state it returns (that, the new collections).
      name: of the network.
      classes: K, compared with the logits.
      normalization: how the image in [0, 1] is normalised before `apply`: a name or (mean, std).
      tail: patterns of the parameter paths after the last feature map.
    """
    known = inspect.signature(apply).parameters
    mode = mode_argument(apply)
    reading = Reading(name, classes, (), (), None)

    def whole(params: PyTree, state: Mapping[str, PyTree]) -> PyTree:
        return {'params': params, **state} if state or wrapped else params

    wrapped = True

    def own_init(key: Array, image_shape: tuple[int, int, int]) -> tuple[PyTree, Mapping[str, PyTree], bool]:
        nonlocal wrapped
        found = init(key, image_shape)
        wrapped = isinstance(found, Mapping) and 'params' in found
        state = {part: tree for part, tree in found.items() if part != 'params'} if wrapped else {}
        return (found['params'] if wrapped else found), state, 'key' in known

    def forward(params: PyTree, state: Any, image: Array, train: bool, key: Array | None) -> tuple[Any, Any, Any]:
        keys = {'key': key} if 'key' in known else {}
        found = apply(whole(params, state), image, **mode(train), **keys)
        if not state:
            return found, {}, {}
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):
            raise ValueError(f'apply of {name} has state and must return (logits, {{{", ".join(state)}}})')
        return found[0], {}, {part: tree for part, tree in found[1].items() if part in state}

    return network(reading, own_init, forward, normalization, tail)
