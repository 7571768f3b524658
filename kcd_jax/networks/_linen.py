"""flax linen modules as `Network`s."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, PyTree
from kcd_jax.networks._foreign import Embed, Reading, mode_argument, network, plain_path
from kcd_jax.networks.layers import Normalization


def from_linen(
    module: nn.Module,
    variables: PyTree | None = None,
    *,
    name: str = '',
    classes: int | None = None,
    taps: Sequence[str] = (),
    preacts: Sequence[str] = (),
    embed: Embed = None,
    normalization: Normalization = 'none',
    tail: tuple[str, ...] = (),
) -> Network:
    """A flax linen module, called with images [B, H, W, 3], as a `Network`.

    All collections but 'params' are its state and may change in training. Its call is told the mode by an argument
    `train`, `training`, `is_training`, `deterministic` or `use_running_average`, if it has one; dropout and every other
    random stream get a new key in each training pass. Without `variables` each run initialises it by its own seed.

    Args:
      module: returns logits [B, K], or an object or mapping with `logits`.
      variables: its present ones, {'params': ..., 'batch_stats': ...}: a teacher's, or where a student starts.
      name: of the network; default: the module's class.
      classes: K, compared with the logits.
      taps: paths of the submodules whose outputs are the feature maps, as ('stem', 'Block_3'); tokens [B, T, D] become
        square maps. Methods on feature maps need them, and most leave the first one out, the stem's.
      preacts: paths of the same stages before their activation (ReviewKD reads the teacher's).
      embed: the path of the submodule that returns the pooled vector, or a function of the taps' outputs, as
        `lambda taps: taps[-1].mean((1, 2))`. Methods on embeddings need it.
      normalization: how the image in [0, 1] is normalised before the call: a name or (mean, std).
      tail: patterns of the parameter paths after the last feature map.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f'module is {module!r}; use a flax linen module (from_nnx takes nnx modules)')
    reading = Reading(name or type(module).__name__, classes, taps, preacts, embed)
    mode = mode_argument(module.__call__)
    fields = {field.name for field in dataclasses.fields(module)}
    by_field = mode_argument(module.__init__)
    told_by_field = not mode(True) and [*by_field(True)] and {*by_field(True)} <= fields

    def of_mode(train: bool) -> nn.Module:
        return module.clone(**by_field(train)) if told_by_field else module

    def forward(
        params: PyTree, state: Mapping[str, PyTree], image: Array, train: bool, key: Array | None
    ) -> tuple[Any, Mapping[str, Any], PyTree]:
        places: dict[str, tuple[str, ...]] = {}

        def tapped(submodule: nn.Module, method: str) -> bool:
            if method == '__call__':
                places[plain_path('/'.join(submodule.path))] = submodule.path
            return method == '__call__' and plain_path('/'.join(submodule.path)) in reading.paths

        returned, changed = of_mode(train).apply(
            {'params': params, **state},
            image,
            rngs={} if key is None else {'params': key},  # linen's stand-in for every stream without a key
            mutable=[*(state if train else ()), 'intermediates'],
            capture_intermediates=tapped if reading.paths else False,
            **mode(train),
        )
        reading.refuse_unknown(places) if reading.paths else None
        found = {path: _at(changed['intermediates'], places[path]) for path in reading.paths}
        return returned, found, {part: changed[part] for part in state if part in changed}

    def init(key: Array, image_shape: tuple[int, int, int]) -> tuple[PyTree, Mapping[str, PyTree], bool]:
        image = jnp.zeros((1, *image_shape), jnp.float32)
        own = variables
        if own is None:  # compiled, so that the values of the forward pass are never computed
            own = jax.jit(lambda key: of_mode(False).init(key, image, **mode(False)))(key)
        own = flax.core.unfreeze(nn.meta.unbox(own))
        params = own.get('params', {})
        state = {part: tree for part, tree in own.items() if part not in ('params', 'intermediates')}
        try:
            jax.eval_shape(lambda p, s, x: forward(p, s, x, True, None)[0], params, state, image)
        except flax.errors.InvalidRngError:
            return params, state, True
        return params, state, False

    return network(reading, init, forward, normalization, tail)


def _at(intermediates: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """What the module at a path returned last."""
    for word in path:
        intermediates = intermediates[word]
    return intermediates['__call__'][-1]
