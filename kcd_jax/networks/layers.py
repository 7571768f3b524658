"""Layers shared by all networks, and `wrap`, which makes a flax module a `Network`.

Modules are named as in public PyTorch checkpoints ('layer1.0.conv1'), so that importing one only renames leaves. Images
are NHWC, kernels HWIO; padding is explicit and symmetric as in PyTorch. A layer computes in the dtype of its input;
parameters and statistics are float32.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kcd_jax.contracts import Array, Network, Outputs, PyTree
from kcd_jax.networks.primitives import EPSILON, batch_normalise, convolve, linear_apart, shifts

BN_MOMENTUM = 0.9  # PyTorch's 0.1
LN_EPSILON = 1e-6  # timm's

# (mean, std) of the channels in [0, 1]; 'cifar100_unix' and 'reviewkd' are those of the papers' own code.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    'cifar100': ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    'cifar100_unix': ((0.5071, 0.4866, 0.4409), (0.2675, 0.2565, 0.2761)),
    'reviewkd': ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'none': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

# One array cut along its channels: each part is [B, H, W, c].
Parts = tuple[Array, ...]

Normalization = str | tuple[tuple[float, ...], tuple[float, ...]]


def constants(normalization: Normalization) -> dict[str, Array]:
    """{'mean', 'std'}: f32[3] per channel.

    Args:
      normalization: a name in `NORMALIZATIONS`, a pair (mean, std), or its six numbers as text, 'M,M,M,S,S,S'.

    Raises:
      ValueError: an unknown name, or a std that is not positive.
    """
    if isinstance(normalization, str):
        normalization = NORMALIZATIONS.get(normalization) or _six_numbers(normalization)
    mean, std = (np.asarray(part, np.float32) for part in normalization)
    if mean.shape != (3,) or std.shape != (3,) or not ((std > 0) & np.isfinite(mean + std)).all():
        raise ValueError(f'normalization needs three means and three positive deviations, found {mean} and {std}')
    if mean.max() > 1:
        raise ValueError(f'normalization has the means {mean}, and pixels are in [0, 1]; divide both by 255')
    return {'mean': jnp.asarray(mean), 'std': jnp.asarray(std)}


def _six_numbers(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        numbers = tuple(map(float, text.split(',')))
    except ValueError:
        numbers = ()
    if len(numbers) != 6:
        known = ', '.join(NORMALIZATIONS)
        raise ValueError(f'unknown normalization {text!r}; known: {known}, or six numbers: means, then deviations')
    return numbers[:3], numbers[3:]


# ------------------------------------------------------------------------------------------------------ initial values


@struct.dataclass
class _Drawn(nn.meta.AxisMetadata):
    """The shape of a parameter and its distribution; survives `eval_shape`, so initialising runs no forward pass.

    Attributes:
      value: an array, or its shape.
      kind: 'normal' (standard deviation `scale`), 'uniform' (in +-scale) or 'constant'.
      scale: see `kind`.
    """

    value: Any
    kind: str = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> _Drawn:
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> _Drawn:
        del index, params
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _Drawn:
        del index, params
        return self


def drawn(kind: str, scale: float, shape: tuple[int, ...]) -> Callable[[Array], _Drawn]:
    """An initialiser for `Module.param` that records the distribution; `draw` samples it."""

    def initialiser(key: Array) -> _Drawn:
        del key
        return _Drawn(jnp.zeros(shape, jnp.float32), kind, scale)

    return initialiser


def draw(key: Array, boxed: PyTree) -> PyTree:
    """Samples every parameter of a tree of `_Drawn` boxes.

    Args:
      key: one random stream per kind is drawn from it, and the leaves are slices of it. With a concrete key the slicing
        is done by NumPy, which needs no compilation per shape.
      boxed: tree of `_Drawn`.

    Returns:
      The same tree of f32 arrays.
    """
    leaves, treedef = jax.tree.flatten(boxed, is_leaf=lambda leaf: isinstance(leaf, _Drawn))
    traced = isinstance(key, jax.core.Tracer)
    numpy = jnp if traced else np
    streams, offsets = {}, {'normal': 0, 'uniform': 0}
    for number, (kind, sample) in enumerate({'normal': jax.random.normal, 'uniform': jax.random.uniform}.items()):
        size = sum(math.prod(leaf.value.shape) for leaf in leaves if leaf.kind == kind)
        stream = sample(jax.random.fold_in(key, number), (size,), jnp.float32)
        streams[kind] = stream if traced else np.asarray(stream)
    values = []
    for leaf in leaves:
        if leaf.kind == 'constant':
            values.append(jnp.full(leaf.value.shape, leaf.scale, jnp.float32))
            continue
        start = offsets[leaf.kind]
        offsets[leaf.kind] = stop = start + math.prod(leaf.value.shape)
        unit = streams[leaf.kind][start:stop].reshape(leaf.value.shape)
        if leaf.kind == 'uniform':
            unit = unit * numpy.float32(2) - numpy.float32(1)
        values.append(jnp.asarray(unit * numpy.float32(leaf.scale)))
    return jax.tree.unflatten(treedef, values)


# -------------------------------------------------------------------------------------------------------------- layers


class Conv(nn.Module):
    """A convolution [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features], padded by kernel // 2.

    Attributes:
      features: output channels.
      kernel: height and width of the kernel.
      stride: of both axes.
      groups: groups of consecutive channels that are convolved separately.
      bias: whether a bias is added.
      init: 'fan_out' draws the kernel from N(0, 2 / (kernel^2 * features)) and sets the bias to zero; 'small' draws it
        from N(0, 0.02^2) likewise; 'torch' draws both from U(+-1 / sqrt(fan_in)).
    """

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    bias: bool = False
    init: str = 'fan_out'

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        bound = 1.0 / math.sqrt(math.prod(shape[:3]))
        how = {
            'fan_out': ('normal', math.sqrt(2.0 / (self.kernel**2 * self.features))),
            'small': ('normal', 0.02),
            'torch': ('uniform', bound),
        }[self.init]
        kernel = self.param('kernel', drawn(*how, shape))
        x = convolve(x, kernel.astype(x.dtype), self.stride, self.groups)
        if self.bias:
            how = ('uniform', bound) if self.init == 'torch' else ('constant', 0.0)
            x = x + self.param('bias', drawn(*how, (self.features,))).astype(x.dtype).reshape(1, 1, 1, -1)
        return x


class Dense(nn.Module):
    """A linear layer [..., D] -> [..., features] with bias.

    Attributes:
      features: outputs.
      kernel_init: (kind, scale) of `drawn`; None is U(+-1 / sqrt(D)), PyTorch's default.
      bias_init: likewise.
    """

    features: int
    kernel_init: tuple[str, float] | None = None
    bias_init: tuple[str, float] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        default = ('uniform', 1.0 / math.sqrt(x.shape[-1]))
        kernel = self.param('kernel', drawn(*(self.kernel_init or default), (x.shape[-1], self.features)))
        bias = self.param('bias', drawn(*(self.bias_init or default), (self.features,)))
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Patches(nn.Module):
    """A convolution whose stride is its kernel's size: [B, H, W, C] -> [B, ceil(H / size), ceil(W / size), features].

    The input is padded with zeros at its right and lower edge where the size does not divide it. The kernel is drawn
    from N(0, 0.02^2), the bias is zero.

    Attributes:
      features: output channels.
      size: height and width of a patch.
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        kernel = self.param('kernel', drawn('normal', 0.02, (self.size, self.size, channels, self.features)))
        bias = self.param('bias', drawn('constant', 0.0, (self.features,)))
        rows, columns = -(-height // self.size), -(-width // self.size)
        missing = (rows * self.size - height, columns * self.size - width)
        if any(missing):
            x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        x = x.reshape(batch, rows, self.size, columns, self.size, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows, columns, -1) @ kernel.astype(x.dtype).reshape(-1, self.features)
        return x + bias.astype(x.dtype).reshape(1, 1, 1, -1)


class GroupedConv(nn.Module):
    """A 1x1 convolution of groups of channels, from a tuple with each group's input to one with each group's output.

    The groups stay separate arrays because slicing and concatenating them costs more than the matrix products. The
    kernel is initialised like that of `Conv` with init='torch'.

    Attributes:
      features: output channels of all groups together.
    """

    features: int

    @nn.compact
    def __call__(self, parts: Parts) -> Parts:
        shape = (1, 1, parts[0].shape[-1], self.features)
        kernel = self.param('kernel', drawn('uniform', 1.0 / math.sqrt(shape[2]), shape))
        kernels = jnp.split(kernel.astype(parts[0].dtype), len(parts), -1)
        return tuple(convolve(part, weight) for part, weight in zip(parts, kernels, strict=True))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last; under jit the statistics are those of the global batch.

    It trains exactly when the caller may change 'batch_stats': then the batch's mean and biased variance normalise,
    and the running ones move by a tenth towards them. Statistics are float32 for any input dtype. A tuple of arrays is
    normalised like the one array that they form when concatenated along the channels.

    The moments are those of the differences from the running mean (`batch_normalise`), which all devices know.
    """

    @nn.compact
    def __call__(self, x: Array | Parts) -> Any:
        parts = x if isinstance(x, tuple) else (x,)
        cuts = list(itertools.accumulate(part.shape[-1] for part in parts))
        features = cuts.pop()
        scale = self.param('scale', drawn('constant', 1.0, (features,)))
        bias = self.param('bias', drawn('constant', 0.0, (features,)))
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (features,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (features,), jnp.float32)

        def cut(values: Array) -> list[Array]:
            return jnp.split(values, cuts)

        if self.is_mutable_collection('batch_stats'):
            pivot = running_mean.value
            rows = zip(parts, cut(scale), cut(bias), cut(pivot), strict=True)
            normed, moved, variances = zip(*(batch_normalise(*row) for row in rows), strict=True)
            if not self.is_initializing():
                running_mean.value = pivot + (1 - BN_MOMENTUM) * jnp.concatenate(moved)
                running_var.value = BN_MOMENTUM * running_var.value + (1 - BN_MOMENTUM) * jnp.concatenate(variances)
        else:
            mean, var = running_mean.value, running_var.value
            gain = scale * jax.lax.rsqrt(var + EPSILON)
            row = (1,) * (parts[0].ndim - 1) + (-1,)
            rows = zip(parts, cut(gain), cut(bias - mean * gain), strict=True)
            normed = tuple(
                (part.astype(jnp.float32) * factor.reshape(row) + term.reshape(row)).astype(part.dtype)
                for part, factor, term in rows
            )
        return normed if isinstance(x, tuple) else normed[0]


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, in float32 for any input dtype; epsilon 1e-6."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        row = (1,) * (x.ndim - 1) + (-1,)
        scale = self.param('scale', drawn('constant', 1.0, x.shape[-1:])).reshape(row)
        bias = self.param('bias', drawn('constant', 0.0, x.shape[-1:])).reshape(row)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        gain = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + LN_EPSILON)
        return (wide * gain * scale + bias).astype(x.dtype)


def global_mean(x: Array) -> Array:
    """[B, H, W, C] -> [B, C]: the average over the positions, for any image size."""
    return jnp.mean(x, (1, 2))


def halve_by_max(x: Array) -> Array:
    """Max-pooling 2x2 with stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C].

    Equal maxima share the gradient; after a ReLU only zeros are equal, and their gradient is zero.
    """
    batch, height, width, features = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(batch, height // 2, 2, width // 2, 2, features), (2, 4))


def mean_3x3(x: Array, stride: int) -> Array:
    """Average-pooling 3x3 with zero padding of one pixel, which counts in the mean."""

    def mean(x: Array) -> Array:
        return sum(view for _, _, view in shifts(x, 3, stride)) * jnp.asarray(1 / 9, x.dtype)

    return linear_apart(mean)(x)


def shuffle_channels(x: Array, groups: int) -> Array:
    """Channel shuffle: the channels, reshaped to a matrix of `groups` rows, are transposed."""

    def shuffle(x: Array) -> Array:
        return x.reshape(*x.shape[:3], groups, x.shape[3] // groups).swapaxes(3, 4).reshape(x.shape)

    return linear_apart(shuffle)(x)


def shuffle_parts(parts: Parts) -> Array:
    """`shuffle_channels` of the concatenated parts, one group per part; all parts have the same width."""

    def shuffle(parts: Parts) -> Array:
        return jnp.stack(parts, -1).reshape(*parts[0].shape[:3], -1)

    return linear_apart(shuffle)(parts)


# ------------------------------------------------------------------------------------------------------------- Network


def wrap(
    name: str,
    module: nn.Module,
    *,
    tail: tuple[str, ...],
    dtype: Any = jnp.float32,
    normalization: Normalization,
    convs: tuple[str, ...] = (),
) -> Network:
    """A flax module [B, H, W, 3] -> Outputs as a `Network` that normalises its input and returns float32.

    Args:
      name: the config name.
      module: called with the normalised image in `dtype`.
      tail: patterns of the paths in 'params' after the last tap.
      dtype: of the computation.
      normalization: see `constants`.
      convs: paths of the kernels whose maps are `Outputs.convs`.
    """
    pixels = constants(normalization)

    @functools.lru_cache(maxsize=8)
    def shapes(height: int, width: int) -> PyTree:
        image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        return jax.eval_shape(module.init, jax.random.key(0), image)

    def init(key: Array, image_shape: tuple[int, int, int]) -> PyTree:
        height, width, channels = image_shape
        if channels != 3 or min(height, width) < 8:
            found = f'found {tuple(image_shape)}'
            raise ValueError(f'{name} takes images of three channels and at least 8x8 pixels, {found}')
        drawn = shapes(height, width)
        stats = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full(leaf.shape, 1.0 if path[-1].key == 'var' else 0.0, jnp.float32),
            drawn.get('batch_stats', {}),
        )
        return {
            'params': draw(key, drawn['params']),
            'batch_stats': stats,
            'constants': {part: jnp.array(value, copy=True) for part, value in pixels.items()},
        }

    def apply(variables: PyTree, image: Array, train: bool) -> tuple[Outputs, PyTree]:
        state = {'batch_stats': variables['batch_stats'], 'constants': variables['constants']}
        mean, std = (variables['constants'][part].reshape(1, 1, 1, 3) for part in ('mean', 'std'))
        x = ((image - mean) / std).astype(dtype)
        given = {'params': variables['params'], 'batch_stats': variables['batch_stats']}
        if train:
            outputs, changed = module.apply(given, x, mutable=['batch_stats'])
            state = {**state, 'batch_stats': changed['batch_stats']}
        else:
            outputs = module.apply(given, x)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs), state

    return Network(name=name, init=init, apply=apply, tail=tail, convs=convs)
