"""flax nnx modules as `Network`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from kcd_jax.contracts import Array, Network, PyTree
from kcd_jax.networks._foreign import Embed, Reading, mode_argument, network, plain_path, watch
from kcd_jax.networks.layers import Normalization


def from_nnx(
    model: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    name: str = '',
    classes: int | None = None,
    taps: Sequence[str] = (),
    preacts: Sequence[str] = (),
    embed: Embed = None,
    normalization: Normalization = 'none',
    tail: tuple[str, ...] = (),
) -> Network:
    """A flax nnx module, called with images [B, H, W, 3], as a `Network`.

    `nnx.Param`s are trained, all other variables are its state. `model.train()` and `model.eval()` set the mode, as
    does an argument `train`, `training` or `deterministic` of its call. The streams of its `nnx.Rngs` get new keys in
    each training pass. The model itself is never changed.

    Args:
      model: a module, whose present weights are those of a teacher or where every student starts, whatever its seed; or
        a function `nnx.Rngs -> module`, by which each run initialises it by its own seed. It returns logits [B, K], or
        an object or mapping with `logits`.
      name: of the network; default: the module's class.
      classes, preacts, normalization, tail: as for `from_linen`.
      taps: paths of the submodules whose outputs are the feature maps, as ('stem', 'blocks.3').
      embed: the path of a submodule, or a function of the taps' outputs.
    """
    build = None if isinstance(model, nnx.Module) else model
    if build is not None and not callable(build):
        raise ValueError(f'model is {model!r}; use an nnx module, or a function of nnx.Rngs that returns one')
    sample = model if build is None else nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    if not isinstance(sample, nnx.Module):
        raise ValueError(
            f'model returns a {type(sample).__name__}; use a function of nnx.Rngs that returns an nnx module'
        )
    reading = Reading(name or type(sample).__name__, classes, taps, preacts, embed)
    reading.refuse_unknown(_modules(sample))
    mode = mode_argument(type(sample).__call__)
    graphs = {}
    for train in (True, False):
        graphs[train], params, streams, rest = _split(_of_mode(sample, train))
    kinds = {'params': _flat(params), 'state': _flat(rest)}  # {path: (its words, a variable of its kind)}
    keys = list(nnx.to_flat_state(streams))

    def filled(kind: str, values: PyTree) -> nnx.State:
        flat = flax.traverse_util.flatten_dict(values, sep='/')
        return nnx.from_flat_state([(words, var.replace(flat[path])) for path, (words, var) in kinds[kind].items()])

    def drawn(key: Array | None) -> nnx.State:
        """The random streams, started anew from `key`."""
        key = jax.random.key(0) if key is None else key
        started = []
        for number, (words, variable) in enumerate(keys):
            dtype = variable.get_value().dtype
            value = jnp.zeros((), dtype) if not isinstance(variable, nnx.RngKey) else jax.random.fold_in(key, number)
            if isinstance(variable, nnx.RngKey) and not jnp.issubdtype(dtype, jax.dtypes.prng_key):
                value = jax.random.key_data(value)
            started.append((words, variable.replace(value)))
        return nnx.from_flat_state(started)

    def init(key: Array, image_shape: tuple[int, int, int]) -> tuple[PyTree, Mapping[str, PyTree], bool]:
        del image_shape
        _, params, _, rest = _split(model if build is None else build(nnx.Rngs(key)))
        state = _values(rest)
        return _values(params), {'state': state} if state else {}, bool(keys)

    def forward(
        params: PyTree, state: Mapping[str, PyTree], image: Array, train: bool, key: Array | None
    ) -> tuple[Any, Mapping[str, Any], PyTree]:
        rest = filled('state', state['state']) if state else nnx.State({})
        merged = nnx.merge(graphs[train], filled('params', params), drawn(key), rest)
        modules = _modules(merged)
        with watch({path: modules[path] for path in reading.paths}) as tapped:
            returned = merged(image, **mode(train))
        reading.refuse_unknown(tapped)
        if not state:
            return returned, tapped, {}
        after = flax.traverse_util.flatten_dict(_values(_split(merged)[3]), sep='/')
        known = {path: after[path] for path in kinds['state']}  # without what the call has sown
        return returned, tapped, {'state': flax.traverse_util.unflatten_dict(known, sep='/')}

    return network(reading, init, forward, normalization, tail)


def _split(model: nnx.Module) -> tuple[Any, nnx.State, nnx.State, nnx.State]:
    """(graph, parameters, random streams, all other variables)."""
    return nnx.split(model, nnx.Param, nnx.RngState, ...)


def _of_mode(model: nnx.Module, train: bool) -> nnx.Module:
    copy = nnx.merge(*nnx.split(model))
    copy.train() if train else copy.eval()
    return copy


def _flat(state: nnx.State) -> dict[str, tuple[Any, nnx.Variable]]:
    return {'/'.join(map(str, words)): (words, variable) for words, variable in nnx.to_flat_state(state)}


def _values(state: nnx.State) -> PyTree:
    """A nested dict of arrays; the positions in lists become words."""
    flat = {path: variable.get_value() for path, (_, variable) in _flat(state).items()}
    return flax.traverse_util.unflatten_dict(flat, sep='/')


def _modules(model: nnx.Module) -> dict[str, nnx.Module]:
    """{path: submodule}."""
    return {
        plain_path('/'.join(map(str, words))): node
        for words, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module)
    }
