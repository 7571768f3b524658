"""The policy `kcd`: its two presets and its options, against the equations and the public code's golden vectors."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import knowledge
from kcd_jax.contracts import Batch, Outputs, ValueTable, full_plan, table_rows
from kcd_jax.policies import kcd, random

POINTS = 100
ROWS = table_rows(POINTS)
IMAGES = np.random.default_rng(0).integers(0, 256, (POINTS, 2, 2, 3), np.uint8)


def replan(policy, epoch, plan=None, epochs=12, value=None, state=None):
    value = np.random.default_rng(1).permutation(POINTS) if value is None else value
    padded = np.zeros(ROWS, np.float32)
    padded[:POINTS] = value
    table = ValueTable(jnp.asarray(padded), jnp.asarray(np.arange(ROWS) < POINTS, jnp.int32), POINTS)
    plan = full_plan(POINTS) if plan is None else plan
    state = policy.init(POINTS, ROWS, IMAGES) if state is None else state
    return policy.replan(jax.random.key(0), table, plan, state, epoch, epochs), np.argsort(
        -padded[:POINTS], kind='stable'
    )


def parts(plan):
    order, n = np.asarray(plan.order), int(plan.num_keep)
    mixed = [p for p in order[:n].tolist() if float(plan.epsilon[p]) > 0]
    return order[:n].tolist(), order[n:POINTS].tolist(), mixed


def test_replanning_epochs():
    paper, reference = kcd.make(), kcd.make(preset='reference')
    assert [e for e in range(241) if paper.when(e, 240)] == [1, 41, 81, 121, 161, 201]
    assert [e for e in range(241) if reference.when(e, 240)] == [40, 80, 120, 160, 200]
    assert sum(paper.keep_counts(50_000, 240)) == 9_811_200
    assert sum(reference.keep_counts(50_000, 240)) == 10_500_000
    assert random.make().keep_counts(50_000, 240) == paper.keep_counts(50_000, 240)


def test_paper_preset():
    """Sizes 94 89 84 79 74 70 of 100; the last kept points are mixed with the first dropped ones."""
    policy = kcd.make()
    assert policy.mixes and policy.records == 'mean' and policy.observe is None
    sizes = []
    for stage, epoch in enumerate(range(1, 12, 2)):
        (plan, state), order = replan(policy, epoch)
        kept, dropped, mixed = parts(plan)
        m = len(dropped)
        assert state == {} and kept == order[: len(kept)].tolist() and mixed == kept[-m:]
        assert [int(plan.partner[p]) for p in mixed] == dropped
        np.testing.assert_allclose(plan.epsilon[jnp.asarray(mixed)], 0.3 * np.arange(1, m + 1) / m, rtol=3e-7)
        assert len(kept) == knowledge.keep_counts(POINTS, 0.7, 6)[stage]
        sizes.append(len(kept))
    assert sizes == [94, 89, 84, 79, 74, 70]


def test_reference_blends_its_pool(golden):
    """The stages of the public code through the policy, with a bit-identical pool."""
    golden = golden('kcd')
    policy = kcd.make(preset='reference')
    assert not policy.mixes
    rows = table_rows(600)
    plan, state = full_plan(600), policy.init(600, rows, golden['images'])
    table, pool = ValueTable.create(600), golden['images'].copy()
    for stage in range(6):
        for column in golden[f'stage{stage}/entropy_record']:
            index = jnp.where(jnp.asarray(column > 0), jnp.arange(600, dtype=jnp.int32), rows)
            table = knowledge.record(table, index, jnp.asarray(column))
        # Six stages of three epochs in a longer run, so that the sixth is not after the last epoch.
        assert policy.when(3 * (stage + 1), 18) == (stage < 5)
        if stage == 5:
            break
        plan, state = policy.replan(jax.random.key(0), table, plan, state, 3 * (stage + 1), 18)
        np.testing.assert_array_equal(plan.order[: int(plan.num_keep)], golden[f'stage{stage}/remain'])
        pool[golden[f'stage{stage}/mix_remain']] = golden[f'stage{stage}/mixed_rows_after']
        np.testing.assert_array_equal(state['pool'][:600], pool)
        assert not plan.epsilon.any()


def test_partners_of_the_window():
    """Only the newly dropped ranks are mixed in."""
    policy = kcd.make(dropped='window')
    (plan, _), _ = replan(policy, 1)
    (plan, _), order = replan(policy, 3, plan)
    kept, dropped, mixed = parts(plan)
    assert (len(kept), len(mixed)) == (89, 5) and mixed == kept[-5:]
    assert [int(plan.partner[p]) for p in mixed] == dropped[:5] == order[89:94].tolist()


def test_which_part_is_augmented():
    (plan, _), _ = replan(kcd.make(augment='high', epsilon='constant'), 5)
    kept, dropped, mixed = parts(plan)
    assert mixed == kept[:16] and [int(plan.partner[p]) for p in mixed] == dropped
    np.testing.assert_allclose(plan.epsilon[jnp.asarray(mixed)], 0.3)
    (plan, _), _ = replan(kcd.make(augment='random', epsilon='constant'), 5)
    kept, dropped, mixed = parts(plan)
    assert len(mixed) == 16 and mixed not in (kept[:16], kept[-16:])
    assert sorted(int(plan.partner[p]) for p in mixed) == sorted(dropped)
    (plan, _), _ = replan(kcd.make(augment='none'), 5)
    assert not parts(plan)[2] and not kcd.make(augment='none').mixes


def test_random_ranking_ignores_the_values():
    policy = kcd.make(ranking='random')
    (first, _), order = replan(policy, 1)
    (second, _), _ = replan(policy, 1, value=np.arange(POINTS))
    np.testing.assert_array_equal(first.order, second.order)
    assert first.order[:POINTS].tolist() != order.tolist()


def test_below_one_half_every_kept_point_is_augmented():
    (plan, _), _ = replan(kcd.make(ratio=0.3), 11)
    kept, dropped, mixed = parts(plan)
    assert mixed == kept and [int(plan.partner[p]) for p in mixed] == dropped[:30]


def slow_plan(value, count, before, num_keep, options):
    """{point: (partner, epsilon)} of the mixed points and the whole order, by Eq. 13 to 15 in plain loops."""
    alpha, chosen = options.get('alpha', 0.03), options.get('augment', 'low')
    sign = -1 if options.get('ranking') == 'reversed' else 1
    score = [np.float32(c**alpha) * np.float32(sign * v) if c else math.inf for v, c in zip(value, count, strict=True)]
    order = sorted(range(len(value)), key=lambda point: (-score[point], point))
    kept, lost = order[:num_keep], order[num_keep:]
    if options.get('dropped') == 'window':
        lost = order[num_keep:before]
    m = min(len(kept), len(lost)) if chosen != 'none' else 0
    receivers = kept[len(kept) - m :] if chosen == 'low' else kept[:m]
    largest, mixed = options.get('epsilon_max', 0.3), {}
    for slot in range(m):
        share = largest if options.get('epsilon') == 'constant' else largest * (slot + 1) / m
        mixed[receivers[slot]] = (lost[slot], share)
    return order, mixed


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'alpha': 0.0},
        {'alpha': 0.1, 'ratio': 0.5},
        {'ranking': 'reversed'},
        {'augment': 'none'},
        {'augment': 'high'},
        {'epsilon': 'constant', 'epsilon_max': 0.2},
        {'dropped': 'window', 'schedule': 'linear'},
        {'dropped': 'window', 'augment': 'high', 'epsilon': 'constant', 'first': 'none'},
        {'ratio': 0.3, 'first': 'stage'},
        {'ratio': 0.9, 'stages': 3},
    ],
    ids=lambda options: '-'.join(f'{key}={value}' for key, value in options.items()) or 'paper',
)
def test_options_match_a_numpy_loop(options):
    """Three consecutive condensations with new random counts and values; some points were never visited."""
    policy, epochs, rng = kcd.make(**options), 12, np.random.default_rng(4)
    plan, state = full_plan(POINTS), policy.init(POINTS, ROWS, IMAGES)
    replans = [epoch for epoch in range(1, epochs) if policy.when(epoch, epochs)]
    for epoch in replans[:3]:
        count = rng.integers(0, epoch + 1, POINTS)
        value = np.where(count > 0, rng.integers(1, 40, POINTS) / 16, 0).astype(np.float32)  # with ties
        padded = [np.r_[x, np.zeros(ROWS - POINTS, x.dtype)] for x in (value, count.astype(np.int32))]
        table = ValueTable(jnp.asarray(padded[0]), jnp.asarray(padded[1]), POINTS)
        before, num_keep = int(plan.num_keep), policy.keep_counts(POINTS, epochs)[epoch]
        plan, state = policy.replan(jax.random.key(epoch), table, plan, state, epoch, epochs)
        order, mixed = slow_plan(value.tolist(), count.tolist(), before, num_keep, options)
        assert int(plan.num_keep) == num_keep and plan.order[:POINTS].tolist() == order
        partner, epsilon = np.asarray(plan.partner), np.asarray(plan.epsilon)
        assert {p: (int(partner[p]), pytest.approx(epsilon[p], rel=3e-7)) for p in np.flatnonzero(epsilon)} == mixed
        assert policy.mixes == (options.get('augment') != 'none')


@pytest.mark.parametrize(('records', 'function'), [('mean', knowledge.record), ('last', knowledge.record_last)])
def test_recorded_values_match_a_numpy_loop(records, function):
    """Eq. 12, the mean over the visits, or the last value ("w/o OVR")."""
    assert kcd.make(records=records).records == records
    rng, table, seen = np.random.default_rng(5), ValueTable.create(POINTS), {}
    for _ in range(6):
        index, value = rng.permutation(POINTS)[:40].astype(np.int32), rng.random(40).astype(np.float32)
        table = function(table, jnp.asarray(index), jnp.asarray(value))
        for point, x in zip(index.tolist(), value.tolist(), strict=True):
            seen.setdefault(point, []).append(x)
    for point in range(POINTS):
        visits = seen.get(point, [])
        expected = 0.0 if not visits else sum(visits) / len(visits) if records == 'mean' else visits[-1]
        assert int(table.count[point]) == len(visits)
        assert float(table.value[point]) == pytest.approx(expected, rel=1e-6)


def test_values_observed():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    batch = Batch(*(jnp.zeros(4, t) for t in (jnp.int32, jnp.float32, jnp.int32, jnp.int32, jnp.float32, jnp.float32)))
    loss = jnp.arange(4, dtype=jnp.float32)
    outputs = Outputs(logits)
    np.testing.assert_array_equal(kcd.make(value='loss').observe(outputs, None, batch, loss), loss)
    found = kcd.make(value='teacher_entropy').observe(outputs, Outputs(logits), batch, loss)
    np.testing.assert_array_equal(found, knowledge.prediction_entropy(logits[::2]))
    with pytest.raises(ValueError, match='needs a teacher'):
        kcd.make(value='teacher_entropy').observe(outputs, None, batch, loss)


@pytest.mark.parametrize(
    ('keywords', 'message'),
    [
        ({'ratio': 0}, 'ratio is 0'),
        ({'ratio': 1.5}, 'ratio is 1.5'),
        ({'preset': 'papre'}, "preset is 'papre'; use one of paper, reference"),
        ({'schedule': 'cosine'}, "use one of '', exponential, linear"),
        ({'augment': 'all'}, 'use one of low, high, random, none'),
        ({'epsilon_max': 1.1}, 'epsilon_max is 1.1'),
        ({'alpha': -1}, 'alpha is -1'),
        ({'stages': 0}, 'stages is 0'),
    ],
)
def test_bad_options_are_refused_in_one_line(keywords, message):
    with pytest.raises(ValueError, match=message) as error:
        kcd.make(**keywords)
    assert '\n' not in str(error.value)


def test_stages_that_do_not_divide_and_streamed_data_are_refused():
    with pytest.raises(ValueError, match='6 stages do not divide 10 epochs; use 5 or 10 stages'):
        kcd.make().keep_counts(POINTS, 10)
    with pytest.raises(ValueError, match="use preset='paper'"):
        kcd.make(preset='reference').init(POINTS, ROWS, None)


def test_the_reversed_ranking_keeps_the_least_valuable():
    (plan, _), order = replan(kcd.make(ranking='reversed'), 11)
    assert parts(plan)[0] == order[::-1][:70].tolist()
