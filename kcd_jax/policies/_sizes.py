"""How many points a policy keeps."""

from __future__ import annotations

from kcd_jax import knowledge


def kept(ratio: float, num_points: int) -> int:
    """round(ratio * num_points); ValueError if that is none."""
    return knowledge.keep_counts(num_points, ratio, stages=1)[0]
