"""Optimisers as PyTorch defines them, as optax chains without the learning rate, and learning rates by epoch.

The learning rate is a host float of the phase's epoch (counted from 0), handed to the step as an array: it follows the
epochs however many steps they have left, and a change compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kcd_jax.contracts import PyTree

LearningRate = Callable[[int], float]

# The papers' CIFAR recipe: a tenth for the 151st, 181st and 211th of 240 epochs, counted from 1.
PAPERS_EPOCHS = 240
PAPERS_DROPS = (150, 180, 210)


def sgd(momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    """PyTorch's SGD without the learning rate: g += wd * w; m = g at first, then mu * m + g; the update is m.

    With Nesterov's momentum the update is g + mu * m. The weight decay reaches every parameter that is passed, scales
    and biases included.

    Args:
      momentum: mu in [0, 1). weight_decay: wd >= 0.

    Raises:
      ValueError: either is out of range; Nesterov without momentum.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f'momentum is {momentum}; use a number in [0, 1)')
    if weight_decay < 0:
        raise ValueError(f'weight_decay is {weight_decay}; use 0 or more')
    if nesterov and momentum == 0:
        raise ValueError('nesterov needs a momentum above 0')
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum, nesterov))


def adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """PyTorch's Adam without the learning rate (decay added to the gradient, not decoupled).

    g += wd * w; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    the update is m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).
    `optax.scale_by_adam` raises an int32 to a float power, which strict dtype promotion refuses; its state is kept.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(grads: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        count = state.count + jnp.ones((), jnp.int32)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        # 1 - b^t by expm1: the difference itself would lose four digits at the first steps.
        correct1, correct2 = (-jnp.expm1(count.astype(jnp.float32) * math.log(b)) for b in (b1, b2))
        updates = jax.tree.map(
            lambda m, v: (m / correct1.astype(m.dtype)) / (jnp.sqrt(v / correct2.astype(v.dtype)) + eps), mu, nu
        )
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    for name, value in (('b1', b1), ('b2', b2)):
        if not 0 < value < 1:
            raise ValueError(f'{name} is {value}; use a number in (0, 1)')
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.GradientTransformation(init, update))


def apply(
    transform: optax.GradientTransformation,
    lr: jax.Array,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    **extra: Any,
) -> tuple[PyTree, PyTree]:
    """One update w -= lr * u; returns (params, state). `lr` is f32[]; `extra` reaches what takes it."""
    updates, state = optax.with_extra_args_support(transform).update(grads, state, params, **extra)
    return jax.tree.map(lambda w, u: w - lr.astype(w.dtype) * u, params, updates), state


# --------------------------------------------------------------------------------------------------- learning rates


def constant(lr: float) -> LearningRate:
    """The same rate in every epoch."""
    return step_drops(lr, ())


def step_drops(lr: float, drops: Sequence[int], factor: float = 0.1) -> LearningRate:
    """`lr` times `factor` for every drop that has come.

    Args:
      lr: > 0. drops: epochs counted from 0, the first ones at the lower rate: (150, 180, 210) is the papers' "after
        epoch 150, 180, 210", counted from 1. factor: of each drop.
    """
    if not lr > 0:
        raise ValueError(f'the learning rate is {lr}; use a number above 0')
    return lambda epoch: lr * factor ** sum(epoch >= drop for drop in drops)


def papers_drops(epochs: int) -> tuple[int, ...]:
    """The papers' drops (150, 180, 210 of 240 epochs) for another number of epochs, rounded to the nearest."""
    return tuple((2 * drop * epochs + PAPERS_EPOCHS) // (2 * PAPERS_EPOCHS) for drop in PAPERS_DROPS)


def cosine(lr: float, epochs: int, final: float = 0.0) -> LearningRate:
    """From `lr` in epoch 0 along half a cosine to `final`, which epoch `epochs` would have."""
    return lambda epoch: final + 0.5 * (lr - final) * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))


def warmup(rule: LearningRate, epochs: int) -> LearningRate:
    """`rule`, with its first `epochs` epochs at 1/(epochs + 1), 2/(epochs + 1), ... of it."""
    return lambda epoch: rule(epoch) * min(1.0, (epoch + 1) / (epochs + 1))
