"""The plug-in in a plain JAX loop, and bit for bit against the public code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import Condenser, knowledge
from kcd_jax.knowledge import pool as pool_lib


def test_reference_preset_matches_the_public_code_bit_for_bit(golden):
    """Ranking, kept, lost, paired, rates and the uint8 pool of six stages of the authors' code."""
    golden = golden('kcd')
    images = golden['images']
    condenser = Condenser(600, ratio=0.7, stages=6, alpha=0.03, epsilon_max=0.3, preset='reference')
    state = condenser.init(images)
    expected_pool = images.copy()
    everyone = jnp.arange(600, dtype=jnp.int32)
    record = jax.jit(knowledge.record)
    before = 600
    for stage in range(6):
        stored = {
            name: golden[f'stage{stage}/{name}'] for name in ('count', 'mean_entropy', 'remain', 'lost', 'mix_remain')
        }
        for column in golden[f'stage{stage}/entropy_record']:
            seen = column > 0
            index = jnp.where(jnp.asarray(seen), everyone, 600)
            state = state.replace(table=record(state.table, index, jnp.asarray(column)))
        np.testing.assert_array_equal(state.table.count, stored['count'])
        # Up to 18 float32 steps of the running mean.
        np.testing.assert_allclose(state.table.value, stored['mean_entropy'], rtol=2e-6)
        plan, state = condenser.summarize(state, stage)
        num_keep = int(plan.num_keep)
        np.testing.assert_array_equal(plan.order[:num_keep], stored['remain'])
        kept, dropped = pool_lib.window(np.asarray(plan.order), num_keep, before)
        np.testing.assert_array_equal(dropped, stored['lost'])
        np.testing.assert_array_equal(kept, stored['mix_remain'])
        rates = pool_lib.ramp_rates(len(kept), 0.3)
        np.testing.assert_array_equal(rates, golden[f'stage{stage}/keep_rate'])
        np.testing.assert_array_equal(np.float32(1) - rates, golden[f'stage{stage}/lost_rate'])
        expected_pool[stored['mix_remain']] = golden[f'stage{stage}/mixed_rows_after']
        np.testing.assert_array_equal(state.pool, expected_pool)
        assert not plan.epsilon.any()
        before = num_keep


def test_a_seventh_stage_mixes_nothing():
    """The authors' code fails with an index error there."""
    kept, dropped = pool_lib.window(np.arange(10), 7, 7)
    assert len(kept) == len(dropped) == 0
    pool = jnp.zeros((10, 2, 2, 3), jnp.uint8)
    assert pool_lib.blend_pool(pool, kept, dropped, pool_lib.constant_rates(0, 0.3)) is pool


@pytest.mark.parametrize('preset', ['paper', 'reference'])
def test_a_plain_training_loop(preset):
    """A linear student on 40 points, condensed three times: one compilation of the step."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (40, 2, 2, 3), np.uint8))
    labels = jnp.asarray(rng.integers(0, 3, 40), jnp.int32)
    condenser = Condenser(40, ratio=0.5, stages=3, preset=preset)
    state = condenser.init(images if preset == 'reference' else None)
    plan, traces = state.plan, []

    @jax.jit
    def train(params, state, plan, images, index):
        traces.append(1)
        image = condenser.mix(plan, images, index).reshape(index.shape[0], -1)

        def loss(params):
            logits = image @ params
            one_hot = jax.nn.one_hot(labels[index], 3, dtype=jnp.float32)
            return -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), axis=-1)), logits

        gradient, logits = jax.grad(loss, has_aux=True)(params)
        return params - 0.1 * gradient, condenser.record(state, index, logits)

    params, sizes = jnp.zeros((12, 3), jnp.float32), []
    for stage in range(3):
        kept = rng.permutation(np.asarray(plan.order[: int(plan.num_keep)]))
        for start in range(0, len(kept) // 8 * 8, 8):
            index = jnp.asarray(kept[start : start + 8])
            params, state = train(params, state, plan, images if state.pool is None else state.pool, index)
        plan, state = condenser.summarize(state, stage)
        sizes.append(int(plan.num_keep))
    assert sizes == condenser.keep_counts and sizes[-1] == {'paper': 20, 'reference': 22}[preset]
    assert len(traces) == 1 and np.isfinite(params).all()
    mixed = np.asarray(plan.epsilon) > 0
    if preset == 'paper':
        assert mixed.sum() == 20 and state.pool is None
        point = int(np.argmax(plan.epsilon))
        expected = 0.7 * images[point].astype(jnp.float32) + 0.3 * images[plan.partner[point]].astype(jnp.float32)
        np.testing.assert_allclose(condenser.mix(plan, images, jnp.asarray([point]))[0], expected / 255, rtol=1e-5)
    else:
        assert not mixed.any() and (np.asarray(state.pool) != np.asarray(images)).any()


@pytest.mark.parametrize('split', [False, True], ids=['replicated table', 'split table'])
@pytest.mark.parametrize('axes', ['Auto', 'Explicit'])
def test_every_kind_of_mesh_and_a_traced_stage_give_the_same(axes, split):
    """512 points on four devices; the batch is split, and no mesh is set as the current one."""
    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType[axes],))
    whole, rows = (jax.NamedSharding(mesh, spec) for spec in (jax.P(), jax.P('data')))
    rng = np.random.default_rng(0)
    images, logits = rng.integers(0, 256, (512, 2, 2, 3), np.uint8), rng.normal(size=(64, 5)).astype(np.float32)
    index, condenser = rng.permutation(512)[:64].astype(np.int32), Condenser(512, ratio=0.5, stages=3)
    shown = np.arange(64, dtype=np.int32) * 8

    def turn(state, images, index, shown, logits, stage):
        plan, state = condenser.summarize(condenser.record(state, index, logits), stage)
        return plan, state.table, condenser.pairs(plan, shown), condenser.mix(plan, images, shown)

    expected = turn(condenser.init(), images, index, shown, logits, 1)
    state = jax.device_put(condenser.init(), whole)
    if split:
        state = state.replace(table=jax.device_put(state.table, rows))
    placed = [
        jax.device_put(array, place) for array, place in ((images, whole), (index, rows), (shown, rows), (logits, rows))
    ]
    jitted = jax.jit(turn)
    for found in (turn(state, *placed, 1), jitted(state, *placed, 1), jitted(state, *placed, jnp.int32(1))):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert int(jitted(state, *placed, jnp.int32(9))[0].num_keep) == condenser.keep_counts[-1]
    if axes == 'Explicit':
        assert jax.typeof(found[-1]).sharding.spec[0] == 'data'
    partner, epsilon = expected[2]
    image, other = (images[np.asarray(points)] / np.float32(255) for points in (shown, partner))
    share = np.asarray(epsilon)[:, None, None, None]
    np.testing.assert_allclose(expected[3], (1 - share) * image + share * other, atol=1e-6)
    assert (share > 0).any()


def test_misuse_is_refused_in_one_line():
    with pytest.raises(ValueError, match="preset is 'papre'; known: paper, reference"):
        Condenser(10, preset='papre')
    with pytest.raises(ValueError, match='pass init uint8 images of all 10 points, not none'):
        Condenser(10, preset='reference').init()
    with pytest.raises(ValueError, match='stage is 6; there are 6 condensations'):
        condenser = Condenser(10)
        condenser.summarize(condenser.init(), 6)
    with pytest.raises(ValueError, match='blends its images on the host'):
        condenser = Condenser(4, preset='reference')
        jax.jit(condenser.summarize)(condenser.init(np.zeros((4, 2, 2, 3), np.uint8)), 0)
    with pytest.raises(ValueError, match='epsilon_max is 2'):
        Condenser(10, epsilon_max=2)
