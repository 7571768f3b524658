"""Every point in every epoch: plain distillation, what all other policies are compared with."""

from __future__ import annotations

from kcd_jax.contracts import Policy


def make() -> Policy:
    """Builds the policy; it has no hyper-parameters."""
    return Policy()
