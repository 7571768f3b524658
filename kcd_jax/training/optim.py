"""PyTorch's optimisers as optax chains without the learning rate, and learning rate schedules by epoch.

A schedule maps the phase's epoch (from 0) to a Python float, which is passed to the step as an array. It follows
epochs, whatever their number of steps, and a change does not recompile. Ranges are checked in `recipe.Optim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kcd_jax.contracts import Batch, Outputs, PyTree

LearningRate = Callable[[int], float]
Mask = Callable[[PyTree], PyTree] | None  # params -> bool of each, or None for all of them


def sgd(
    momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False, decayed: Mask = None
) -> optax.GradientTransformation:
    """PyTorch's SGD without the learning rate: g += wd * w; m = mu * m + g (m = g at first); the update is m.

    With Nesterov momentum the update is g + mu * m.

    Args:
      momentum: mu in [0, 1).
      weight_decay: wd >= 0.
      nesterov: whether to use Nesterov's momentum.
      decayed: which parameters weight decay applies to (`kernels`); None: all, including scales and biases.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay, decayed), optax.trace(momentum, nesterov))


def adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, decayed: Mask = None
) -> optax.GradientTransformation:
    """PyTorch's Adam without the learning rate, with weight decay added to the gradient, not decoupled.

    g += wd * w; the update is that of `scale_by_adam`.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in (0, 1).
      eps: added to the root of the second moment, > 0.
      weight_decay: wd >= 0.
      decayed: which parameters weight decay applies to; None: all.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay, decayed), scale_by_adam(b1, b2, eps))


def adamw(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, decayed: Mask = None
) -> optax.GradientTransformation:
    """PyTorch's AdamW without the learning rate (Loshchilov and Hutter 2019): weight decay apart from the gradient.

    The update is that of `scale_by_adam` plus wd * w, so that a step shrinks a weight by lr * wd * w.

    Args:
      b1, b2, eps, weight_decay, decayed: as for `adam`.
    """
    return optax.chain(scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay, decayed))


def rmsprop(
    momentum: float = 0.0, b2: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0, decayed: Mask = None
) -> optax.GradientTransformation:
    """PyTorch's RMSprop without the learning rate.

    g += wd * w; v = b2 v + (1 - b2) g^2; m = mu m + g / (sqrt(v) + eps); the update is m.

    Args:
      momentum: mu in [0, 1).
      b2: decay rate of the second moment, in (0, 1).
      eps: added to the root of the second moment, > 0.
      weight_decay: wd >= 0.
      decayed: which parameters weight decay applies to; None: all.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decayed),
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False),
        optax.trace(momentum),
    )


def kernels(params: PyTree) -> PyTree:
    """Which parameters are kernels: those of two axes or more, so neither biases nor scales of a normalisation."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; the update is m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).

    `optax.scale_by_adam` raises an int32 to a float power, which strict dtype promotion refuses; the state is optax's.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in (0, 1).
      eps: added to the root of the second moment, > 0.
    """

    def init(params: PyTree) -> optax.ScaleByAdamState:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(grads: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, optax.ScaleByAdamState]:
        del params
        count = state.count + jnp.ones((), jnp.int32)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        # 1 - b^t by expm1: the plain difference loses four digits in the first steps.
        logs = (math.log(b) if b else -math.inf for b in (b1, b2))
        correct1, correct2 = (-jnp.expm1(count.astype(jnp.float32) * log) for log in logs)
        updates = jax.tree.map(
            lambda m, v: (m / correct1.astype(m.dtype)) / (jnp.sqrt(v / correct2.astype(v.dtype)) + eps), mu, nu
        )
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def apply(
    transform: optax.GradientTransformation,
    lr: jax.Array,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    **extra: Any,
) -> tuple[PyTree, PyTree]:
    """One update w <- w - lr * u.

    Args:
      transform: from `sgd`, `adam` or optax, without the learning rate.
      lr: f32[].
      grads, state, params: as `transform.update` takes them.
      **extra: extra arguments of the transformation.

    Returns:
      (params, state).
    """
    updates, state = optax.with_extra_args_support(transform).update(grads, state, params, **extra)
    return jax.tree.map(lambda w, u: w - lr.astype(w.dtype) * u, params, updates), state


def moving_average(average: PyTree, now: PyTree, step: jax.Array, decay: float) -> PyTree:
    """a + (1 - d) * (w - a) with d = min(decay, (1 + step) / (10 + step)), TensorFlow's warm-up of a moving average.

    The average covers about the last tenth of the steps until d reaches `decay`, at step 9 * decay / (1 - decay), so
    that the first steps of a short run do not dominate it.

    Args:
      average, now: trees of the same structure; a leaf that holds no floating-point numbers is taken over as it is.
      step: i32[], updates before this one.
      decay: in (0, 1).
    """
    count = step.astype(jnp.float32)
    change = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))

    def one(a: jax.Array, w: jax.Array) -> jax.Array:
        return a + change.astype(a.dtype) * (w - a) if jnp.issubdtype(w.dtype, jnp.floating) else w

    return jax.tree.map(one, average, now)


def accumulate(
    one_pass: Callable[..., Any],
    model_state: PyTree,
    method_state: PyTree,
    teacher: Outputs | None,
    batch: Batch,
    key: jax.Array,
    *,
    count: int,
    constrain: Callable[[PyTree], PyTree],
    unroll: bool,
) -> tuple[Any, ...]:
    """A pass over a batch in micro-batches, one after the other, with the results of one pass over all of it.

    Losses, metrics and gradients are means, running statistics and the method's state pass from one micro-batch to the
    next, and of the outputs only logits and embeddings stay. Micro-batch j holds the rows j, j + count, ..., so that
    each one is spread over all devices.

    Args:
      one_pass: (model_state, method_state, teacher, batch, key) -> (loss f32[], (per_point f32[R], terms
        {name: f32[R]}, method_state, metrics {name: f32[]}), gradients, model_state, outputs, teacher) of R rows.
      model_state, method_state: before the first micro-batch.
      teacher: its outputs for the whole batch, or None.
      batch: of B rows, a multiple of `count`.
      key: of the update; each micro-batch has its own.
      count: micro-batches.
      constrain: shards the rows of an array over the mesh.
      unroll: whether they are unrolled instead of scanned.

    Returns:
      What `one_pass` returns, for B rows.
    """
    rows = batch.label.shape[0]

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(rows // count, count, x.shape[0] // rows, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(count, -1, *x.shape[3:])

    def joined(x: jax.Array) -> jax.Array:
        x = x.reshape(count, rows // count, x.shape[1] * count // rows, *x.shape[2:])
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[3:])

    def slim(outputs: Outputs | None) -> Outputs | None:
        return None if outputs is None else Outputs(outputs.logits, embed=outputs.embed)

    def micro(carry: Any, part: Any) -> Any:
        model_state, method_state, total = carry
        given = (model_state, method_state, *jax.tree.map(constrain, part[:2]), part[2])
        loss, (points, terms, method_state, metrics), grads, model_state, outputs, teacher = one_pass(*given)
        total = jax.tree.map(lambda so_far, grad: so_far + grad / count, total, grads)
        return (model_state, method_state, total), ((loss, metrics), (points, terms, slim(outputs), slim(teacher)))

    parts = (*jax.tree.map(split, (slim(teacher), batch)), jax.random.split(key, count))
    one = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda part: one_pass(model_state, method_state, *part)[2], one)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = (model_state, method_state, zeros)
    (model_state, method_state, grads), (means, per_row) = jax.lax.scan(micro, start, parts, unroll=unroll)
    (loss, metrics), (points, terms, outputs, teacher) = (
        jax.tree.map(lambda x: jnp.mean(x, axis=0), means),
        jax.tree.map(joined, per_row),
    )
    return loss, (points, terms, method_state, metrics), grads, model_state, outputs, teacher


# --------------------------------------------------------------------------------------------------- learning rates


def constant(lr: float) -> LearningRate:
    """The same rate in every epoch.

    Args:
      lr: > 0.
    """
    return step_drops(lr, ())


def step_drops(lr: float, drops: Sequence[int], factor: float = 0.1) -> LearningRate:
    """`lr` times `factor` for every drop so far.

    Args:
      lr: initial rate, > 0.
      drops: epochs from 0, each the first one at the lower rate. (150, 180, 210) is the papers' "after epoch 150, 180,
        210", counted from 1.
      factor: of each drop, > 0.
    """
    return lambda epoch: lr * factor ** sum(epoch >= drop for drop in drops)


def cosine(lr: float, epochs: int, final: float = 0.0) -> LearningRate:
    """final + (lr - final) * (1 + cos(pi * epoch / epochs)) / 2: from `lr` in epoch 0 to `final` in epoch `epochs`.

    The last of `epochs` epochs is epoch `epochs` - 1, so the rate of every epoch is above `final`.

    Args:
      lr: initial rate, > 0.
      epochs: length of the half cosine, >= 1.
      final: rate from epoch `epochs` on.
    """
    return lambda epoch: final + 0.5 * (lr - final) * (1 + math.cos(math.pi * min(epoch, epochs) / epochs))


def warmup(rule: LearningRate, epochs: int) -> LearningRate:
    """`rule` with its first `epochs` epochs scaled by 1 / (epochs + 1), 2 / (epochs + 1), ...

    The rule is not delayed: epoch `epochs` is the first at its full value, which is already past a cosine's maximum.

    Args:
      rule: the rate by epoch without warm-up.
      epochs: of the warm-up, >= 0.
    """
    return lambda epoch: rule(epoch) * min(1.0, (epoch + 1) / (epochs + 1))
