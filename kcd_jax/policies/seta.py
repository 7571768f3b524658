"""SeTa: a random part of the points, in a window that slides from easy to hard (Zhou, Gao, Wang, CVPR 2025).

"Scale Efficient Training for Large Datasets", arXiv 2503.13385. Before each epoch a random part of the points is drawn
and clustered by k-means on their last training losses (3.0 before the first one). The clusters, ordered from easy to
hard, are seen through a window that moves by one cluster per epoch and starts again at the easy end. The first epoch
takes all clusters; the last eighth of the training takes the random part alone. Every weight is 1.

Facts are from the paper's abstract and its public code. Differences: k-means starts from the quantiles of the losses
and is iterated `_ITERATIONS` times, instead of scikit-learn's random start until convergence; the loss is that of the
method, which with distillation includes the teacher's term.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Plan, Policy, PyTree, ValueTable
from kcd_jax.policies.infobatch import INITIAL_SCORE
from kcd_jax.policies.kcd import observe_loss
from kcd_jax.settings import ranges

SIZES_EXPECTED = True  # `keep_counts` gives expectations: the sizes depend on the data

_ITERATIONS = 50  # in one dimension, k-means on 50,000 losses hardly moves after twenty
_random_order = jax.jit(knowledge.random_order, static_argnums=(1, 2))
_unmixed_plan = jax.jit(knowledge.unmixed_plan)


def clusters(score: Array, drawn: Array, groups: int) -> Array:
    """k-means in one dimension.

    Args:
      score: f32[N].
      drawn: bool[N], the points that are clustered, at least one.
      groups: number of clusters, static.

    Returns:
      i32[N]: the cluster of each score, 0 for the smallest; a cluster may be empty.
    """
    ordered = jnp.sort(jnp.where(drawn, score, jnp.inf))
    count = jnp.sum(drawn.astype(jnp.int32))
    quantiles = (jnp.arange(groups, dtype=jnp.float32) + 0.5) / groups
    start = ordered[jnp.minimum((quantiles * count.astype(jnp.float32)).astype(jnp.int32), count - 1)]

    def nearest(centres: Array) -> Array:
        return jnp.searchsorted((centres[1:] + centres[:-1]) / 2, score, side='left').astype(jnp.int32)

    def move(_: int, centres: Array) -> Array:
        # Sums over a row of each cluster; a scatter would add in no fixed order on a GPU.
        inside = (nearest(centres)[None] == jnp.arange(groups, dtype=jnp.int32)[:, None]) & drawn[None]
        size = jnp.sum(inside.astype(jnp.float32), axis=1)
        total = jnp.sum(jnp.where(inside, score[None], 0.0), axis=1)
        return jnp.where(size > 0, total / jnp.maximum(size, 1.0), centres)

    return nearest(jax.lax.fori_loop(0, _ITERATIONS, move, start))


@functools.partial(jax.jit, static_argnames=('groups',))
def _window(key: Array, table: ValueTable, num_drawn: Array, first: Array, end: Array, *, groups: int) -> Plan:
    """The drawn points whose cluster c has first <= c < end; if there is none, all that were drawn."""
    rows = table.value.shape[0]
    drawn = knowledge.positions(knowledge.random_order(key, rows, table.num_points)) < num_drawn
    score = jnp.where(table.count > 0, table.value, jnp.float32(INITIAL_SCORE))
    cluster = clusters(score, drawn, groups)
    seen = drawn & (cluster >= first) & (cluster < end)
    kept = jnp.where(jnp.any(seen), seen, drawn)
    return knowledge.unmixed_plan(knowledge.order_by((~kept).astype(jnp.uint32)), jnp.sum(kept.astype(jnp.int32)))


@ranges(
    ratio={'above': 0, 'high': 1},
    groups={'low': 1, 'high': 1000},
    window={'above': 0, 'high': 1},
    until={'low': 0, 'high': 1},
    inside={'above': 0, 'high': 1},
)
def make(
    *, ratio: float = 0.9, groups: int = 5, window: float = 0.9, until: float = 0.875, inside: float = 0.8
) -> Policy:
    """Builds the policy. Defaults are those of the authors' script for CIFAR.

    Args:
      ratio: fraction of the points that is drawn at random, in (0, 1]; theirs is the fraction left out.
      groups: number of clusters.
      window: clusters in the window, as a fraction of `groups`, rounded, at least one.
      until: delta, the fraction of the epochs after which the window is not used, in [0, 1].
      inside: expected fraction of the drawn points that the window shows, in (0, 1]. It only affects the cost that is
        estimated before a run; the actual cost is counted.
    """
    width = max(1, round(groups * window))

    def slides(epoch: int, epochs: int) -> bool:
        return 0 < epoch <= until * epochs - 1 and width < groups

    def num_drawn(num_points: int) -> int:
        return max(1, round(ratio * num_points))

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        drawn = num_drawn(num_points)
        return [max(1, round(inside * drawn)) if slides(epoch, epochs) else drawn for epoch in range(epochs)]

    def replan(
        key: Array, table: ValueTable, plan: Plan, state: PyTree, epoch: int, epochs: int
    ) -> tuple[Plan, PyTree]:
        drawn = num_drawn(table.num_points)
        if not slides(epoch, epochs):
            return _unmixed_plan(_random_order(key, plan.order.shape[0], table.num_points), drawn), state
        first = epoch % (groups - width + 1)
        return _window(key, table, drawn, first, first + width, groups=groups), state

    return Policy(
        when=lambda epoch, epochs: epoch < epochs,
        replan=replan,
        keep_counts=keep_counts,
        records='last',
        observe=observe_loss,
    )
