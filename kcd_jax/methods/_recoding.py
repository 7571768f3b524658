"""Sparse recoding of gradients (KR: Knowledge Representing, CVPR workshops 2019, Eq. 3, 4 and 10), for optax chains.

The paper's penalty on the entries g of a gradient, for a learnable threshold epsilon:

  Phi_0(g) = (abs(g) + g^2) / epsilon if abs(g) >= epsilon, else 0.

Taken literally it is a loss term, lambda * sum_j Phi_0(g_j): minimising it needs second derivatives and makes large
gradients smaller (`penalise`). The text asks for the opposite, to "enhance the dominant gradients and filter the
inactive ones": `recode` multiplies the dominant entries by 1 + min(lambda (1 + abs(g)) / epsilon, 9), the relative size
of the penalty, and passes or drops the others. `docs/KR.md` lists what else the paper leaves open.

There is one threshold per tensor. It starts at the smaller of the tensor's mean magnitude (unless that is zero) and the
median magnitude of its first gradient, and is learned by gradient descent on lambda * mean Phi_0. Descent only ever
raises it, so the threshold in use is capped at a quantile of the current magnitudes: at least the fraction `floor` of
the nonzero entries stays dominant. lambda is `strength` times the tensor's first threshold.

Like the package's optimisers, these transformations do not include a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kcd_jax.contracts import Array, PyTree

# Bounds of a threshold: Phi_0 divides by it, and a tensor whose gradient is zero has no quantile.
EPSILON_MIN, EPSILON_MAX = 1e-8, 1.0
# Largest relative increase of a dominant entry; the formula alone is unbounded as epsilon goes to 0.
BOOST_MAX = 9.0


def penalty(gradient: Array, epsilon: float | Array) -> Array:
    """Phi_0 of every entry (Eq. 4): (abs(g) + g^2) / epsilon if abs(g) >= epsilon, else 0; epsilon > 0."""
    size = jnp.abs(gradient)
    return jnp.where(size >= epsilon, (size + size**2) / epsilon, 0.0)


def boost(gradient: Array, epsilon: Array, scale: Array) -> Array:
    """The factor of every entry: 1 + min(scale * (1 + abs(g)) / epsilon, 9) if abs(g) >= epsilon, else 1."""
    size = jnp.abs(gradient)
    return 1.0 + jnp.where(size >= epsilon, jnp.minimum(scale * (1.0 + size) / epsilon, BOOST_MAX), 0.0)


def upper_quantile(size: Array, share: float | Array) -> Array:
    """The largest threshold that `share` of a row's nonzero entries reach, rounded down by up to a sixteenth.

    Sorting is slow on a CPU. Instead, entries are counted against 32 octaves below the largest one, then against
    sixteenths of the octave found; the result is never too large.

    Args:
      size: f32[k, n], magnitudes.
      share: in (0, 1], of the entries above 0.

    Returns:
      f32[k]; 0 for a row without entries above 0.
    """
    needed = jnp.ceil(share * jnp.sum(size > 0.0, axis=1, dtype=jnp.int32).astype(jnp.float32)).astype(jnp.int32)

    def enough(thresholds: Array) -> Array:
        reached = jnp.sum(size[:, None, :] >= thresholds[:, :, None], axis=2, dtype=jnp.int32)
        return reached >= jnp.maximum(needed, 1)[:, None]

    octaves = jnp.max(size, axis=1)[:, None] * jnp.exp2(-jnp.arange(32, dtype=jnp.float32))[None, :]
    low = jnp.max(jnp.where(enough(octaves), octaves, 0.0), axis=1)[:, None]
    parts = low * (1.0 + jnp.arange(16, dtype=jnp.float32) / 16.0)[None, :]
    return jnp.max(jnp.where(enough(parts), parts, low), axis=1)


def inverse_softplus(x: Array) -> Array:
    """rho with softplus(rho) = x for x > 0, as x + log(1 - exp(-x)), which is accurate for small x too."""
    return x + jnp.log(-jnp.expm1(-x))


class RecodingState(NamedTuple):
    """State of the transformations, for the T tensors of the parameters in the order of `jax.tree.leaves`.

    Attributes:
      count: i32[], updates so far.
      rho: f32[T]; softplus(rho) are the learned thresholds.
      scale: f32[T], lambda of each tensor.
    """

    count: Array
    rho: Array
    scale: Array


def start(rho: Array, quantile: Array, strength: float) -> tuple[Array, Array]:
    """(rho, scale) after the first gradient: the smaller of mean abs(W), from `init`, and median abs(g)."""
    epsilon = in_use(rho, quantile)
    return inverse_softplus(epsilon), strength * epsilon


def in_use(rho: Array, quantile: Array) -> Array:
    """The thresholds in use: the learned ones, capped at the quantile of the gradient's magnitudes, in [1e-8, 1]."""
    return jnp.clip(jnp.minimum(jax.nn.softplus(rho), quantile), EPSILON_MIN, EPSILON_MAX)


def learn(rho: Array, scale: Array, epsilon: Array, mean: Array, rate: float) -> Array:
    """One step of gradient descent of rho on scale * mean Phi_0(g; epsilon), clipped to the bounds.

    d/d rho = -scale * mean(m (abs(g) + g^2)) / epsilon^2 * sigmoid(rho), with m the mask of the dominant entries.

    Args:
      rho: f32[T].
      scale: f32[T], lambda.
      epsilon: f32[T], thresholds in use.
      mean: f32[T], mean Phi_0 of each tensor.
      rate: learning rate.
    """
    mean = jnp.minimum(mean, 1e30)  # squares of huge entries are inf, and inf * 0 is NaN
    slope = -jnp.minimum(scale * mean / epsilon, 1e30) * jax.nn.sigmoid(rho)
    low, high = (inverse_softplus(jnp.float32(bound)) for bound in (EPSILON_MIN, EPSILON_MAX))
    return jnp.clip(rho - rate * slope, low, high)


def _by_size(fn: Callable[..., Array], tensors: list[Array], *vectors: Array) -> Array:
    """f32[T]: fn(f32[k, n], vector [k] ...) -> [k] for all tensors; equal sizes are stacked to compile less."""
    groups: dict[int, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault(tensor.size, []).append(place)
    found = []
    for group in groups.values():
        stack = jnp.stack([tensors[place].reshape(-1) for place in group])
        found.append(fn(stack, *(vector[np.array(group)] for vector in vectors)))
    back = np.argsort([place for group in groups.values() for place in group])
    return jnp.concatenate(found)[back]


@jax.jit
def _means(tensors: list[Array]) -> Array:
    """f32[T]: the mean magnitude of each tensor, in one program."""
    return jnp.stack([jnp.mean(jnp.abs(tensor.astype(jnp.float32))) for tensor in tensors])


def _transformation(
    change: Callable[[PyTree, PyTree, PyTree, dict[str, Any]], PyTree],
    strength: float,
    floor: float,
    threshold_lr: float,
) -> optax.GradientTransformationExtraArgs:
    """Learns the thresholds around `change(gradients, epsilons, scales, extra) -> updates`."""
    for name, value in (('strength', strength), ('threshold_lr', threshold_lr)):
        if not (value >= 0.0 and math.isfinite(value)):
            raise ValueError(f'recoding: {name} is {value}; use a finite number of 0 or more')
    if not 0.0 < floor <= 1.0:
        raise ValueError(f'recoding: floor is {floor}; use a fraction in (0, 1]')

    def init(params: PyTree) -> RecodingState:
        means = _means(jax.tree.leaves(params))
        # A tensor that starts at zero (a bias) has no magnitude yet: the median of its gradient decides alone.
        epsilon = jnp.where(means > 0.0, jnp.clip(means, EPSILON_MIN, EPSILON_MAX), EPSILON_MAX)
        return RecodingState(jnp.zeros((), jnp.int32), inverse_softplus(epsilon), jnp.zeros_like(epsilon))

    def update(grads: PyTree, state: RecodingState, params: PyTree | None = None, **extra: Any):
        del params
        leaves, treedef = jax.tree.flatten(grads)
        wide = [leaf.astype(jnp.float32) for leaf in leaves]
        first = state.count == 0
        share = jnp.where(first, max(0.5, floor), floor)
        quantile = _by_size(lambda stack: upper_quantile(jnp.abs(stack), share), wide)
        started = start(state.rho, quantile, strength)
        rho, scale = (jnp.where(first, new, old) for new, old in zip(started, (state.rho, state.scale), strict=True))
        epsilon = in_use(rho, quantile)
        mean = _by_size(lambda stack, e: jnp.mean(penalty(stack, e[:, None]), axis=1), wide, epsilon)
        following = RecodingState(state.count + jnp.int32(1), learn(rho, scale, epsilon, mean, threshold_lr), scale)
        trees = (jax.tree.unflatten(treedef, [part[i] for i in range(len(leaves))]) for part in (epsilon, scale))
        return change(grads, *trees, extra), following

    return optax.GradientTransformationExtraArgs(init, update)


def recode(
    *, drop: bool = False, strength: float = 0.3, floor: float = 0.1, threshold_lr: float = 0.01
) -> optax.GradientTransformation:
    """Multiplies the dominant entries of every gradient by `boost`; passes or drops the others.

    >>> optimiser = optax.chain(recode(), optax.sgd(0.1, momentum=0.9))

    Args:
      drop: whether entries below the threshold become 0 instead of passing unchanged.
      strength: lambda divided by the first threshold; 0 does not boost.
      floor: smallest fraction of the nonzero entries that is dominant, in (0, 1].
      threshold_lr: learning rate of the thresholds; 0 keeps the first ones.

    Raises:
      ValueError: a negative strength or rate, a floor outside (0, 1].
    """

    def change(grads: PyTree, epsilons: PyTree, scales: PyTree, extra: dict[str, Any]) -> PyTree:
        del extra

        def of(gradient: Array, epsilon: Array, scale: Array) -> Array:
            wide = gradient.astype(jnp.float32)
            recoded = wide * boost(wide, epsilon, scale)
            if drop:
                recoded = jnp.where(jnp.abs(wide) >= epsilon, recoded, 0.0)
            return recoded.astype(gradient.dtype)

        return jax.tree.map(of, grads, epsilons, scales)

    return _transformation(change, strength, floor, threshold_lr)


def penalise(
    *, strength: float = 0.3, floor: float = 0.1, threshold_lr: float = 0.01
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of lambda * mean_j Phi_0(g_j) of every tensor: Eq. 10 as written, by second derivatives.

    With the mask held constant that gradient is H v, with H the Hessian of the loss and v = lambda m (1 + 2 abs(g))
    sign(g) / (epsilon * size). `update` takes H as its extra argument `hvp`, a function that multiplies H by a tree
    like the gradients; this package's training step passes it.

    Args:
      strength, floor, threshold_lr: as for `recode`.

    Raises:
      ValueError: as for `recode`; `update` is called without `hvp`.
    """

    def change(grads: PyTree, epsilons: PyTree, scales: PyTree, extra: dict[str, Any]) -> PyTree:
        if extra.get('hvp') is None:
            raise ValueError('penalise needs second derivatives: call update(..., hvp=function), or use recode')

        def of(gradient: Array, epsilon: Array, scale: Array) -> Array:
            wide = gradient.astype(jnp.float32)
            slope = (1.0 + 2.0 * jnp.abs(wide)) * jnp.sign(wide) / epsilon
            slope = jnp.where(jnp.abs(wide) >= epsilon, slope, 0.0)
            return (scale * slope / gradient.size).astype(gradient.dtype)

        return optax.tree.add(grads, extra['hvp'](jax.tree.map(of, grads, epsilons, scales)))

    return _transformation(change, strength, floor, threshold_lr)


def l1(decay: float) -> optax.GradientTransformation:
    """Adds the gradient of decay * sum |W|, the paper's L1 baseline; decay >= 0."""
    return optax.stateless(lambda grads, params: jax.tree.map(lambda g, w: g + decay * jnp.sign(w), grads, params))


def l2(decay: float) -> optax.GradientTransformation:
    """Adds the gradient of decay * sum W^2, the paper's L2 baseline; decay >= 0."""
    return optax.add_decayed_weights(2.0 * decay)
