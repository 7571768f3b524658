"""Keras 3 models on the JAX backend as `Network`s; Keras itself is imported when one is built."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, Network, PyTree
from kcd_jax.networks._foreign import Embed, Reading, network, plain_path, watch
from kcd_jax.networks.layers import Normalization


def from_keras(
    model: Any,
    *,
    name: str = '',
    classes: int | None = None,
    taps: Sequence[str] = (),
    preacts: Sequence[str] = (),
    embed: Embed = None,
    normalization: Normalization = 'none',
    tail: tuple[str, ...] = (),
) -> Network:
    """A Keras 3 model on the JAX backend, called with images [B, H, W, 3], as a `Network`.

    Its trainable variables are the parameters, the others (running statistics, seeds of dropout) its state. The model
    itself is never changed: `stateless_call` runs it. Weights are its present ones, those of a teacher or where every
    student starts, whatever its seed; its seeds of dropout are drawn from the run's.

    Args:
      model: returns logits [B, K] (no softmax at the end), or a mapping with 'logits'.
      name: of the network; default: the model's.
      classes, preacts, normalization, tail: as for `from_linen`.
      taps: names of the layers whose outputs are the feature maps; a layer of a nested model by its path,
        'backbone/conv4'.
      embed: the name of a layer, or a function of the taps' outputs.
    """
    import keras

    if keras.backend.backend() != 'jax':
        raise ValueError(f'Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax before it is imported')
    if not isinstance(model, keras.Model):
        raise ValueError(f'model is {model!r}; use a keras.Model')
    if not model.built:
        raise ValueError(f'{model.name} has no weights yet; call model.build((None, H, W, 3)) first')
    reading = Reading(name or model.name, classes, taps, preacts, embed)
    reading.refuse_unknown(_layers(model))

    def init(key: Array, image_shape: tuple[int, int, int]) -> tuple[PyTree, Mapping[str, PyTree], bool]:
        del image_shape
        params, state = (_values(part) for part in (model.trainable_variables, model.non_trainable_variables))
        for number, variable in enumerate(model.non_trainable_variables):
            if 'seed_generator_state' in variable.path:
                path = _paths(model.non_trainable_variables)[number]
                drawn = jax.random.bits(jax.random.fold_in(key, number), (), jnp.uint32)
                state[path] = state[path].at[0].set(drawn.astype(state[path].dtype))
        return _nested(params), {'state': _nested(state)} if state else {}, False

    def forward(
        params: PyTree, state: Mapping[str, PyTree], image: Array, train: bool, key: Array | None
    ) -> tuple[Any, Mapping[str, Any], PyTree]:
        del key  # the seeds are part of the state
        trained = _ordered(model.trainable_variables, params)
        others = _ordered(model.non_trainable_variables, state.get('state', {}))
        layers = _layers(model)
        with watch({path: layers[path] for path in reading.paths}) as tapped:
            returned, after = model.stateless_call(trained, others, image, training=train)
        reading.refuse_unknown(tapped)
        changed = dict(zip(_paths(model.non_trainable_variables), after, strict=True))
        return returned, tapped, {'state': _nested(changed)} if state else {}

    return network(reading, init, forward, normalization, tail)


def _paths(variables: Sequence[Any]) -> list[str]:
    """The path of each variable; equal ones are numbered."""
    seen: collections.Counter[str] = collections.Counter()
    result = []
    for variable in variables:
        seen[variable.path] += 1
        result.append(variable.path if seen[variable.path] == 1 else f'{variable.path}_{seen[variable.path]}')
    return result


def _values(variables: Sequence[Any]) -> dict[str, Array]:
    return {path: jnp.asarray(variable.value) for path, variable in zip(_paths(variables), variables, strict=True)}


def _nested(flat: Mapping[str, Array]) -> PyTree:
    return flax.traverse_util.unflatten_dict(dict(flat), sep='/')


def _ordered(variables: Sequence[Any], values: PyTree) -> list[Array]:
    flat = flax.traverse_util.flatten_dict(values, sep='/')
    return [flat[path] for path in _paths(variables)]


def _layers(model: Any) -> dict[str, Any]:
    """{path: layer}, those of nested models and layers under their names."""
    found: dict[str, Any] = {}

    def visit(layer: Any, words: tuple[str, ...]) -> None:
        for inner in getattr(layer, 'layers', None) or getattr(layer, '_layers', ()):
            found.setdefault(plain_path('/'.join((*words, inner.name))), inner)
            visit(inner, (*words, inner.name))

    visit(model, ())
    return found
