"""All points, fewer epochs: plain training at the cost of a selection policy.

Learning rate drops are fractions of the epochs, so they scale with them.
"""

from __future__ import annotations

from kcd_jax.contracts import Policy
from kcd_jax.settings import ranges


@ranges(cost={'above': 0, 'high': 1})
def make(*, cost: float = 0.8176) -> Policy:
    """Builds the policy.

    Args:
      cost: samples of the run divided by those of all epochs, in (0, 1], rounded to whole epochs; the default is KCD's
        (Eq. 16, by its Algorithm 1).
    """

    def epochs(full: int) -> int:
        return max(1, round(cost * full))

    return Policy(epochs=epochs)
