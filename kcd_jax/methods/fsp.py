"""FSP: flow of the solution procedure (Yim et al., CVPR 2017, "A Gift from Knowledge Distillation").

For consecutive maps (stem, stage 1, ...), the larger pooled to the smaller: G[b, o, i] = mean over space of top_o *
bottom_i; loss = sum over pairs of mean((G_s - G_t)^2). Student and teacher must have equal channels.

There are two phases, as in the paper and the public code. First the FSP loss alone trains the student up to its last
map, at the main optimiser's initial learning rate. Then follows ordinary training, in which the term has weight 0 (the
public command's beta = 50 is never used; `config.weights.beta` sets it). The first phase takes `init_fraction` of the
epochs, in addition to them (30 in addition to 240). The classifier is untrained then, so no values are recorded.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp

from kcd_jax.contracts import Array, LossOut, Method, Optimiser, Phase, Update, Weights
from kcd_jax.methods import _parts
from kcd_jax.settings import ranges
from kcd_jax.trees import leaf_paths, matches

WEIGHTS = Weights(gamma=1.0, alpha=0.0, beta=0.0)


def flow(bottom: Array, top: Array) -> Array:
    """f32[B, top's channels, bottom's channels]: mean over space of the products."""
    bottom, top = _parts.same_size(bottom, top)
    return jnp.einsum('bhwo,bhwi->boi', top, bottom) / (top.shape[1] * top.shape[2])


def flow_loss(student: tuple[Array, ...], teacher: tuple[Array, ...]) -> Array:
    """f32[B]: summed over consecutive pairs of maps."""
    pairs = zip(itertools.pairwise(student), itertools.pairwise(teacher), strict=True)
    return sum(_parts.mean_per_row((flow(*s) - flow(*t)) ** 2) for s, t in pairs)


@ranges(init_fraction={'above': 0, 'high': 10})
def make(*, init_fraction: float = 0.125) -> Method:
    """Builds the method.

    Args:
      init_fraction: epochs of the first phase divided by those of the second.
    """

    def init(key, setup):
        del key
        student, teacher = ([feat.shape[-1] for feat in outputs.feats] for outputs in (setup.student, setup.teacher))
        if student != teacher:
            raise ValueError(
                f'fsp needs equal channels, but the student has {student} and the teacher {teacher}; '
                'use a pair such as resnet56-resnet20, or at, nst, fitnet or sp'
            )
        return {}, {}

    def loss(params, state, student, teacher, batch, clock, key):
        del params, batch, clock, key
        return LossOut(extra=flow_loss(student.feats, teacher.feats), state=state)

    def phases(epochs, main, student):
        # Parameter paths do not depend on the image size.
        shapes = student.variable_shapes((32, 32, 3))
        moved = tuple(f'student/{path}' for path in leaf_paths(shapes['params']) if not matches(path, student.tail))
        modules = tuple(dict.fromkeys(path.rsplit('/', 1)[0] + '/*' for path in moved))
        constant = Optimiser(main.transform, lambda epoch: main.lr(0))
        first = Phase(
            name='fsp',
            epochs=max(1, round(epochs * init_fraction)),
            train_mode=modules,
            optimisers={'fsp': constant},
            updates=(Update(loss, moved, 'fsp', Weights(gamma=0.0, alpha=0.0, beta=1.0)),),
            record=False,
        )
        second = Phase('main', epochs, ('student/*',), {'main': main}, (Update(loss, ('student/*',), 'main'),))
        return first, second

    return Method(loss=loss, init=init, phases=phases, needs=('feats',))
