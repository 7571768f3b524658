"""Condensation for any training loop, in a few lines.

condenser = Condenser(num_points=50_000)
state = condenser.init()
for each step:        state = condenser.record(state, index, logits)
                      image = condenser.mix(plan, images, index)
between two stages:   plan, state = condenser.summarize(state, stage)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kcd_jax.contracts import Array, Plan, ValueTable, full_plan
from kcd_jax.knowledge import pool as pool_lib
from kcd_jax.knowledge.ranking import rank
from kcd_jax.knowledge.schedule import keep_counts
from kcd_jax.knowledge.summary import summarize, unmixed_plan
from kcd_jax.knowledge.value import prediction_entropy, record

SCHEDULE_OF_PRESET = {'paper': 'exponential', 'reference': 'linear'}


@struct.dataclass
class CondenserState:
    """State of a `Condenser`.

    Attributes:
      table: values and visits.
      plan: of the current stage.
      pool: u8[num_points, H, W, 3], or None.
    """

    table: ValueTable
    plan: Plan
    pool: Array | None = None


class Condenser:
    """Knowledge condensation as a plug-in (KCD, ECCV 2022).

    Args:
      num_points: training points, with indices 0 ... num_points - 1.
      ratio: fraction of the points kept in the last stage, in (0, 1].
      stages: number of condensations.
      alpha: exponent of the visits (Eq. 13).
      epsilon_max: largest share of a dropped point in a mixed image (Eq. 15).
      preset: 'paper' (sizes shrink exponentially, partners from all dropped points, mixed from the original images) or
        'reference' (the authors' code: sizes shrink linearly, partners from the newly dropped points, mixed permanently
        in a pool of uint8 images).

    Raises:
      ValueError: a value is out of range.

    >>> condenser = Condenser(num_points=10, ratio=0.5, stages=2)
    >>> state = condenser.init()
    >>> logits = jnp.eye(10, 3) * jnp.arange(10.0)[:, None]  # the higher a logit, the less there is to learn
    >>> state = condenser.record(state, jnp.arange(10), logits)
    >>> plan, state = condenser.summarize(state, stage=0)
    >>> int(plan.num_keep), condenser.keep_counts
    (7, [7, 5])
    """

    def __init__(
        self,
        num_points: int,
        ratio: float = 0.7,
        stages: int = 6,
        alpha: float = 0.03,
        epsilon_max: float = 0.3,
        preset: str = 'paper',
    ):
        if preset not in SCHEDULE_OF_PRESET:
            raise ValueError(f'preset is {preset!r}; known: {", ".join(SCHEDULE_OF_PRESET)}')
        if not 0 <= epsilon_max <= 1:
            raise ValueError(f'epsilon_max is {epsilon_max}; use a number from 0 to 1')
        if not 0 <= alpha < float('inf'):
            raise ValueError(f'alpha is {alpha}; use a number from 0')
        self.num_points = num_points
        self.alpha = alpha
        self.epsilon_max = epsilon_max
        self.preset = preset
        self.keep_counts = keep_counts(num_points, ratio, stages, SCHEDULE_OF_PRESET[preset])
        self._record = jax.jit(_on_any_mesh(_record, lambda table, *_: jax.tree.map(_spec, table)))
        self._order = jax.jit(_on_any_mesh(functools.partial(rank, alpha=alpha), lambda table: jax.P()))
        self._summarize = jax.jit(functools.partial(summarize, epsilon_max=epsilon_max))
        self._pairs = jax.jit(_on_any_mesh(_pairs, lambda plan, index: (_spec(index), _spec(index))))
        self._mix = jax.jit(_on_any_mesh(_mix, lambda plan, images, index: _spec(index)))

    def init(self, images: Array | np.ndarray | None = None) -> CondenserState:
        """The state before training, with all points kept.

        Args:
          images: u8[num_points, H, W, 3]; needed, and copied, by preset 'reference' only.

        Raises:
          ValueError: preset 'reference' without uint8 images of all points.
        """
        table = ValueTable.create(self.num_points, self.num_points)
        plan = full_plan(self.num_points, self.num_points)
        if self.preset == 'paper':
            return CondenserState(table, plan)
        if images is None or images.dtype != np.uint8 or images.shape[0] != self.num_points:
            found = 'none' if images is None else f'{images.dtype}{list(images.shape)}'
            raise ValueError(
                f"preset 'reference' mixes in a pool of images; pass init uint8 images of all {self.num_points} "
                f'points, not {found}'
            )
        return CondenserState(table, plan, jnp.array(images, copy=True))

    def record(self, state: CondenserState, index: Array, logits: Array) -> CondenserState:
        """Records the entropies of the student's train-mode logits [B, K] on the points `index` i32[B]; jittable."""
        return state.replace(table=self._record(state.table, index, logits))

    def summarize(self, state: CondenserState, stage: int | Array) -> tuple[Plan, CondenserState]:
        """The plan of the next stage, from the recorded values; jittable with preset 'paper', also over `stage`.

        Train on `plan.order[:plan.num_keep]`, shuffled, until the next condensation.

        Args:
          stage: 0 for the first condensation; a traced i32[] beyond the last one means the last one.

        Raises:
          ValueError: there is no such stage, or preset 'reference' is called inside jit.
        """
        traced = isinstance(stage, jax.core.Tracer)
        if not traced and not 0 <= stage < len(self.keep_counts):
            raise ValueError(f'stage is {stage}; there are {len(self.keep_counts)} condensations, from 0')
        if self.preset == 'reference' and (traced or isinstance(state.table.value, jax.core.Tracer)):
            raise ValueError("preset 'reference' blends its images on the host; call summarize outside of jit")
        num_keep = jnp.take(jnp.asarray(self.keep_counts, jnp.int32), stage, mode='clip')
        order = self._order(state.table)
        if self.preset == 'paper':
            plan = self._summarize(order, num_keep)
            return plan, state.replace(plan=plan)
        ranked, num_keep, before = np.asarray(order), int(num_keep), int(state.plan.num_keep)
        kept, dropped = pool_lib.window(ranked, num_keep, before)
        pool = pool_lib.blend_pool(state.pool, kept, dropped, pool_lib.ramp_rates(len(kept), self.epsilon_max))
        plan = unmixed_plan(order, num_keep)
        return plan, state.replace(plan=plan, pool=pool)

    def pairs(self, plan: Plan, index: Array) -> tuple[Array, Array]:
        """(partner i32[B], epsilon f32[B]) of the points `index`, for loaders that mix on their own; jittable.

        The image to train on is (1 - epsilon) * image[index] + epsilon * image[partner]; an unmixed point is its
        own partner with epsilon 0.
        """
        return self._pairs(plan, index)

    def mix(self, plan: Plan, images: Array, index: Array) -> Array:
        """The images to train on: (1 - epsilon) * image + epsilon * partner's image (Eq. 14); jittable.

        Args:
          plan: from `summarize`; before the first condensation, `state.plan`.
          images: [num_points, H, W, 3] of all points, uint8 or float; with preset 'reference', `state.pool`.
          index: i32[B], the points of the batch.

        Returns:
          f32[B, H, W, 3]: in [0, 1] for uint8 images, else in the range of `images`.
        """
        return self._mix(plan, images, index)


def _on_any_mesh(function: Callable[..., Any], specs: Callable[..., Any]) -> Callable[..., Any]:
    """The function, also on a mesh of explicit axes, where gathers, scatters and sorts must be told their result.

    Args:
      function: pure.
      specs: (its arguments) -> the partition specs of its results on such a mesh.
    """

    @functools.wraps(function)
    def wrapped(*arrays: Any) -> Any:
        meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arrays)]
        explicit = next((mesh for mesh in meshes if mesh.explicit_axes), None)
        if explicit is None:
            return function(*arrays)
        with jax.sharding.use_abstract_mesh(explicit):
            return jax.sharding.auto_axes(function, out_sharding=specs(*arrays))(*arrays)

    return wrapped


def _spec(array: Array) -> jax.P:
    return jax.typeof(array).sharding.spec


def _record(table: ValueTable, index: Array, logits: Array) -> ValueTable:
    return record(table, index, prediction_entropy(logits))


def _pairs(plan: Plan, index: Array) -> tuple[Array, Array]:
    return plan.partner[index], plan.epsilon[index]


def _mix(plan: Plan, images: Array, index: Array) -> Array:
    scale = jnp.float32(255 if images.dtype == jnp.uint8 else 1)
    image = images[index].astype(jnp.float32) / scale
    partner = images[plan.partner[index]].astype(jnp.float32) / scale
    epsilon = plan.epsilon[index].reshape((-1,) + (1,) * (image.ndim - 1))
    return (1.0 - epsilon) * image + epsilon * partner
