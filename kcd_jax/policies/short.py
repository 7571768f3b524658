"""All points, fewer epochs: what plain training reaches at the cost of a selection.

The learning rate falls at fractions of the epochs, so its drops are scaled with them.
"""

from __future__ import annotations

from kcd_jax.contracts import Policy
from kcd_jax.settings import ranges


@ranges(cost={'above': 0, 'high': 1})
def make(*, cost: float = 0.8176) -> Policy:
    """Builds the policy.

    Args:
      cost: samples of the run over those of the full number of epochs, in (0, 1]; the default is KCD's (Eq. 16, as its
        Algorithm 1 runs). The run takes the nearest whole number of epochs, at least 1.
    """

    def epochs(full: int) -> int:
        return max(1, round(cost * full))

    return Policy(epochs=epochs)
