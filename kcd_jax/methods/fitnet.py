"""FitNet: hints from one middle stage (Romero et al., ICLR 2015, "FitNets: Hints for Thin Deep Nets").

extra = mean((R(F_s) - F_t)^2) on tap 2, with R = ReLU(BN(conv)) chosen by the two spatial sizes: a 3x3 convolution of
stride 2 if the student's map is twice as large, a transposed 4x4 of stride 2 if it is half as large, else a valid
convolution of kernel 1 + H_s - H_t. As in the public distillation code, the term is added to the cross entropy from
the first epoch on; the paper trains in two stages. R is trained with the student and uses batch statistics.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, PyTree, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=100.0)
RELATIONAL = True  # a point's term depends on the rest of the batch, through batch statistics


def regressor_kind(student: tuple[int, ...], teacher: tuple[int, ...]) -> str:
    """'valid', 'down' or 'up' for maps of shape [B, h, w, c]; ValueError if no regressor of the paper fits."""
    (height_s, width_s), (height_t, width_t) = student[1:3], teacher[1:3]
    if (height_s, width_s) == (2 * height_t, 2 * width_t):
        return 'down'
    if (2 * height_s, 2 * width_s) == (height_t, width_t):
        return 'up'
    if height_s >= height_t and width_s >= width_t:
        return 'valid'
    raise ValueError(
        f'fitnet has no regressor from {height_s}x{width_s} to {height_t}x{width_t}; '
        'use another map by tap=..., or at, sp or crd'
    )


def regressor_init(key: Array, student: tuple[int, ...], teacher: tuple[int, ...]) -> PyTree:
    """The convolution and its normalisation, for maps of these shapes."""
    channels_s, channels_t = student[3], teacher[3]
    kind = regressor_kind(student, teacher)
    if kind == 'down':
        params = _parts.conv_init(key, (3, 3, channels_s, channels_t), bias=True)
    elif kind == 'up':
        # PyTorch computes the fan-in of a transposed kernel from its second axis, the output channels.
        params = _parts.conv_init(key, (4, 4, channels_s, channels_t), bias=True, fan_in=16 * channels_t)
    else:
        size = (1 + student[1] - teacher[1], 1 + student[2] - teacher[2])
        params = _parts.conv_init(key, (*size, channels_s, channels_t), bias=True)
    return {'conv': params, 'norm': _parts.batch_norm_init(channels_t)}


def regress(params: PyTree, student: Array, teacher_shape: tuple[int, ...]) -> Array:
    """[B, h_s, w_s, c_s] -> [B, h_t, w_t, c_t], >= 0."""
    student = student.astype(jnp.float32)
    kind = regressor_kind(student.shape, teacher_shape)
    if kind == 'down':
        x = _parts.conv(params['conv'], student, stride=2)
    elif kind == 'up':
        x = _parts.conv_double(params['conv'], student)
    else:
        x = _parts.conv_valid(params['conv'], student)
    return jax.nn.relu(_parts.batch_norm(params['norm'], x))


def hint(regressed: Array, teacher: Array) -> Array:
    """f32[B]: the mean squared difference of each row's maps."""
    return _parts.mean_per_row((regressed - teacher.astype(jnp.float32)) ** 2)


@ranges(tap={'low': 0, 'high': 1000})
def make(*, tap: int = 2) -> Method:
    """Builds the method.

    Args:
      tap: index of the feature map; 0 is the stem.
    """

    def init(key, setup):
        found = min(len(setup.student.feats), len(setup.teacher.feats))
        if not 0 <= tap < found:
            raise ValueError(f'fitnet: tap is {tap}, but both networks have maps 0 to {found - 1}; use one of those')
        student, teacher = setup.student.feats[tap].shape, setup.teacher.feats[tap].shape
        return {'regressor': regressor_init(key, student, teacher)}, {}

    def loss(params, state, student, teacher, batch, clock, key):
        del batch, clock, key
        target = teacher.feats[tap]
        regressed = regress(params['regressor'], student.feats[tap], target.shape)
        return LossOut(extra=hint(regressed, target), state=state)

    return Method(loss=loss, init=init, needs=('feats',))
