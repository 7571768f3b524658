"""Convolutions that run well on XLA's CPU backend and are the plain ones elsewhere.

On a CPU XLA's gradient of a convolution stays in layouts that miss the fast kernels (three times slower; in a loop
body nine), so there the gradients of input and kernel are written as explicit NHWC/HWIO convolutions, a depthwise
convolution as shifted multiply-adds, and a 1x1 convolution as a matrix product. What only reorders what it reads is
compiled by itself (`apart`). The backend is asked at trace time. All have the same value and derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from kcd_jax.contracts import Array

_NHWC = ('NHWC', 'HWIO', 'NHWC')
_ROWS = 8  # of a depthwise kernel's gradient in one loop: more compile longer and run no faster


def apart(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of arrays, compiled as a function of its own on a CPU: its arguments and results are written to memory once.

    XLA's CPU backend otherwise computes an argument anew, back to the start of a chain of residual blocks, for each
    operation that only reads it in another order, and there without vector instructions. It heeds no
    `optimization_barrier`, but a call that is not to be inlined.

    `fn` must not add over the batch: the exchange between devices would lie inside the call, where XLA does not keep
    such exchanges in one order on all devices, and then they wait for each other for ever.
    """
    jitted = jax.jit(fn)

    @functools.wraps(fn)
    def call(*arguments: Any) -> Any:
        if jax.default_backend() != 'cpu':
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
      x: [B, H, W, C]. kernel: [k, k, C / groups, O] of the same dtype, k odd. stride: of both axes.
      groups: consecutive channels in each.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    if jax.default_backend() != 'cpu':
        return plain(x, kernel, stride, groups)
    if kernel.shape[0] == 1 and stride > 1:  # a strided 1x1 only reads every other pixel
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
    """An image and the padding that is left to do: one that is smaller than the kernel gets its border beforehand.

    XLA's fast kernels refuse such images (2x2 in the last stage of a ResNet-18 at 64 pixels: fifty times slower), and
    it takes a `pad` back into the convolution, but no concatenation.
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
    reach = [(out - 1) * stride + 1 for out in grad.shape[1:3]]  # pixels that the output's positions span
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
    """The gradient [k, k, C, O]: the input convolved by the output's gradient, with the batch as the summed channel."""
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
    """`convolve` of each channel by itself, as k * k shifted multiply-adds; kernel [k, k, 1, C]."""
    return depthwise_forward(x, kernel, stride)


# These three are jitted under their own names so that the counter of multiply-accumulates knows them (cost.py).


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
    # The sum over the batch comes last and outside: one exchange between devices for all gradients of a step.
    return jnp.sum(sums, 0).reshape(size, size, 1, -1)


def _kernel_gradient_sums(padded: Array, grad: Array, size: int, stride: int) -> Array:
    """[B, k * k, C]: the sum of each image.

    XLA's CPU backend sums fast over whole arrays only, so the products of up to _ROWS rows are added up in the loop
    that multiplies, and the shifts along a row come from one loop.
    """
    batch, height, width, features = grad.shape
    every = max(count for count in range(1, _ROWS + 1) if height % count == 0)  # rows that are added up in one loop

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
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for row in range(size):
        for column in range(size):
            yield row, column, padded[:, row : row + height : stride, column : column + width : stride]


def _depthwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_forward(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    input_grad = depthwise_input_gradient(grad, kernel, stride, x.shape[1:3])
    return input_grad, depthwise_kernel_gradient(x, grad, kernel.shape[0], stride)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


# ----------------------------------------------------------------------------------------------------------- pointwise


def pointwise(x: Array, kernel: Array) -> Array:
    """`convolve` of size 1 and stride 1 as one matrix product, whose gradients are the faster ones."""
    return (x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[2:])).reshape(*x.shape[:3], kernel.shape[3])
