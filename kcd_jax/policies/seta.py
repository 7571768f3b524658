"""SeTa: a random part of the points, in a window that slides from easy to hard (Zhou, Gao, Wang, CVPR 2025).

"Scale Efficient Training for Large Datasets", arXiv 2503.13385. Before each epoch a random part of the points is drawn
and clustered by k-means on their last training losses (3.0 before the first one). The clusters, ordered from easy to
hard, are seen through a window that moves by one cluster per epoch and starts again at the easy end. The first epoch
takes all clusters; the last eighth of the training takes the random part alone. Every weight is 1.

Read were the paper's abstract and its public code; the full text could not be opened, so nothing here is checked
against its equations. Where it differs from the authors' code:

- k-means starts from the quantiles of the losses and is iterated `_ITERATIONS` times, instead of scikit-learn's random
  start until convergence; equal losses are one cluster, which they split into equal random ones.
- A window that shows less than a third of its part of the points (`min_window`) is widened on both sides, so that
  every epoch has a step; they take any window as it is, and one random point for an empty one.
- `ratio` may be any value, theirs is at least 0.1; the number drawn is rounded, theirs truncated.
- The loss is that of the method, which with distillation includes the teacher's term.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array, Plan, Policy, PyTree, ValueTable
from kcd_jax.policies._sizes import kept
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


def min_window(num_drawn: int, width: int, groups: int) -> int:
    """The fewest points that a window of `width` of `groups` clusters shows: a third of its part, at least one."""
    return max(1, num_drawn * width // (3 * groups))


def widened(cluster: Array, drawn: Array, first: Array, end: Array, least: Array, groups: int) -> tuple[Array, Array]:
    """The window first <= c < end, widened by the fewest clusters on both sides that make it show `least` points.

    Args:
      cluster: i32[N], 0 <= cluster < groups.
      drawn: bool[N], the points that can be shown, `least` or more.
      first, end: i32[].
      least: i32[].
      groups: static.

    Returns:
      (first i32[], end i32[]).
    """
    more = jnp.arange(groups + 1, dtype=jnp.int32)
    below = jnp.searchsorted(jnp.sort(jnp.where(drawn, cluster, groups)), more, side='left')  # in smaller clusters
    firsts, ends = jnp.maximum(first - more, 0), jnp.minimum(end + more, groups)
    enough = jnp.argmax(below[ends] - below[firsts] >= least)
    return firsts[enough], ends[enough]


@functools.partial(jax.jit, static_argnames=('groups',))
def _window(
    key: Array, table: ValueTable, num_drawn: Array, first: Array, end: Array, least: Array, *, groups: int
) -> Plan:
    """The drawn points whose cluster c has first <= c < end, and where these are too few, those of the next ones."""
    rows = table.value.shape[0]
    drawn = knowledge.positions(knowledge.random_order(key, rows, table.num_points)) < num_drawn
    score = jnp.where(table.count > 0, table.value, jnp.float32(INITIAL_SCORE))
    cluster = clusters(score, drawn, groups)
    first, end = widened(cluster, drawn, first, end, least, groups)
    seen = drawn & (cluster >= first) & (cluster < end)
    return knowledge.unmixed_plan(knowledge.order_by((~seen).astype(jnp.uint32)), jnp.sum(seen.astype(jnp.int32)))


def _width(groups: int, window: float) -> int:
    """Clusters in the window."""
    return max(1, round(groups * window))


@ranges(
    ratio={'above': 0, 'high': 1},
    groups={'low': 1, 'high': 1000},
    window={'above': 0, 'high': 1},
    until={'low': 0, 'high': 1},
    inside={'low': 0, 'high': 1},
)
def make(
    *, ratio: float = 0.9, groups: int = 5, window: float = 0.9, until: float = 0.875, inside: float = 0.0
) -> Policy:
    """Builds the policy. Defaults are those of the authors' script for CIFAR.

    Args:
      ratio: fraction of the points that is drawn at random, in (0, 1]; theirs is the fraction left out.
      groups: number of clusters.
      window: clusters in the window, as a fraction of `groups`, rounded, at least one.
      until: delta, the fraction of the epochs after which the window is not used, in [0, 1].
      inside: expected fraction of the drawn points that the window shows, in [0, 1]; 0: its fraction of the clusters.
        It only affects the cost that is estimated before a run; the actual cost is counted.
    """
    width = _width(groups, window)

    def slides(epoch: int, epochs: int) -> bool:
        return 0 < epoch <= until * epochs - 1 and width < groups

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        drawn = kept(ratio, num_points)
        shown = max(1, round((inside or width / groups) * drawn))
        return [shown if slides(epoch, epochs) else drawn for epoch in range(epochs)]

    def replan(
        key: Array, table: ValueTable, plan: Plan, state: PyTree, epoch: int, epochs: int
    ) -> tuple[Plan, PyTree]:
        drawn = kept(ratio, table.num_points)
        if not slides(epoch, epochs):
            return _unmixed_plan(_random_order(key, plan.order.shape[0], table.num_points), drawn), state
        first = epoch % (groups - width + 1)
        least = min_window(drawn, width, groups)
        return _window(key, table, drawn, first, first + width, least, groups=groups), state

    def min_keep(num_points: int, epochs: int) -> int:
        drawn = kept(ratio, num_points)
        return min_window(drawn, width, groups) if any(slides(epoch, epochs) for epoch in range(epochs)) else drawn

    return Policy(
        when=lambda epoch, epochs: epoch < epochs,
        replan=replan,
        keep_counts=keep_counts,
        min_keep=min_keep,
        records='last',
        observe=observe_loss,
    )
