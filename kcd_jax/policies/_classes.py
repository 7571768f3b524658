"""Orders of points that spread a selection over the classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kcd_jax import knowledge
from kcd_jax.contracts import Array

SPREADS = ('proportional', 'even')


def spread(order: Array, labels: Array, num_points: int, how: str) -> Array:
    """Reorders points so that any first part of the order is spread over the classes.

    Args:
      order: i32[N], the preferred order, padding last; within a class it is kept.
      labels: i32[N] by point.
      num_points: points without the padding, static.
      how: 'proportional': every first part holds each class in its proportion p, with at most 1/2 + p (K - 2) / 2
        points more or fewer of K classes: less than one if they are equal, several of a large class among small ones;
        'even': it holds equally many points of each class, as far as a class has them. Static.

    Returns:
      i32[N], a permutation, padding last.

    >>> order, labels = jnp.array([0, 1, 2, 3, 4, 5]), jnp.array([0, 0, 0, 0, 1, 1])
    >>> spread(order, labels, 6, 'proportional').tolist()
    [0, 4, 1, 2, 5, 3]
    >>> spread(order, labels, 6, 'even').tolist()
    [0, 4, 1, 5, 2, 3]
    """
    of_class = jnp.where(order < num_points, labels[order], jnp.iinfo(jnp.int32).max)
    grouped = knowledge.order_by(of_class.astype(jnp.uint32))  # stable: the order within each class stays
    sorted_class = of_class[grouped]
    first = jnp.searchsorted(sorted_class, sorted_class, side='left').astype(jnp.int32)
    end = jnp.searchsorted(sorted_class, sorted_class, side='right').astype(jnp.int32)
    place = jnp.arange(order.shape[0], dtype=jnp.int32) - first
    if how == 'even':
        key = place.astype(jnp.uint32)
    else:
        share = (place.astype(jnp.float32) + 0.5) / (end - first).astype(jnp.float32)
        key = jax.lax.bitcast_convert_type(share, jnp.uint32)  # of positive numbers, in their order
    keys = jnp.zeros_like(key).at[grouped].set(key, unique_indices=True)
    keys = jnp.where(order < num_points, keys, jnp.uint32(0xFFFFFFFF))
    return order[knowledge.order_by(keys)]
