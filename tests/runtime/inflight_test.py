"""The number of pending programs is bounded, and the oldest is waited for first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.runtime import inflight, sharding


@pytest.fixture
def waited(monkeypatch):
    """The outputs that were blocked on, in order."""
    found = []
    monkeypatch.setattr(jax, 'block_until_ready', found.append)
    return found


def test_blocks_on_the_oldest_above_the_limit(waited):
    pending = inflight.Inflight(limit=2)
    for number in range(5):
        pending.add(number)
        assert waited == list(range(max(0, number - 1)))
    pending.wait()
    assert waited == [0, 1, 2, 3, 4]
    pending.wait()
    assert len(waited) == 5


@pytest.mark.parametrize('limit', [0, -3])
def test_limit_below_one_is_refused(limit):
    with pytest.raises(ValueError, match=f'limit is {limit}; use 1 or more'):
        inflight.Inflight(limit)


def test_two_hundred_all_reduces_on_several_devices_finish():
    mesh = sharding.make_mesh()
    rows = sharding.put(np.ones((8, 4), np.float32), sharding.batch(mesh))
    total = jax.jit(lambda x: jnp.sum(x), out_shardings=sharding.replicated(mesh))
    pending, sums = inflight.Inflight(), []
    for _ in range(200):
        sums.append(total(rows))
        pending.add(sums[-1])
    assert jax.device_get(sums) == [32.0] * 200
