"""How to add a policy: copy this file to `policies/NAME.py`; `policy=NAME` then finds it.

The keywords of `make` are its hyper-parameters: the config and the command line read them from its signature, and the
common tests run on the defaults. This policy keeps a random half of the points, drawn anew for every epoch.
"""

from __future__ import annotations

import functools

import jax

from kcd_jax import knowledge
from kcd_jax.contracts import Plan, Policy, ValueTable
from kcd_jax.settings import ranges


@functools.partial(jax.jit, static_argnums=(1,))
def _draw(key: jax.Array, num_points: int, plan: Plan, num_keep: jax.Array) -> Plan:
    """Jitted with `num_keep` as an argument, so that all epochs share one compilation."""
    return knowledge.unmixed_plan(knowledge.random_order(key, plan.order.shape[0], num_points), num_keep)


@ranges(ratio={'above': 0, 'high': 1})
def make(*, ratio: float = 0.5) -> Policy:
    """Builds the policy.

    Args:
      ratio: fraction of the points that is kept, in (0, 1].
    """

    def when(epoch: int, epochs: int) -> bool:
        """Whether to replan after `epoch` finished epochs, 0 being the start of training. Plain Python."""
        return epoch < epochs

    def replan(key, table: ValueTable, plan: Plan, state, epoch: int, epochs: int):
        """The next plan and state. `state` is a tree of arrays from `Policy.init` whose structure never changes."""
        del epoch, epochs
        return _draw(key, table.num_points, plan, round(ratio * table.num_points)), state

    def keep_counts(num_points: int, epochs: int) -> list[int]:
        """Points of each epoch, known before training; the cost of a run follows from it."""
        return [round(ratio * num_points)] * epochs

    return Policy(when=when, replan=replan, keep_counts=keep_counts)
