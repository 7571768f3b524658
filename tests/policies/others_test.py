"""The policies none, random, infobatch, short and reuse; rules that several policies share."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import policies
from kcd_jax.commands import report
from kcd_jax.contracts import ValueTable, full_plan, table_rows
from kcd_jax.policies import infobatch, kcd, none, random, reuse, seta, short

POINTS = 200
ROWS = table_rows(POINTS)


def make_table(value, count=1):
    values, counts = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.int32)
    values[:POINTS], counts[:POINTS] = value, count
    return ValueTable(jnp.asarray(values), jnp.asarray(counts), POINTS)


def kept(plan):
    return np.asarray(plan.order[: int(plan.num_keep)])


def test_none_keeps_all_points():
    policy = none.make()
    assert not any(policy.when(e, 6) for e in range(6)) and policy.keep_counts(10, 3) == [10] * 3


def test_random_draws_the_same_number_of_points():
    for drawn, times in (('stage', [1, 3, 5]), ('epoch', [1, 2, 3, 4, 5])):
        policy = random.make(stages=3, drawn=drawn)
        assert [e for e in range(7) if policy.when(e, 6)] == times
        assert policy.keep_counts(POINTS, 6) == kcd.make(stages=3).keep_counts(POINTS, 6)
        plans = [policy.replan(jax.random.key(e), make_table(0), full_plan(POINTS), {}, e, 6)[0] for e in times]
        assert [len(kept(p)) for p in plans] == [policy.keep_counts(POINTS, 6)[e] for e in times]
        assert all(set(kept(a)) != set(kept(b)) for a, b in itertools.pairwise(plans))
    with pytest.raises(ValueError, match="drawn is 'run'; use one of stage, epoch"):
        random.make(drawn='run')


def test_infobatch():
    """Half of the points below the mean are skipped, the other half has weight 2."""
    policy = infobatch.make()
    assert policy.records == 'last'
    loss = jnp.arange(3.0)
    assert policy.observe(None, None, None, loss) is loss
    value = np.r_[np.full(150, 1.0), np.full(50, 5.0)]
    plan, _ = policy.replan(jax.random.key(0), make_table(value), full_plan(POINTS), {}, 1, 8)
    chosen = kept(plan)
    assert len(chosen) == 125 and set(range(150, 200)) <= set(chosen) and chosen.tolist() == sorted(chosen)
    np.testing.assert_array_equal(plan.weight[chosen], np.where(chosen < 150, 2.0, 1.0))
    # Skipping keeps the sum of the weights: the expected gradient is that of all points.
    assert float(plan.weight[chosen].sum()) == POINTS
    other, _ = policy.replan(jax.random.key(1), make_table(value), full_plan(POINTS), {}, 2, 8)
    assert set(kept(other)) != set(chosen)


def test_infobatch_starts_and_ends_with_all_points():
    policy = infobatch.make()
    plan, _ = policy.replan(jax.random.key(0), make_table(0, 0), full_plan(POINTS), {}, 1, 8)
    assert len(kept(plan)) == POINTS and (plan.weight == 1).all()
    # Unseen points score 3.
    plan, _ = policy.replan(
        jax.random.key(0),
        make_table(np.r_[np.full(100, 9.0), np.zeros(100)], [1] * 100 + [0] * 100),
        full_plan(POINTS),
        {},
        1,
        8,
    )
    assert len(kept(plan)) == 150
    pruned = plan
    plan, _ = policy.replan(jax.random.key(0), make_table(np.arange(POINTS)), pruned, {}, 7, 8)
    assert len(kept(plan)) == POINTS and (plan.weight == 1).all()
    assert [e for e in range(9) if policy.when(e, 8)] == [1, 2, 3, 4, 5, 6, 7]
    # 10 * 0.875 is not whole: epochs 1 to 8 are pruned, 9 is reset.
    assert [e for e in range(11) if policy.when(e, 10)] == list(range(1, 10))
    assert policy.keep_counts(100, 8) == [100, *[68] * 6, 100]


@pytest.mark.parametrize(('until', 'epochs', 'up', 'down'), [(0.875, 72, 63, 63), (0.875, 60, 53, 52), (1.0, 5, 5, 5)])
def test_the_last_pruned_epoch(until, epochs, up, down):
    """InfoBatch rounds until * epochs up, which published results depend on; SeTa, as the authors of both, down."""
    for module, last in ((infobatch, up), (seta, down)):
        counts = module.make(until=until).keep_counts(1000, epochs)
        assert [epoch for epoch in range(epochs) if counts[epoch] < counts[0]] == list(range(1, last))


def test_infobatch_keeps_the_points_that_it_promises():
    """All losses but one are below the mean."""
    for fraction in (0.5, 0.9, 0.999):
        fewest = policies.get('infobatch').make(fraction=fraction).min_keep(POINTS, 8)
        table = make_table(np.r_[np.zeros(POINTS - 1), 9.0])
        plan, _ = infobatch.make(fraction=fraction).replan(jax.random.key(0), table, full_plan(POINTS), {}, 1, 8)
        assert len(kept(plan)) == fewest < 2 + POINTS * (1 - fraction)
    assert policies.get('infobatch').make(fraction=0.9, until=0.0).min_keep(POINTS, 8) == POINTS
    assert infobatch.make(well_learned=1.0).keep_counts(1, 8) == [1] * 8


@pytest.mark.parametrize(
    ('keywords', 'message'), [({'fraction': 1.0}, 'fraction is 1.0'), ({'until': 1.5}, 'until is 1.5')]
)
def test_infobatch_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        infobatch.make(**keywords)


def test_short():
    assert short.make().epochs(240) == 196
    assert short.make(cost=0.6).epochs(240) == 144 and short.make(cost=0.1).epochs(1) == 1
    assert short.make().keep_counts(10, 196) == [10] * 196
    with pytest.raises(ValueError, match='cost is 0'):
        short.make(cost=0)


@pytest.mark.parametrize(
    'name', ['balanced', 'kcd', 'learnability', 'moderate', 'random', 'rounds', 'rounds,constant', 'seta', 'static']
)
def test_a_ratio_that_keeps_no_point_is_refused(name):
    name, _, sizes = name.partition(',')
    policy = policies.get(name).make(ratio=1e-9, **({'sizes': sizes} if sizes else {}))
    with pytest.raises(ValueError, match='ratio 1e-09 keeps none of 200 points; use at least 0.005') as caught:
        policy.keep_counts(POINTS, 6)
    assert '\n' not in str(caught.value)


@pytest.fixture
def run_folder(tmp_path):
    """A run folder written by kcd with two condensations, of which the last one is used."""
    folder = tmp_path / 'run' / 'knowledge'
    folder.mkdir(parents=True)
    policy = kcd.make()
    for number, epoch in ((9, 1), (10, 11)):
        plan, _ = policy.replan(
            jax.random.key(0), make_table(np.random.default_rng(epoch).random(POINTS)), full_plan(POINTS), {}, epoch, 12
        )
        np.savez(
            folder / f'stage_{number}.npz',
            **{k: np.asarray(getattr(plan, k)) for k in ('order', 'num_keep', 'partner', 'epsilon')},
        )
    return tmp_path / 'run', plan


def test_reuse(run_folder, tmp_path):
    run, final = run_folder
    for mode in reuse.MODES:
        policy = reuse.make(run=str(run), mode=mode)
        assert [e for e in range(6) if policy.when(e, 6)] == [0]
        assert policy.keep_counts(POINTS, 3) == [140] * 3 and policy.mixes == (mode == 'vaks')
        plan, _ = policy.replan(jax.random.key(0), make_table(0), full_plan(POINTS), {}, 0, 6)
        expected = final if mode == 'vaks' else full_plan(POINTS).replace(order=final.order, num_keep=final.num_keep)
        for a, b in zip(jax.tree.leaves(plan), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype and not a.weak_type
            np.testing.assert_array_equal(a, b)
    reuse.export(str(run), str(tmp_path / 'set' / 'final'))
    index = [int(line) for line in (tmp_path / 'set' / 'final.txt').read_text().split()]
    np.testing.assert_array_equal(index, kept(final))
    with np.load(tmp_path / 'set' / 'final.npz') as stored:
        np.testing.assert_array_equal(stored['partner'], np.asarray(final.partner)[index])
        np.testing.assert_array_equal(stored['epsilon'], np.asarray(final.epsilon)[index])


def test_export_from_the_command_line(run_folder, tmp_path, capsys):
    run, final = run_folder
    assert report.main(['condensed-set', str(run), str(tmp_path / 'set' / 'final')]) == 0
    assert '140 points, 60 of them mixed' in capsys.readouterr().out
    lines = (tmp_path / 'set' / 'final.txt').read_text().split()
    assert [int(line) for line in lines] == kept(final).tolist()
    assert report.main(['condensed-set', str(tmp_path), str(tmp_path / 'other')]) == 2
    assert capsys.readouterr().err.count('\n') == 1 and not (tmp_path / 'other.npz').exists()


def test_reuse_refuses_a_set_of_other_data(run_folder):
    run, _ = run_folder
    data = {'name': 'cifar100', 'num_points': 0, 'seed': 0, 'validation': 0.0, 'dir': '/here'}
    reuse.refuse_other_data(str(run), data)  # nothing is known of the run's data
    (run / 'config.json').write_text(json.dumps({'run': {'data': {**data, 'dir': '/there'}}}))
    reuse.refuse_other_data(str(run), data)
    for key, value in (('name', 'cifar10'), ('num_points', 300), ('validation', 0.1)):
        with pytest.raises(ValueError, match=rf'data\.{key}=') as error:
            reuse.refuse_other_data(str(run), {**data, key: value})
        assert '\n' not in str(error.value)


def test_reuse_refuses_in_one_line(run_folder, tmp_path):
    run, _ = run_folder
    with pytest.raises(ValueError, match='needs the folder of a run'):
        reuse.make()
    with pytest.raises(ValueError, match='holds no knowledge'):
        reuse.make(run=str(tmp_path))
    with pytest.raises(ValueError, match='not of these 1000 points'):
        reuse.make(run=str(run)).keep_counts(1000, 3)
    with pytest.raises(ValueError, match="mode is 'all'; use one of vaks, ds"):
        reuse.make(run=str(run), mode='all')
    stored = dict(np.load(run / 'knowledge' / 'stage_10.npz'))
    np.savez(run / 'knowledge' / 'stage_11.npz', **stored | {'epsilon': np.zeros(ROWS, np.float32)})
    with pytest.raises(ValueError, match="use mode='ds'"):
        reuse.make(run=str(run))
    (run / 'knowledge' / 'stage_12.npz').write_bytes(b'PK\x03\x04 cut')
    with pytest.raises(ValueError, match='cannot be read'):
        reuse.make(run=str(run), mode='ds')
