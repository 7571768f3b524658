"""ReviewKD: knowledge review (Chen et al., CVPR 2021, "Distilling Knowledge via Knowledge Review").

The student's stage maps and pooled vector are fused by attention from the deepest to the shallowest (ABF). Each fused
map is compared with the teacher's map of that stage, before its last activation, by a pyramid of mean squared
differences (HCL). extra = min(1, epoch / warmup) * sum over stages, with epochs counted from 0, so it is 0 in the first
epoch. The stem is unused. beta is the paper's lambda and depends on the pair: 0.6 to 8.

The fusion convolutions are trained with the student, with weight decay, and use batch statistics. The teacher is in
eval mode, unlike in the authors' CIFAR script. If one network has more stages, its deepest maps are unused; the pooled
vectors are always compared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.contracts import Array, LossOut, Method, Outputs, PyTree, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=5.0)
RELATIONAL = True  # a point's term depends on the rest of the batch, through batch statistics

MAX_WIDTH = 512


def student_levels(outputs: Outputs) -> list[Array]:
    """Stage maps after activation and the pooled vector as a 1x1 map, shallow to deep."""
    return [*outputs.feats[1:], outputs.embed[:, None, None, :]]


def teacher_levels(outputs: Outputs) -> list[Array]:
    """Stage maps before activation and the pooled vector as a 1x1 map, shallow to deep."""
    return [*outputs.preacts, outputs.embed[:, None, None, :]]


def paired_levels(student: list, teacher: list) -> list[tuple]:
    """(student, teacher) pairs of the common levels, from deep to shallow, the pooled pair first."""
    stages = list(zip(student[:-1], teacher[:-1], strict=False))
    return [(student[-1], teacher[-1]), *reversed(stages)]


def nearest(x: Array, size: tuple[int, int]) -> Array:
    """Nearest-neighbour resize of [B, h, w, c]: pixel i reads floor(i * h / size)."""
    if x.shape[1:3] == tuple(size):
        return x
    row = np.arange(size[0]) * x.shape[1] // size[0]
    column = np.arange(size[1]) * x.shape[2] // size[1]
    return x[:, row][:, :, column]


def fusion_init(key: Array, channels_s: int, width: int, channels_t: int, deepest: bool) -> PyTree:
    """One ABF module: 1x1 to `width`, attention over two maps unless deepest, 3x3 to the teacher's channels."""
    keys = jax.random.split(key, 3)
    params = {
        'conv1': _parts.conv_init(keys[0], (1, 1, channels_s, width), bias=False, gain=3.0),
        'norm1': _parts.batch_norm_init(width),
        'conv2': _parts.conv_init(keys[1], (3, 3, width, channels_t), bias=False, gain=3.0),
        'norm2': _parts.batch_norm_init(channels_t),
    }
    if not deepest:
        params['attention'] = _parts.conv_init(keys[2], (1, 1, 2 * width, 2), bias=True)
    return params


def fuse(params: PyTree, x: Array, residual: Array | None, size: tuple[int, int]) -> tuple[Array, Array]:
    """One ABF module.

    Args:
      x: [B, h, w, c_s].
      residual: second output of the deeper module; None for the deepest.
      size: of the teacher's map.

    Returns:
      (f32[B, *size, c_t] to compare, f32[B, *size, width] for the next module).
    """
    x = _parts.batch_norm(params['norm1'], _parts.conv(params['conv1'], x.astype(jnp.float32)))
    if residual is not None:
        residual = nearest(residual, x.shape[1:3])
        attention = jax.nn.sigmoid(_parts.conv(params['attention'], jnp.concatenate([x, residual], axis=-1)))
        x = x * attention[..., :1] + residual * attention[..., 1:]
    x = nearest(x, size)
    return _parts.batch_norm(params['norm2'], _parts.conv(params['conv2'], x)), x


def review(params: PyTree, pairs: list[tuple[Array, tuple[int, int]]]) -> list[Array]:
    """The fused maps for (student's map, size of the teacher's map) pairs, from deep to shallow."""
    fused, residual = [], None
    for level, (x, size) in enumerate(pairs):
        out, residual = fuse(params[f'level{level}'], x, residual, size)
        fused.append(out)
    return fused


def pyramid(student: Array, teacher: Array) -> Array:
    """HCL of one level, f32[B]: mean squared differences at full size and pooled to 4, 2, 1; weights 1, 1/2, 1/4, 1/8.

    Pooled sizes that are not below the map's are skipped, and the sum is divided by the weights' sum.
    """
    teacher = teacher.astype(jnp.float32)
    loss, weight, total = _parts.mean_per_row((student - teacher) ** 2), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= student.shape[1]:
            continue
        weight /= 2.0
        pooled = _parts.pool_to(student, (size, size)) - _parts.pool_to(teacher, (size, size))
        loss, total = loss + weight * _parts.mean_per_row(pooled**2), total + weight
    return loss / total


@ranges(warmup={'low': 0, 'high': 1_000_000})
def make(*, warmup: int = 20) -> Method:
    """Builds the method.

    Args:
      warmup: epochs of the linear warm-up of the term's weight; 0: none.
    """

    def init(key, setup):
        if not setup.teacher.preacts:
            raise ValueError('reviewkd needs a teacher with Outputs.preacts, and this one has none; use at, sp or crd')
        student = [x.shape[-1] for x in (*setup.student.feats[1:], setup.student.embed)]
        teacher = [x.shape[-1] for x in (*setup.teacher.preacts, setup.teacher.embed)]
        width = min(MAX_WIDTH, student[-1])
        pairs = paired_levels(student, teacher)
        keys = jax.random.split(key, len(pairs))
        params = {
            f'level{i}': fusion_init(keys[i], channels_s, width, channels_t, deepest=i == 0)
            for i, (channels_s, channels_t) in enumerate(pairs)
        }
        return params, {}

    def loss(params, state, student, teacher, batch, clock, key):
        del key
        pairs = paired_levels(student_levels(student), teacher_levels(teacher))
        fused = review(params, [(s, t.shape[1:3]) for s, t in pairs])
        extra = jnp.zeros_like(batch.weight)
        for out, (_, target) in zip(fused, pairs, strict=True):
            extra = extra + pyramid(out, target)
        growth = jnp.minimum(clock.phase_epoch.astype(jnp.float32) / warmup, 1.0) if warmup else 1.0
        return LossOut(extra=growth * extra, state=state)

    return Method(loss=loss, init=init, needs=('preacts', 'embed'))
