"""Shared by several methods: layers of regressors and heads, resizing of feature maps, groups of a batch.

Layers are pure functions of small dicts of arrays. They are initialised like PyTorch's defaults, with which the
published loss weights were tuned. All computation is float32, whatever the dtype of the features.

Normalisation layers of regressors always use batch statistics: a regressor is discarded after training and never
evaluated, so nothing would read running averages.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Array, PyTree
from kcd_jax.networks.primitives import convolve

_NHWC = ('NHWC', 'HWIO', 'NHWC')

# ------------------------------------------------------------------------------------------------------------ layers


def uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    """f32 drawn from U(-bound, bound)."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def linear_init(key: Array, size_in: int, size_out: int) -> PyTree:
    """{'kernel' [in, out], 'bias' [out]}, both U(-1/sqrt(in), 1/sqrt(in))."""
    kernel_key, bias_key = jax.random.split(key)
    bound = 1.0 / math.sqrt(size_in)
    return {'kernel': uniform(kernel_key, (size_in, size_out), bound), 'bias': uniform(bias_key, (size_out,), bound)}


def linear(params: PyTree, x: Array) -> Array:
    """[B, in] -> [B, out]."""
    return x @ params['kernel'] + params['bias'][None, :]


def conv_init(
    key: Array, shape: tuple[int, int, int, int], *, bias: bool, gain: float = 1.0, fan_in: int = 0
) -> PyTree:
    """A kernel [h, w, in, out] from U(+-sqrt(gain / fan_in)), and optionally a bias from the same range.

    gain 1 is PyTorch's default; gain 3 is ReviewKD's Kaiming uniform (a = 1). `fan_in` 0 means h * w * in.
    """
    kernel_key, bias_key = jax.random.split(key)
    bound = math.sqrt(gain / (fan_in or shape[0] * shape[1] * shape[2]))
    params = {'kernel': uniform(kernel_key, shape, bound)}
    return {**params, 'bias': uniform(bias_key, shape[-1:], bound)} if bias else params


def conv(params: PyTree, x: Array, stride: int = 1) -> Array:
    """Convolution with an odd kernel and padding kernel // 2: [B, h, w, in] -> [B, ceil(h / stride), ..., out]."""
    return _add_bias(params, convolve(x, params['kernel'], stride))


def conv_valid(params: PyTree, x: Array) -> Array:
    """Convolution with stride 1 and no padding: [B, h, w, in] -> [B, h - k_h + 1, w - k_w + 1, out]."""
    x = jax.lax.conv_general_dilated(x, params['kernel'], (1, 1), 'VALID', dimension_numbers=_NHWC)
    return _add_bias(params, x)


def conv_double(params: PyTree, x: Array) -> Array:
    """Transposed 4x4 convolution of stride 2: [B, h, w, in] -> [B, 2 h, 2 w, out].

    Equal to PyTorch's with padding 1 and the kernel rotated by 180 degrees.
    """
    pad = ((2, 2), (2, 2))
    x = jax.lax.conv_general_dilated(x, params['kernel'], (1, 1), pad, lhs_dilation=(2, 2), dimension_numbers=_NHWC)
    return _add_bias(params, x)


def _add_bias(params: PyTree, x: Array) -> Array:
    return x + params['bias'][None, None, None, :] if 'bias' in params else x


def batch_norm_init(channels: int) -> PyTree:
    """{'scale': ones, 'bias': zeros} [channels]."""
    return {'scale': jnp.ones(channels, jnp.float32), 'bias': jnp.zeros(channels, jnp.float32)}


def batch_norm(params: PyTree, x: Array) -> Array:
    """Normalises [B, h, w, c] by the batch's mean and biased variance, with epsilon 1e-5."""
    axes = (0, 1, 2)
    mean = jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axes, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return x * params['scale'][None, None, None, :] + params['bias'][None, None, None, :]


def normalise(x: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    """x / ||x||_2 along an axis; a vector shorter than `eps` becomes zero, with zero gradient.

    PyTorch divides such a vector by eps, so that a dead feature gets a gradient scaled by 1e12.
    """
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    alive = square > eps**2
    return jnp.where(alive, x * jax.lax.rsqrt(jnp.where(alive, square, 1.0)), 0.0)


# ------------------------------------------------------------------------------------------------------ feature maps


def _pooling_matrix(size_in: int, size_out: int) -> np.ndarray:
    """f32[out, in]: adaptive average pooling; output o averages inputs floor(o*in/out) ... ceil((o+1)*in/out) - 1."""
    matrix = np.zeros((size_out, size_in), np.float32)
    for out in range(size_out):
        begin, end = out * size_in // size_out, -(-(out + 1) * size_in // size_out)
        matrix[out, begin:end] = 1.0 / (end - begin)
    return matrix


def pool_to(x: Array, size: tuple[int, int]) -> Array:
    """Adaptive average pooling of [B, h, w, c] to [B, *size, c]; a plain block mean if the sizes divide."""
    rows, height, width, channels = x.shape
    if (height, width) == tuple(size):
        return x
    if height % size[0] == 0 and width % size[1] == 0:
        blocks = x.reshape(rows, size[0], height // size[0], size[1], width // size[1], channels)
        return jnp.mean(blocks, axis=(2, 4))
    down, across = _pooling_matrix(height, size[0]), _pooling_matrix(width, size[1])
    return jnp.einsum('bhwc,oh,pw->bopc', x, down, across, precision='highest')


def same_size(a: Array, b: Array) -> tuple[Array, Array]:
    """Both maps in float32, average-pooled to the smaller of the two sizes."""
    size = (min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2]))
    return pool_to(a.astype(jnp.float32), size), pool_to(b.astype(jnp.float32), size)


def stage_maps(student: tuple[Array, ...], teacher: tuple[Array, ...]) -> list[tuple[Array, Array]]:
    """(student, teacher) pairs of stage maps at equal size, without the stem.

    If one network has more stages, its deepest maps are unused.
    """
    return [same_size(s, t) for s, t in zip(student[1:], teacher[1:], strict=False)]


def mean_per_row(x: Array) -> Array:
    """[B, ...] -> [B]: the mean over all axes but the first."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


# ------------------------------------------------------------------------------------------------- groups of a batch


def group_size(rows: int, group: int) -> int:
    """Rows per group: the largest divisor of the batch that is at most `group`.

    Relations are computed within groups of neighbouring rows. The loss then does not depend on the number of devices,
    and in a larger batch it keeps the paper's scale (64).

    Raises:
      ValueError: the batch has no divisor between 2 and `group`.
    """
    size = next((size for size in range(min(group, rows), 0, -1) if rows % size == 0), 1)
    if size < 2 <= rows:
        raise ValueError(
            f'a batch of {rows} does not split into equal groups of 2 to {group}; use a multiple of {group}'
        )
    return size


def in_groups(x: Array, group: int) -> Array:
    """[B, ...] -> f32[B / g, g, -1], g = group_size(B, group)."""
    size = group_size(x.shape[0], group)
    return x.astype(jnp.float32).reshape(x.shape[0] // size, size, -1)
