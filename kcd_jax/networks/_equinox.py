"""equinox modules as `Network`s; equinox itself is imported when one is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, PyTree
from kcd_jax.networks._foreign import Embed, Reading, network, plain_path, watch
from kcd_jax.networks.layers import Normalization


def from_equinox(
    model: Any,
    state: Any = None,
    *,
    layout: str = 'chw',
    name: str = '',
    classes: int | None = None,
    taps: Sequence[str] = (),
    preacts: Sequence[str] = (),
    embed: Embed = None,
    normalization: Normalization = 'none',
    tail: tuple[str, ...] = (),
) -> Network:
    """An equinox module, called with one image, as a `Network`.

    It is mapped over the batch. Its inexact arrays are trained; `equinox.nn.inference_mode` sets the mode. A call that
    takes `key` gets a new one per image in each training pass. One that takes `state` (BatchNorm) returns (output,
    state). Arrays that are not trained by gradients must not be inexact: keep constants as NumPy arrays.

    Args:
      model: a module, whose present weights are those of a teacher or where every student starts, whatever its seed; or
        a function `key -> module`, or `key -> (module, state)`, by which each run initialises it by its own seed. It
        returns logits [K], or an object or mapping with `logits`.
      state: the `equinox.nn.State` that belongs to a module with one.
      layout: 'chw' for modules that take [3, H, W] and whose maps are [c, h, w], as equinox's convolutions have them;
        'hwc' for [H, W, 3].
      name: of the network; default: the module's class.
      classes, preacts, normalization, tail: as for `from_linen`.
      taps: paths of the submodules whose outputs are the feature maps, as ('stem', 'blocks[3]').
      embed: the path of a submodule, or a function of the taps' outputs, with channels last.
    """
    import equinox

    if layout not in ('chw', 'hwc'):
        raise ValueError(f"layout is {layout!r}; use 'chw' or 'hwc'")
    build = None if isinstance(model, equinox.Module) else model
    if build is not None and not callable(build):
        raise ValueError(f'model is {model!r}; use an equinox module, or a function of a key that returns one')

    def made(key: Array) -> tuple[Any, Any]:
        found = (model, state) if build is None else build(key)
        return found if isinstance(found, tuple) else (found, None)

    sample = made(jax.random.key(0)) if build is None else equinox.filter_eval_shape(made, jax.random.key(0))
    if not isinstance(sample[0], equinox.Module):
        raise ValueError(f'model returns a {type(sample[0]).__name__}; use a function of a key that returns a module')
    reading = Reading(name or type(sample[0]).__name__, classes, taps, preacts, embed)
    reading.refuse_unknown(_modules(sample[0], equinox))
    known = inspect.signature(type(sample[0]).__call__).parameters
    axes = {node.axis_name for node in _modules(sample[0], equinox).values() if isinstance(node, equinox.nn.BatchNorm)}
    axes = {axis for named in axes for axis in (named if isinstance(named, tuple) else (named,))}
    if len(axes) > 1:
        raise ValueError(f'the BatchNorms of {reading.name} have the axes {", ".join(sorted(axes))}; use one name')
    axis = axes.pop() if axes else 'batch'
    if 'state' in known and sample[1] is None:
        raise ValueError(f'{reading.name} takes a state; give it: from_equinox(model, state)')

    def trained(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)

    dynamic, static = equinox.partition(sample[0], trained)
    paths, shape = _leaves(dynamic)
    state_paths, state_shape = _leaves(sample[1])
    arrays = [leaf for leaf in jax.tree.leaves(static) if isinstance(leaf, jax.ShapeDtypeStruct)]
    if arrays:
        raise ValueError(
            f'{reading.name} holds integer arrays that are not parameters; pass the module, not a function'
        )

    def init(key: Array, image_shape: tuple[int, int, int]) -> tuple[PyTree, Mapping[str, PyTree], bool]:
        del image_shape
        module, own = made(key)
        params = _named(paths, equinox.filter(module, equinox.is_inexact_array))
        return params, {'state': _named(state_paths, own)} if state_paths else {}, 'key' in known

    def forward(
        params: PyTree, state: Mapping[str, PyTree], image: Array, train: bool, key: Array | None
    ) -> tuple[Any, Mapping[str, Any], PyTree]:
        module = equinox.combine(_filled(paths, shape, params), static)
        module = equinox.nn.inference_mode(module, not train)
        own = _filled(state_paths, state_shape, state['state']) if state else None
        modules = _modules(module, equinox)

        def one(image: Array, key: Array | None) -> tuple[Any, Any, Any]:
            given = {'key': key} if 'key' in known else {}
            given |= {'state': own} if 'state' in known else {}
            with watch({path: modules[path] for path in reading.paths}) as tapped:
                found = module(image, **given)
            reading.refuse_unknown(tapped)
            returned, after = found if 'state' in known else (found, None)
            # A module with state returns (output, state).
            outputs = {path: value[0] if isinstance(value, tuple) else value for path, value in tapped.items()}
            return returned, outputs, after

        image = jnp.moveaxis(image, -1, 1) if layout == 'chw' else image
        keys = None if key is None else jax.random.split(key, image.shape[0])
        mapped = jax.vmap(one, in_axes=(0, None if keys is None else 0), out_axes=(0, 0, None), axis_name=axis)
        returned, tapped, after = mapped(image, keys)
        if layout == 'chw':
            tapped = {path: jnp.moveaxis(x, 1, -1) if x.ndim == 4 else x for path, x in tapped.items()}
        return returned, tapped, {'state': _named(state_paths, after)} if state else {}

    return network(reading, init, forward, normalization, tail)


def _leaves(tree: PyTree) -> tuple[tuple[str, ...], Any]:
    """(the path of each leaf, the structure)."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return tuple(_path(words, number) for number, (words, _) in enumerate(leaves)), structure


def _path(words: Sequence[Any], number: int) -> str:
    names = (getattr(word, 'name', getattr(word, 'key', getattr(word, 'idx', None))) for word in words)
    # The markers of an equinox State are objects without a name of their own.
    return '/'.join(str(name) if isinstance(name, str | int) else str(number) for name in names) or str(number)


def _named(paths: Sequence[str], tree: PyTree) -> PyTree:
    return flax.traverse_util.unflatten_dict(dict(zip(paths, jax.tree.leaves(tree), strict=True)), sep='/')


def _filled(paths: Sequence[str], structure: Any, values: PyTree) -> PyTree:
    flat = flax.traverse_util.flatten_dict(values, sep='/')
    return jax.tree_util.tree_unflatten(structure, [flat[path] for path in paths])


def _modules(model: Any, equinox: Any) -> dict[str, Any]:
    """{path: submodule}, through fields, lists, tuples and dicts."""
    found: dict[str, Any] = {}

    def visit(node: Any, words: tuple[str, ...]) -> None:
        if isinstance(node, equinox.Module):
            found[plain_path('/'.join(words))] = node
            children: Callable[[], Any] = lambda: vars(node).items()  # noqa: E731
        elif isinstance(node, dict):
            children = node.items
        elif isinstance(node, list | tuple):
            children = lambda: enumerate(node)  # noqa: E731
        else:
            return
        for word, child in children():
            visit(child, (*words, str(word)))

    visit(model, ())
    return found
