"""SSKD: self-supervision as knowledge (Xu et al., ECCV 2020, "Knowledge Distillation Meets Self-Supervision").

Every image gives four views, rotated by 0, 90, 180 and 270 degrees counter-clockwise, in rows 4 i + r; r = 0 is
'normal', the others are 'augmented'. A head on the pooled vector, Linear(D, D) - ReLU - Linear(D, D), gives
similarities S [3B, B], the cosines of the augmented rows with the normal ones; the target of row (i, r) is column i.

Phase 1 trains the teacher's head on CE(S, target), without a temperature and with the teacher frozen. It takes
`head_fraction` of the epochs, in addition to them (60 in addition to 240), at learning rate 0.05, which drops by 10 at
one half and at three quarters. Phase 2:

  L = 0.1 CE + 0.9 KD (normal rows: the objective's weights)
    + transformed * KD_T (augmented rows, all kept) + similarity * T_s^2 KL_{T_s}(S_t || S_s) over the kept rows.

Kept are the rows of S whose true column the teacher ranks first, and the fraction `keep` of the others that it ranks
best, with ties in row order. A point's term of a mean over kept rows is the sum over its three rows, times B. The value
recorded for a point is the entropy of its normal view. B is the whole batch, as published.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import objective
from kcd_jax.contracts import Array, LossOut, Method, Optimiser, Phase, PyTree, Update, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges

WEIGHTS = Weights(gamma=0.1, alpha=0.9, beta=1.0)
RELATIONAL = True  # a point's term depends on the rest of the batch

VIEWS = 4


def rotations(image: Array) -> Array:
    """[B, H, H, 3] -> [4B, H, H, 3]: row 4 i + r is image i turned by r * 90 degrees counter-clockwise."""
    views = jnp.stack([jnp.rot90(image, r, axes=(1, 2)) for r in range(VIEWS)], axis=1)
    return views.reshape(-1, *image.shape[1:])


def augmented(x: Array) -> Array:
    """[4B, ...] -> [3B, ...]: the rows with r > 0, in order."""
    views = x.reshape(x.shape[0] // VIEWS, VIEWS, *x.shape[1:])[:, 1:]
    return views.reshape(-1, *x.shape[1:])


def head_init(key: Array, size: int) -> PyTree:
    """The two linear layers."""
    keys = jax.random.split(key)
    return {'linear1': _parts.linear_init(keys[0], size, size), 'linear2': _parts.linear_init(keys[1], size, size)}


def head(params: PyTree, pooled: Array) -> Array:
    """[4B, D] -> f32[4B, D]."""
    return _parts.linear(params['linear2'], jax.nn.relu(_parts.linear(params['linear1'], pooled.astype(jnp.float32))))


def similarities(representation: Array) -> Array:
    """[4B, D] -> f32[3B, B]: cosines of the augmented rows with the normal ones."""
    unit = _parts.normalise(representation)
    return augmented(unit) @ unit[::VIEWS].T


def kept_rows(scores: Array, target: Array, keep: float) -> Array:
    """f32[R] of 0 and 1: rows whose target is ranked first, and the int(keep * others) best ranked other rows.

    Args:
      scores: [R, C] of the teacher.
      target: i32[R].
      keep: fraction of the wrong rows, in [0, 1].
    """
    rows = scores.shape[0]
    own = jnp.take_along_axis(scores, target[:, None], axis=1)
    before = jnp.arange(scores.shape[1], dtype=jnp.int32)[None] < target[:, None]
    rank = jnp.sum((scores > own) | ((scores == own) & before), axis=1).astype(jnp.int32)
    # From a table, because int(keep * n) in float32 on a device may round across an integer.
    counts = jnp.asarray(np.array([int(n * keep) for n in range(rows + 1)]), jnp.int32)
    num_wrong = jnp.sum(rank > 0).astype(jnp.int32)
    num_kept = rows - num_wrong + counts[num_wrong]
    order = jnp.argsort(rank, stable=True)
    return jnp.zeros(rows, jnp.float32).at[order].set((jnp.arange(rows) < num_kept).astype(jnp.float32))


def mean_over_kept(per_row: Array, kept: Array) -> Array:
    """f32[3B] -> f32[B] with the mean of the kept rows."""
    shares = jnp.sum((per_row * kept).reshape(-1, VIEWS - 1), axis=1)
    return shares.shape[0] * shares / jnp.maximum(jnp.sum(kept), 1.0)


def own_column(points: int) -> Array:
    """i32[3B]: the column of each augmented row's image."""
    return jnp.repeat(jnp.arange(points, dtype=jnp.int32), VIEWS - 1)


def transformed_loss(student_logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """f32[B]: KD on all augmented rows."""
    per_row = objective.kd_per_point(augmented(student_logits), augmented(teacher_logits), temperature)
    return jnp.mean(per_row.reshape(-1, VIEWS - 1), axis=1)


def similarity_loss(student: Array, teacher: Array, keep: float, temperature: float) -> Array:
    """f32[B]: KD on the kept rows of the similarities f32[3B, B]."""
    kept = kept_rows(teacher, own_column(teacher.shape[1]), keep)
    return mean_over_kept(objective.kd_per_point(student, teacher, temperature), kept)


@ranges(
    transformed={'low': 0, 'high': 1e6},
    similarity={'low': 0, 'high': 1e6},
    transformed_temperature={'low': 0.01, 'high': 1000},
    similarity_temperature={'low': 0.01, 'high': 1000},
    keep={'low': 0, 'high': 1},
    head_fraction={'above': 0, 'high': 10},
    head_lr={'above': 0, 'high': 1000},
)
def make(
    *,
    transformed: float = 2.7,
    similarity: float = 10.0,
    transformed_temperature: float = 4.0,
    similarity_temperature: float = 0.5,
    keep: float = 0.75,
    head_fraction: float = 0.25,
    head_lr: float = 0.05,
) -> Method:
    """Builds the method.

    Args:
      transformed: weight of the KD term of the rotated images.
      similarity: weight of the KL of the similarities S.
      transformed_temperature: temperature of the KD term of the rotated images.
      similarity_temperature: temperature of the KL of the similarities S.
      keep: fraction of the wrongly ranked rows of S that is kept, in [0, 1].
      head_fraction: epochs of the teacher's head divided by those of the student.
      head_lr: initial learning rate of the teacher's head.
    """

    def init(key, setup):
        height, width = setup.image_shape[:2]
        if height != width:
            raise ValueError(
                f'sskd rotates images by 90 degrees, and {height}x{width} is not square; use square images'
            )
        keys = jax.random.split(key)
        params = {
            'student_head': head_init(keys[0], setup.student.embed.shape[-1]),
            'teacher_head': head_init(keys[1], setup.teacher.embed.shape[-1]),
        }
        return params, {}

    def head_loss(params, state, student, teacher, batch, clock, key):
        del student, clock, key
        scores = similarities(head(params['teacher_head'], teacher.embed))
        column = own_column(batch.label.shape[0])
        per_row = objective.cross_entropy_per_point(scores, column, column, jnp.zeros(column.shape, jnp.float32))
        return LossOut(extra=jnp.mean(per_row.reshape(-1, VIEWS - 1), axis=1), state=state)

    def loss(params, state, student, teacher, batch, clock, key):
        del clock, key
        student_scores = similarities(head(params['student_head'], student.embed))
        teacher_scores = jax.lax.stop_gradient(similarities(head(params['teacher_head'], teacher.embed)))
        extra = transformed * transformed_loss(student.logits, teacher.logits, transformed_temperature)
        extra = extra + similarity * similarity_loss(student_scores, teacher_scores, keep, similarity_temperature)
        return LossOut(extra=extra, state=state)

    def phases(epochs, main, student):
        del student
        head_epochs = max(1, round(epochs * head_fraction))

        def lr(epoch):
            return head_lr * 0.1 ** ((epoch >= head_epochs / 2) + (epoch >= head_epochs * 3 / 4))

        first = Phase(
            name='head',
            epochs=head_epochs,
            train_mode=(),
            optimisers={'head': Optimiser(main.transform, lr)},
            updates=(Update(head_loss, ('method/teacher_head/*',), 'head', Weights(gamma=0.0, alpha=0.0, beta=1.0)),),
            record=False,
        )
        update = Update(loss, ('student/*', 'method/student_head/*'), 'main')
        return first, Phase('main', epochs, ('student/*',), {'main': main}, (update,))

    return Method(loss=loss, init=init, num_views=VIEWS, views=rotations, phases=phases, needs=('logits', 'embed'))
