"""The contract of every network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from kcd_jax import networks
from kcd_jax.checks import require
from kcd_jax.contracts import Network, Outputs
from kcd_jax.trees import leaf_paths, matches

CLASSES, SHAPE, ROWS = 7, (8, 16, 3), 4


class Case:
    """A network for images of 8x16 pixels, its variables and outputs as shapes."""

    def __init__(self, network: Network):
        self.network = network
        self.image = jax.ShapeDtypeStruct((ROWS, *SHAPE), jnp.float32)
        self._outputs: dict[bool, tuple[Outputs, Any]] = {}

    @functools.cached_property
    def variables(self) -> Any:
        """As shapes."""
        return self.network.variable_shapes(SHAPE)

    @property
    def rest(self) -> Any:
        """The variables that are not parameters."""
        return {name: tree for name, tree in self.variables.items() if name != 'params'}

    def outputs(self, train: bool) -> tuple[Outputs, Any]:
        """(outputs, state) as shapes; traced once."""
        if train not in self._outputs:
            self._outputs[train] = jax.eval_shape(
                lambda v, x: self.network.apply(v, x, train), self.variables, self.image
            )
        return self._outputs[train]


def cases(module: ModuleType, name: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(title, what builds the case) of each network of a file."""
    del name
    for member in module.NAMES:
        yield f'network {member}', functools.cache(lambda member=member: Case(networks.get(str(member))(CLASSES)))


def shapes(case: Case) -> None:
    """Outputs, taps and state have the shapes of the contract, in training and evaluation."""
    constants = case.variables.get('constants', {})
    normalised = {*constants} == {'mean', 'std'} and {leaf.shape for leaf in jax.tree.leaves(constants)} == {(3,)}
    require(normalised, "the variables lack constants 'mean' and 'std' of three channels; build it by layers.wrap")
    for train in (False, True):
        outputs, state = case.outputs(train)
        require(outputs.logits.shape == (ROWS, CLASSES), f'logits are {outputs.logits.shape}, not {(ROWS, CLASSES)}')
        vector = outputs.embed is None or (outputs.embed.ndim == 2 and outputs.embed.shape[0] == ROWS)
        require(vector, 'embed is no vector per row')
        flat = [feat.shape for feat in outputs.feats if feat.ndim != 4 or feat.shape[0] != ROWS]
        require(not flat, f'feats are [B, h, w, c], and one is {flat and flat[0]}')
        if outputs.preacts:
            require(len(outputs.feats) == len(outputs.preacts) + 1, 'preacts are one per stage, feats one more')
            pairs = zip(outputs.feats[1:], outputs.preacts, strict=True)
            require(all(a.shape == b.shape for a, b in pairs), 'a stage differs in shape from its pre-activation')
        same = jax.tree.structure(state) == jax.tree.structure(case.rest)
        require(same, 'apply returns another state than init; it is everything but params')
        require({leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype('float32')}, 'outputs are not float32')


def convolutions(case: Case) -> None:
    """The maps after convolutions belong to the kernels that are named."""
    outputs, paths = case.outputs(False)[0], leaf_paths(case.variables['params'])
    count, named = len(outputs.convs), len(case.network.convs)
    require(count == named, f'{count} maps and {named} kernels')
    unknown = [kernel for kernel in case.network.convs if kernel not in paths]
    require(not unknown, f'there is no parameter {unknown and unknown[0]}')
    for kernel, conv in zip(case.network.convs, outputs.convs, strict=True):
        require(paths[kernel].shape[-1] == conv.shape[-1], f'the map of {kernel} has other channels')


def tail(case: Case) -> None:
    """The patterns of `tail` are those of the parameters between the last tap and the logits."""
    params, rest = case.variables['params'], case.rest
    paths = list(leaf_paths(params))
    idle = [pattern for pattern in case.network.tail if not any(matches(path, (pattern,)) for path in paths)]
    require(not idle, f'no parameter matches {", ".join(idle)}')
    if not case.outputs(False)[0].feats:
        return

    def read_by(part: Callable[[Outputs], Any]) -> set[str]:
        """The parameters that a part of the outputs depends on."""

        def read(params: Any, rest: Any, image: Any) -> Any:
            return part(case.network.apply({'params': params, **rest}, image, False)[0])

        jaxpr = jax.make_jaxpr(read)(params, rest, case.image).jaxpr
        _, used = partial_eval.dce_jaxpr(jaxpr, [True])
        return {path for path, is_used in zip(paths, used[: len(paths)], strict=True) if is_used}

    # Further branches, which the logits do not depend on, are neither before nor after the last tap.
    after = read_by(lambda outputs: outputs.logits) - read_by(lambda outputs: outputs.feats[-1])
    named = {path for path in paths if matches(path, case.network.tail)}
    wrong = ', '.join(sorted(after ^ named)[:3])
    require(after == named, f'{wrong}: in the patterns or after the last tap, and not in both')


def gradients(case: Case) -> None:
    """Rows are independent in evaluation, equal keys give equal weights, and gradients are finite."""
    network = case.network
    variables, again = (network.init(jax.random.key(0), SHAPE) for _ in range(2))
    require(all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(again))), 'equal keys differ')
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(variables)]
    require(len(set(pointers)) == len(pointers), 'two leaves share a buffer')
    rest = {name: tree for name, tree in variables.items() if name != 'params'}
    image = jax.random.uniform(jax.random.key(1), (ROWS, *SHAPE))

    @jax.jit
    def both(params: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, state = network.apply({'params': params, **rest}, image, True)
            return jnp.mean(jnp.square(outputs.logits)), state

        grads, _ = jax.grad(loss, has_aux=True)(params)
        whole, state = network.apply({'params': params, **rest}, image, False)
        first, _ = network.apply({'params': params, **rest}, image[:2], False)
        return grads, whole.logits[:2], first.logits, state

    grads, whole, first, state = both(variables['params'])
    bad = [path for path, leaf in leaf_paths(grads).items() if not np.isfinite(leaf).all()]
    require(not bad, f'the gradient of {bad and bad[0]} is not finite')
    alone = np.allclose(whole, first, rtol=1e-4, atol=1e-5 * (1 + float(np.abs(whole).max())))
    require(alone, 'the outputs of a row depend on the others')
    require(all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(rest))), 'evaluation changes the state')


CHECKS: tuple[Callable[[Case], None], ...] = (shapes, convolutions, tail, gradients)
