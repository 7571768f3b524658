"""Batch normalisation as a function with an explicit gradient, whose sums XLA's CPU backend vectorises.

That backend computes a sum over all axes but the last of anything but a plain array element by element: the moments
and their gradients took longer than the convolutions. So a few slices of every image are first added to one another
(a loop over contiguous memory), and what is left is summed as a plain array.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array
from kcd_jax.networks.convolution import tuned

EPSILON = 1e-5
_LARGE = 256  # positions of an image from which eight slices are faster than four


@jax.custom_vjp
def batch_normalise(x: Array, scale: Array, bias: Array, pivot: Array) -> tuple[Array, Array, Array]:
    """Normalises by the moments of the batch, computed in float32 in one pass as those of x - pivot.

    Without a pivot near the mean float32 would lose the variance where the mean is large (0.2 of 1 at a mean of 1000
    deviations).

    Args:
      x: [..., C]; all axes but the last are normalised over.
      scale, bias: f32[C].
      pivot: f32[C], e.g. the running mean.

    Returns:
      (x normalised, of its shape and dtype; the mean of x - pivot, f32[C]; the biased variance, f32[C]). No gradient
      flows through the two moments, nor to `pivot`.
    """
    return _forward(x, scale, bias, pivot)[0]


def _forward(x: Array, scale: Array, bias: Array, pivot: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    count = x.size // x.shape[-1]
    first, second = _sums(lambda part: (part, jnp.square(part)), x.astype(jnp.float32) - _row(pivot, x))
    shift = first / count
    mean, var = pivot + shift, jnp.maximum(second / count - jnp.square(shift), 0.0)
    inverse = jax.lax.rsqrt(var + EPSILON)
    gain = scale * inverse
    normed = x.astype(jnp.float32) * _row(gain, x) + _row(bias - mean * gain, x)
    return (normed.astype(x.dtype), shift, var), (x, mean, inverse, gain)


def _backward(saved: tuple[Array, ...], grads: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
    x, mean, inverse, gain = saved
    count = x.size // x.shape[-1]
    grad = grads[0].astype(jnp.float32)
    centered = x.astype(jnp.float32) - _row(mean, x)
    total, product = _sums(lambda grad, centered: (grad, grad * centered), grad, centered)
    slope = jnp.square(inverse) * product / count
    input_grad = (grad - _row(total / count, x) - centered * _row(slope, x)) * _row(gain, x)
    return input_grad.astype(x.dtype), product * inverse, total, jnp.zeros_like(mean)


batch_normalise.defvjp(_forward, _backward)


def _row(values: Array, x: Array) -> Array:
    """f32[C], broadcast along the last axis of x."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _sums(terms: Callable[..., tuple[Array, ...]], *arrays: Array) -> tuple[Array, ...]:
    """f32[C] of each term, a function of elements: its sum over all axes of the arrays [..., C] but the last."""
    shape = arrays[0].shape
    positions = 1
    for size in shape[1:-1]:
        positions *= size
    most = (8 if positions >= _LARGE else 4) if tuned() else 1
    slices = max(count for count in range(1, most + 1) if positions % count == 0)
    # The batch stays an axis of its own, since it may be split over devices.
    cut = [array.reshape(shape[0], slices, positions // slices, shape[-1]) for array in arrays]
    added = terms(*(array[:, 0] for array in cut))
    for index in range(1, slices):
        added = [total + term for total, term in zip(added, terms(*(array[:, index] for array in cut)), strict=True)]
    return tuple(jnp.sum(total, (0, 1)) for total in added)
