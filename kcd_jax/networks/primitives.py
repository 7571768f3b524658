"""Convolutions and batch normalisation that are fast on XLA's CPU backend, and XLA's own convolutions elsewhere.

On a CPU, XLA's gradients of a convolution use layouts that miss its fast kernels (3 times slower, 9 times inside a
loop). There the gradients are written as explicit NHWC/HWIO convolutions, a depthwise convolution as shifted
multiply-adds, and a 1x1 convolution as a matrix product. Pure reorderings of data are compiled separately (`apart`).
The backend is determined when a function is traced; inside `portable`, all get XLA's own. All variants have the same
values and derivatives.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from kcd_jax.contracts import Array

_NHWC = ('NHWC', 'HWIO', 'NHWC')
_ROWS = 8  # rows per loop in a depthwise kernel's gradient: more compile longer and run no faster
EPSILON = 1e-5  # of batch normalisation
_LARGE = 256  # positions of an image from which sums over eight slices are faster than over four
_portable = contextvars.ContextVar('portable', default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Inside, functions are traced with plain convolutions on a CPU too, for programs that run elsewhere."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def tuned() -> bool:
    """Whether the variants for XLA's CPU backend are used."""
    return jax.default_backend() == 'cpu' and not _portable.get()


def apart(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of arrays, compiled on a CPU as a separate function whose arguments and results are in memory.

    Otherwise XLA's CPU backend fuses the producers of an argument into each operation that reads it in another order,
    back to the start of a chain of residual blocks, and recomputes them without vector instructions. It ignores
    `optimization_barrier`, but respects a call that must not be inlined.

    `fn` must not sum over the batch: the exchange between devices would be inside the call, where XLA does not keep
    exchanges in one order on all devices, and they deadlock.
    """
    jitted = jax.jit(fn)

    @functools.wraps(fn)
    def call(*arguments: Any) -> Any:
        if not tuned():
            return fn(*arguments)
        with set_xla_metadata(inlineable='false'):
            return jitted(*arguments)

    return call


def linear_apart(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`apart` for a linear `fn` of one tree of arrays, and for its derivative."""

    @jax.custom_vjp
    def call(x: Any) -> Any:
        return apart(fn)(x)

    def backward(x: Any, grad: Any) -> tuple[Any]:
        def transposed(grad: Any) -> Any:
            return jax.linear_transpose(fn, x)(grad)[0]

        return (apart(transposed)(grad),)

    call.defvjp(lambda x: (call(x), x), backward)
    return call


def convolve(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """A convolution with symmetric padding of kernel // 2.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, O] of the same dtype, k odd.
      stride: of both axes.
      groups: groups of consecutive channels that are convolved separately.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    if not tuned():
        return plain(x, kernel, stride, groups)
    if kernel.shape[0] == 1 and stride > 1:  # it reads only every stride-th pixel
        x, stride = x[:, ::stride, ::stride], 1
    if groups == 1:
        return pointwise(x, kernel) if kernel.shape[0] == 1 else dense(x, kernel, stride)
    if groups == x.shape[-1] == kernel.shape[-1]:
        return depthwise(x, kernel, stride)
    return plain(x, kernel, stride, groups)


def plain(x: Array, kernel: Array, stride: int = 1, groups: int = 1) -> Array:
    """`convolve` with XLA's own gradients."""
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad), (pad, pad)], dimension_numbers=_NHWC, feature_group_count=groups
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense(x: Array, kernel: Array, stride: int) -> Array:
    """`convolve` with one group and explicit gradients."""
    return _dense(x, kernel, stride)


def _dense(x: Array, kernel: Array, stride: int) -> Array:
    pad = kernel.shape[0] // 2
    x, padding = _at_least(kernel.shape[0], x, [(pad, pad), (pad, pad)])
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_NHWC)


def _at_least(size: int, x: Array, padding: list[tuple[int, int]]) -> tuple[Array, list[tuple[int, int]]]:
    """(image, padding that remains): an image smaller than the kernel is padded here, by concatenation.

    XLA's fast kernels do not support such images (2x2 in the last stage of a ResNet-18 at 64 pixels: 50 times slower).
    A `pad` would be fused back into the convolution; a concatenation is not.
    """
    if min(x.shape[1:3]) >= size:
        return x, padding
    for axis, (low, high) in enumerate(padding, start=1):
        before, after = (x.shape[:axis] + (count,) + x.shape[axis + 1 :] for count in (low, high))
        x = jnp.concatenate([jnp.zeros(before, x.dtype), x, jnp.zeros(after, x.dtype)], axis)
    return x, [(0, 0), (0, 0)]


def _dense_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _dense(x, kernel, stride), (x, kernel)


def _dense_backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size, pad = kernel.shape[0], kernel.shape[0] // 2
    reach = [(out - 1) * stride + 1 for out in grad.shape[1:3]]  # pixels from the first to the last position
    low = size - 1 - pad
    padding = [(low, full - span - low + size - 1) for full, span in zip(x.shape[1:3], reach, strict=True)]
    bordered, padding = _at_least(size, grad, padding) if stride == 1 else (grad, padding)
    input_grad = lax.conv_general_dilated(
        bordered,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=_NHWC,
    )
    return input_grad, dense_kernel_gradient(x, grad, size, stride)


def dense_kernel_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """The gradient [k, k, C, O]: the input convolved with the output's gradient, summed over the batch as channels."""
    pad, full_sizes = size // 2, x.shape[1:3]
    reach = [(out - 1) * stride + 1 for out in grad.shape[1:3]]
    x, grad = apart(_batch_as_channel)(x, grad)
    return lax.conv_general_dilated(
        x,
        grad,
        (1, 1),
        [(pad, size - 1 + span - full - pad) for full, span in zip(full_sizes, reach, strict=True)],
        rhs_dilation=(stride, stride),
        dimension_numbers=_NHWC,
    ).transpose(1, 2, 0, 3)


def _batch_as_channel(x: Array, grad: Array) -> tuple[Array, Array]:
    return x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)


dense.defvjp(_dense_forward, _dense_backward)


# ----------------------------------------------------------------------------------------------------------- depthwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """`convolve` with one group per channel, as k * k shifted multiply-adds; kernel [k, k, 1, C]."""
    return depthwise_forward(x, kernel, stride)


# These three are jitted so that the counter of multiply-accumulates (training/macs.py) recognises them by name.


@functools.partial(jax.jit, static_argnums=2)
def depthwise_forward(x: Array, kernel: Array, stride: int) -> Array:
    """The output [B, ceil(H / stride), ceil(W / stride), C]."""
    total = jnp.zeros((), x.dtype)
    for row, column, shifted in shifts(x, kernel.shape[0], stride):
        total = total + shifted * kernel[row, column].reshape(1, 1, 1, -1)
    return total


@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise_input_gradient(grad: Array, kernel: Array, stride: int, shape: tuple[int, int]) -> Array:
    """The gradient [B, H, W, C] of an input of `shape` (H, W): the flipped kernel over the dilated gradient."""
    if stride > 1:
        high = [full - (out - 1) * stride - 1 for full, out in zip(shape, grad.shape[1:3], strict=True)]
        config = [(0, 0, 0), (0, high[0], stride - 1), (0, high[1], stride - 1), (0, 0, 0)]
        grad = lax.pad(grad, jnp.zeros((), grad.dtype), config)
    return depthwise_forward(grad, jnp.flip(kernel, (0, 1)), 1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def depthwise_kernel_gradient(x: Array, grad: Array, size: int, stride: int) -> Array:
    """The gradient [k, k, 1, C]: the sum of x, shifted, times grad for each of k * k shifts."""
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    sums = apart(functools.partial(_kernel_gradient_sums, size=size, stride=stride))(padded, grad)
    # The sum over the batch is outside `apart`: XLA combines the exchanges of all gradients of a step.
    return jnp.sum(sums, 0).reshape(size, size, 1, -1)


def _kernel_gradient_sums(padded: Array, grad: Array, size: int, stride: int) -> Array:
    """[B, k * k, C]: the sums within each image.

    XLA's CPU backend reduces fast only over whole arrays, so the loop that multiplies also adds the products of up to
    _ROWS rows, and one loop serves all shifts along a row.
    """
    batch, height, width, features = grad.shape
    every = max(count for count in range(1, _ROWS + 1) if height % count == 0)  # rows added in one loop

    def partial(row: int, column: int) -> Array:
        total = jnp.zeros((), grad.dtype)
        for first in range(every):
            start = (0, row + first * stride, column, 0)
            stop = (batch, start[1] + (height - every) * stride + 1, column + (width - 1) * stride + 1, features)
            total = total + lax.slice(padded, start, stop, (1, every * stride, stride, 1)) * grad[:, first::every]
        return total

    rows = [jnp.stack([partial(row, column) for column in range(size)], 1) for row in range(size)]
    return jnp.concatenate([jnp.sum(row, (2, 3)) for row in rows], 1)


def shifts(x: Array, size: int, stride: int) -> Iterator[tuple[int, int, Array]]:
    """(row, column, view) of each position of a size x size window over x [B, H, W, C], zero-padded by size // 2."""
    pad = size // 2
    batch, height, width, features = x.shape
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for row in range(size):
        for column in range(size):
            # Not by indexing, which becomes a gather where the size of the batch is symbolic.
            start, stop = (0, row, column, 0), (batch, row + height, column + width, features)
            yield row, column, lax.slice(padded, start, stop, (1, stride, stride, 1))


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_forward(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    input_grad = depthwise_input_gradient(grad, kernel, stride, x.shape[1:3])
    return input_grad, depthwise_kernel_gradient(x, grad, kernel.shape[0], stride)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


# ----------------------------------------------------------------------------------------------------------- pointwise


def pointwise(x: Array, kernel: Array) -> Array:
    """`convolve` of size 1 and stride 1 as one matrix product, which has the faster gradients."""
    return (x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[2:])).reshape(*x.shape[:3], kernel.shape[3])


# ------------------------------------------------------------------------------------------------- batch normalisation


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
    """f32[C] of each term, a function of elements: its sum over all axes of the arrays [..., C] but the last.

    XLA's CPU backend computes such a sum of anything but a plain array element by element: the moments and their
    gradients took longer than the convolutions. So a few slices of every image are first added to one another (a loop
    over contiguous memory), and what is left is summed as a plain array.
    """
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
