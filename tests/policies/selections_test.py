"""What the policies static, balanced and seta keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from kcd_jax.contracts import ValueTable, full_plan, table_rows
from kcd_jax.policies import _classes, balanced, seta, static

POINTS, EPOCHS = 200, 16
ROWS = table_rows(POINTS)
SIZES = (100, 60, 30, 10)  # of the classes
LABELS = np.zeros(ROWS, np.int32)
LABELS[:POINTS] = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))


def table_of(value, count=1):
    values, counts = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.int32)
    values[:POINTS], counts[:POINTS] = value, count
    return ValueTable(jnp.asarray(values), jnp.asarray(counts), POINTS)


def kept(policy, epoch, table=None, seed=0, **more):
    plan, _ = policy.replan(jax.random.key(seed), table or table_of(0, 0), full_plan(POINTS), {}, epoch, EPOCHS, **more)
    return np.asarray(plan.order[: int(plan.num_keep)])


def test_static_draws_once():
    policy = static.make(ratio=0.3)
    assert [epoch for epoch in range(EPOCHS) if policy.when(epoch, EPOCHS)] == [0]
    assert policy.keep_counts(POINTS, EPOCHS) == [60] * EPOCHS
    assert len(set(kept(policy, 0))) == 60 and set(kept(policy, 0)) != set(kept(policy, 0, seed=1))


@pytest.mark.parametrize('how', _classes.SPREADS)
def test_every_first_part_is_spread_over_the_classes(how):
    order = np.r_[np.random.default_rng(1).permutation(POINTS), np.arange(POINTS, ROWS)].astype(np.int32)
    found = np.asarray(_classes.spread(jnp.asarray(order), jnp.asarray(LABELS), POINTS, how))
    assert sorted(found[:POINTS]) == list(range(POINTS)) and found[POINTS:].tolist() == list(range(POINTS, ROWS))
    for count in range(1, POINTS + 1):
        have = np.bincount(LABELS[found[:count]], minlength=4)
        if how == 'proportional':
            assert (np.abs(have - count * np.array(SIZES) / POINTS) < 1).all()
        else:
            short = have < np.array(SIZES)  # only a class that has points left may ask for its share
            assert not short.any() or have.max() - have[short].min() <= 1
    for label in range(4):  # the order within a class stays
        inside = [point for point in order[:POINTS] if LABELS[point] == label]
        assert [point for point in found[:POINTS] if LABELS[point] == label] == inside


def test_balanced_redraws_in_every_epoch():
    policy, labels = balanced.make(ratio=0.2, classes='even'), jnp.asarray(LABELS)
    assert all(policy.when(epoch, EPOCHS) for epoch in range(EPOCHS))
    one, other = (kept(policy, 3, seed=seed, labels=labels) for seed in (0, 1))
    assert set(one) != set(other)
    assert np.bincount(LABELS[one]).tolist() == np.bincount(LABELS[other]).tolist() == [10] * 4
    proportional = kept(balanced.make(ratio=0.2), 3, labels=labels)
    assert np.bincount(LABELS[proportional]).tolist() == [20, 12, 6, 2]


def test_the_clusters_are_those_of_k_means():
    """Of well separated losses, scikit-learn finds the same clusters."""
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.normal(centre, 0.05, 40) for centre in (0.1, 1.0, 2.5, 4.0)]).astype(np.float32)
    drawn = rng.random(160) < 0.7
    found = np.asarray(seta.clusters(jnp.asarray(score), jnp.asarray(drawn), 4))
    theirs = KMeans(4, n_init=5, random_state=0).fit(score[drawn, None])
    rank = np.argsort(np.argsort(theirs.cluster_centers_[:, 0]))
    np.testing.assert_array_equal(found[drawn], rank[theirs.labels_])


def test_seta_slides_from_easy_to_hard():
    policy = seta.make(ratio=1.0, groups=4, window=0.5)
    value = np.repeat([0.1, 1.0, 2.5, 4.0], 50)
    assert all(policy.when(epoch, EPOCHS) for epoch in range(EPOCHS)) and not policy.when(EPOCHS, EPOCHS)
    assert set(kept(policy, 0, table_of(value))) == set(range(POINTS)), 'the first epoch sees all clusters'
    for epoch, first in ((1, 1), (2, 2), (3, 0), (4, 1), (13, 1)):
        assert set(kept(policy, epoch, table_of(value))) == set(range(50 * first, 50 * first + 100))
    assert set(kept(policy, 14, table_of(value))) == set(range(POINTS)), 'the last eighth has no window'
    part = seta.make(ratio=0.5, groups=4, window=0.5)
    assert len(kept(part, 15, table_of(value))) == 100
    assert 30 <= len(kept(part, 3, table_of(value))) <= 70
    assert part.keep_counts(POINTS, EPOCHS) == [100, *[80] * 13, 100, 100]
    assert len(kept(policy, 3, table_of(1.0))) == POINTS, 'equal losses are one cluster'


def test_points_never_visited_have_the_initial_loss():
    value, count = np.repeat([0.1, 0.5, 0.9, 0.0], 50), np.repeat([1, 1, 1, 0], 50)
    hardest = kept(seta.make(ratio=1.0, groups=4, window=0.25), 3, table_of(value, count))
    assert set(hardest) == set(range(150, POINTS))
