"""Sparse recoding of gradients (KR: Knowledge Representing, CVPR workshops 2019, Eq. 3, 4 and 10), for optax chains.

The paper's penalty on the entries g of a gradient, for a learnable threshold epsilon:

  Phi_0(g) = (|g| + g^2) / epsilon where |g| >= epsilon, else 0.

Taken literally it is a term of the loss, lambda * sum_j Phi_0(g_j): minimising it needs second derivatives and makes
large gradients smaller (`penalise`). The text asks for the opposite, to "enhance the dominant gradients and filter the
inactive ones": `recode` multiplies the dominant entries by 1 + min(lambda (1 + |g|) / epsilon, 9), the relative size
of the penalty itself, and leaves the others alone or drops them. `docs/KR.md` says what else the paper leaves open.

The threshold is one number a tensor. It starts at the smaller of the mean magnitude of the tensor (if it is not zero)
and the median magnitude of its first gradient, and learns by descent on lambda * mean Phi_0. As that only ever raises
it, what is used never exceeds a quantile of the current magnitudes: at least the share `floor` of the entries that have
a gradient at all stays dominant. lambda is `strength` times the first threshold of the tensor.

Optimisers elsewhere in this package come without a learning rate; these transformations need none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kcd_jax.spec import Array, PyTree

# Bounds of a threshold: a tensor without any gradient has no quantile, and Phi_0 divides by it.
EPSILON_MIN, EPSILON_MAX = 1e-8, 1.0
# A dominant entry grows by at most this factor more; the formula alone has no bound as epsilon falls.
BOOST_MAX = 9.0


def penalty(gradient: Array, epsilon: float | Array) -> Array:
    """Phi_0 of every entry (Eq. 4): (|g| + g^2) / epsilon where |g| >= epsilon, else 0; >= 0, epsilon > 0."""
    size = jnp.abs(gradient)
    return jnp.where(size >= epsilon, (size + size**2) / epsilon, 0.0)


def boost(gradient: Array, epsilon: Array, scale: Array) -> Array:
    """The factor of every entry: 1 + min(scale * (1 + |g|) / epsilon, 9) where |g| >= epsilon, else 1."""
    size = jnp.abs(gradient)
    return 1.0 + jnp.where(size >= epsilon, jnp.minimum(scale * (1.0 + size) / epsilon, BOOST_MAX), 0.0)


def kth_largest(x: Array, k: Array) -> Array:
    """The k-th largest entry of a non-negative f32 tensor, exactly; k in 1 ... x.size, may be traced.

    Non-negative floats order as their bit patterns do, so 31 counts find the answer, bit by bit; a sort takes much
    longer on a CPU.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)

    def add_bit(i: Array, found: Array) -> Array:
        candidate = found | (jnp.int32(1) << (30 - i))
        return jnp.where(jnp.sum(bits >= candidate, dtype=jnp.int32) >= k, candidate, found)

    found = jax.lax.fori_loop(0, 31, add_bit, jnp.zeros((), jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def quantile_of_active(size: Array, share: float) -> Array:
    """f32[]: the largest threshold that at least `share` of the entries above 0 reach; 0 where no entry is above 0."""
    active = jnp.sum(size > 0.0, dtype=jnp.int32)
    k = jnp.ceil(share * active.astype(jnp.float32)).astype(jnp.int32)
    return jnp.where(active > 0, kth_largest(size, jnp.clip(k, 1, size.size)), 0.0)


def inverse_softplus(x: Array) -> Array:
    """rho with softplus(rho) = x, for x > 0: x + log(1 - exp(-x)), exact for small x too."""
    return x + jnp.log(-jnp.expm1(-x))


class Threshold(NamedTuple):
    """What is kept of a tensor.

    Attributes:
      rho: f32[], softplus(rho) is the learned threshold.
      scale: f32[], lambda.
    """

    rho: Array
    scale: Array


class RecodingState(NamedTuple):
    """State of the transformations.

    Attributes:
      count: i32[], updates so far.
      thresholds: {tensor: Threshold}, as the parameters' tree.
    """

    count: Array
    thresholds: PyTree


def epsilon_in_use(threshold: Threshold, gradient: Array, floor: float) -> Array:
    """f32[]: the learned threshold, below the quantile of the gradient's magnitudes, in [1e-8, 1]."""
    learned = jnp.minimum(jax.nn.softplus(threshold.rho), EPSILON_MAX)
    return jnp.maximum(jnp.minimum(learned, quantile_of_active(jnp.abs(gradient), floor)), EPSILON_MIN)


def start(threshold: Threshold, gradient: Array, strength: float) -> Threshold:
    """The threshold after the first gradient: the smaller of the mean |W| (as `init` left it) and the median |g|."""
    epsilon = jnp.minimum(jax.nn.softplus(threshold.rho), quantile_of_active(jnp.abs(gradient), 0.5))
    epsilon = jnp.clip(epsilon, EPSILON_MIN, EPSILON_MAX)
    return Threshold(inverse_softplus(epsilon), strength * epsilon)


def learn(threshold: Threshold, gradient: Array, epsilon: Array, rate: float) -> Threshold:
    """One step of gradient descent of rho on scale * mean Phi_0(g; epsilon), held in the bounds.

    d/d rho = -scale * mean(m (|g| + g^2)) / epsilon^2 * sigmoid(rho), m the mask of the dominant entries.
    """
    mean = jnp.minimum(jnp.mean(penalty(gradient, epsilon)), 1e30)  # squares of huge entries are inf, and inf * 0 NaN
    slope = -jnp.minimum(threshold.scale * mean / epsilon, 1e30) * jax.nn.sigmoid(threshold.rho)
    low, high = (inverse_softplus(jnp.float32(bound)) for bound in (EPSILON_MIN, EPSILON_MAX))
    return threshold._replace(rho=jnp.clip(threshold.rho - rate * slope, low, high))


def _transformation(
    change: Callable[[PyTree, PyTree, PyTree, dict[str, Any]], PyTree],
    strength: float,
    floor: float,
    threshold_lr: float,
) -> optax.GradientTransformationExtraArgs:
    """The thresholds' life around `change(gradients, epsilons, scales, extra) -> updates`."""
    for name, value in (('strength', strength), ('threshold_lr', threshold_lr)):
        if not (value >= 0.0 and math.isfinite(value)):
            raise ValueError(f'recoding: {name}={value} is not a number of 0 or more')
    if not 0.0 < floor <= 1.0:
        raise ValueError(f'recoding: floor={floor} is not a share of the entries; use a number in (0, 1]')

    def init(params: PyTree) -> RecodingState:
        def of(tensor: Array) -> Threshold:
            mean = jnp.mean(jnp.abs(tensor.astype(jnp.float32)))
            # A tensor that starts at zero (a bias) says nothing of magnitudes: the median alone decides.
            epsilon = jnp.where(mean > 0.0, jnp.clip(mean, EPSILON_MIN, EPSILON_MAX), EPSILON_MAX)
            return Threshold(inverse_softplus(epsilon), jnp.zeros((), jnp.float32))

        return RecodingState(jnp.zeros((), jnp.int32), jax.tree.map(of, params))

    def update(grads: PyTree, state: RecodingState, params: PyTree | None = None, **extra: Any):
        del params
        leaves, treedef = jax.tree.flatten(grads)
        wide = [leaf.astype(jnp.float32) for leaf in leaves]
        thresholds = treedef.flatten_up_to(state.thresholds)
        # The medians are looked for in the first update only.
        thresholds = jax.lax.cond(
            state.count == 0,
            lambda: [start(t, g, strength) for t, g in zip(thresholds, wide, strict=True)],
            lambda: thresholds,
        )
        epsilons = [epsilon_in_use(t, g, floor) for t, g in zip(thresholds, wide, strict=True)]
        learned = [learn(*each, threshold_lr) for each in zip(thresholds, wide, epsilons, strict=True)]
        trees = (jax.tree.unflatten(treedef, part) for part in (epsilons, [t.scale for t in thresholds]))
        updates = change(grads, *trees, extra)
        return updates, RecodingState(state.count + jnp.int32(1), jax.tree.unflatten(treedef, learned))

    return optax.GradientTransformationExtraArgs(init, update)


def recode(
    *, drop: bool = False, strength: float = 0.3, floor: float = 0.1, threshold_lr: float = 0.01
) -> optax.GradientTransformation:
    """Multiplies the dominant entries of every gradient by `boost`; the others pass, or are dropped.

    >>> optimiser = optax.chain(recode(), optax.sgd(0.1, momentum=0.9))

    Args:
      drop: whether the entries below the threshold become 0 instead of passing unchanged.
      strength: lambda over the first threshold; 0 leaves the gradients as they are (but for `drop`).
      floor: the least share of the entries with a gradient that counts as dominant, in (0, 1].
      threshold_lr: learning rate of the thresholds; 0 leaves them at their start.

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
    """Adds the gradient of lambda * mean_j Phi_0(g_j) of every tensor: Eq. 10 as it is written, by second derivatives.

    With the mask held constant that gradient is H v, H the Hessian of the loss and v = lambda m (1 + 2 |g|) sign(g) /
    (epsilon * size). The transformation is told H by its extra argument `hvp`, a function of a tree like the
    gradients' that returns H times it, as the step of this package passes it.

    Args:
      strength, floor, threshold_lr: as for `recode`.

    Raises:
      ValueError: as `recode`, and `update` without `hvp`.
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
    """The gradient of decay * sum |W| added: the paper's L1 baseline. decay >= 0."""
    return optax.stateless(lambda grads, params: jax.tree.map(lambda g, w: g + decay * jnp.sign(w), grads, params))


def l2(decay: float) -> optax.GradientTransformation:
    """The gradient of decay * sum W^2 added: the paper's L2 baseline. decay >= 0."""
    return optax.add_decayed_weights(2.0 * decay)
