"""What the policies that select whole points keep: static, balanced, seta, learnability, moderate, rounds."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from kcd_jax import policies
from kcd_jax.contracts import Batch, Outputs, ValueTable, full_plan, table_rows
from kcd_jax.policies import _classes, balanced, kcd, learnability, moderate, rounds, seta, static
from kcd_jax.training.teacher_clean import centre_distances

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


@pytest.mark.parametrize('sizes', [(180, *[1] * 20), (63, 58, 56, 23), (100, 99, 1), (50, 50, 50, 50), (190, 10)])
def test_the_proportions_are_kept_within_the_stated_bound(sizes):
    """1/2 + p (K - 2) / 2 points; of a large class among single points this is several."""
    labels = np.zeros(ROWS, np.int32)
    labels[:POINTS] = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))[:POINTS]
    share = np.bincount(labels[:POINTS], minlength=len(sizes)) / POINTS
    found = np.asarray(_classes.spread(jnp.arange(ROWS), jnp.asarray(labels), POINTS, 'proportional'))[:POINTS]
    have = np.cumsum(labels[found][:, None] == np.arange(len(sizes)), axis=0)
    off = np.abs(have - np.arange(1, POINTS + 1)[:, None] * share)
    assert (off <= 0.5 + share * (len(sizes) - 2) / 2 + 1e-9).all()
    assert (off.max() > 1) == (sizes[1] == 1)


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
    assert part.keep_counts(POINTS, EPOCHS) == [100, *[50] * 13, 100, 100]
    assert len(kept(policy, 3, table_of(1.0))) == POINTS, 'equal losses are one cluster'


def test_the_expected_sizes_follow_the_window():
    for groups, window, expected in ((5, 0.9, 160), (5, 0.8, 160), (10, 0.5, 100), (50, 0.02, 4), (20, 0.05, 10)):
        assert seta.make(ratio=1.0, groups=groups, window=window).keep_counts(POINTS, EPOCHS)[1] == expected
    assert seta.make(ratio=1.0, inside=0.7).keep_counts(POINTS, EPOCHS)[1] == 140


@pytest.mark.parametrize(('groups', 'window'), [(5, 0.2), (10, 0.5), (50, 0.02), (50, 0.3)])
def test_a_window_of_few_points_is_widened(groups, window):
    """A few losses are large, so that most clusters hold a point or two."""
    policy = policies.get('seta').make(groups=groups, window=window)
    value = np.r_[np.random.default_rng(0).gamma(1.0, 0.01, POINTS - 20), np.linspace(1, 9, 20)]
    sizes = [len(kept(policy, epoch, table_of(value))) for epoch in range(EPOCHS)]
    least = policy.min_keep(POINTS, EPOCHS)
    assert least == max(1, int(180 * round(groups * window) / groups / 3)) <= min(sizes)
    assert policies.get('seta').make(window=1.0).min_keep(POINTS, EPOCHS) == 180, 'no window'


def test_a_window_is_widened_by_the_fewest_clusters():
    rng = np.random.default_rng(0)
    for _ in range(50):
        groups, drawn = int(rng.integers(2, 8)), rng.random(60) < 0.8
        cluster = rng.choice(groups, 60, p=rng.dirichlet(np.full(groups, 0.4)))
        first = int(rng.integers(0, groups))
        end, least = int(rng.integers(first + 1, groups + 1)), int(rng.integers(1, drawn.sum() + 1))
        low, high = first, end
        while (drawn & (cluster >= low) & (cluster < high)).sum() < least:
            low, high = max(low - 1, 0), min(high + 1, groups)
        found = seta.widened(jnp.asarray(cluster), jnp.asarray(drawn), first, end, least, groups)
        assert tuple(map(int, found)) == (low, high)


def test_no_published_window_would_be_widened():
    for path in (pathlib.Path(__file__).parents[2] / 'results').glob('benchmark_*/seta_*.json'):
        run = json.loads(path.read_text())
        policy = policies.get('seta').make(**{k: v for k, v in run['run']['policy'].items() if k != 'name'})
        least = policy.min_keep(run['num_points'], run['epochs'])
        assert least < min(plan['kept'] for plan in run['condensations']), path.name


def test_points_never_visited_have_the_initial_loss():
    value, count = np.repeat([0.1, 0.5, 0.9, 0.0], 50), np.repeat([1, 1, 1, 0], 50)
    hardest = kept(seta.make(ratio=1.0, groups=4, window=0.25), 3, table_of(value, count))
    assert set(hardest) == set(range(150, POINTS))


def test_learnability_keeps_what_the_teacher_knows_and_the_student_does_not():
    rng = np.random.default_rng(2)
    student, of_teacher = rng.random(POINTS).astype(np.float32) + 1, np.zeros(ROWS, np.float32)
    of_teacher[:POINTS] = rng.random(POINTS)
    count = np.r_[np.zeros(5, int), np.ones(POINTS - 5, int)]
    policy = learnability.make(ratio=0.25)
    assert [epoch for epoch in range(4) if policy.when(epoch, 4)] == [1, 2, 3]
    assert policy.keep_counts(POINTS, 3) == [POINTS, 50, 50] and policy.records == 'last'
    assert policy.teacher_scores == ('cross_entropy',)
    teacher = {'cross_entropy': jnp.asarray(of_teacher)}
    found = kept(policy, 1, table_of(student, count), teacher=teacher)
    best = 5 + np.argsort(of_teacher[5:POINTS] - student[5:], kind='stable')[:45]
    assert found[:5].tolist() == list(range(5)) and found[5:].tolist() == best.tolist(), 'the unseen come first'
    label_free = learnability.make(score='entropy')
    assert label_free.teacher_scores == ('entropy',) and label_free.observe is None


def test_learnability_records_the_cross_entropy_of_the_first_view():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    label = jnp.array([3, 0, 2], jnp.int32)
    batch = Batch(label, jnp.zeros((6, 2, 2, 3)), label, label, jnp.zeros(3), jnp.ones(3))
    found = learnability.make().observe(Outputs(jnp.asarray(logits)), None, batch, jnp.zeros(3))
    first = logits[::2].astype(np.float64)
    np.testing.assert_allclose(found, np.log(np.exp(first).sum(1)) - first[np.arange(3), label], rtol=1e-5)


@pytest.mark.parametrize('ratio', [0.1, 0.5, 0.995, 1.0])
def test_moderate_keeps_the_middle_of_the_distances(ratio):
    distance = np.zeros(ROWS, np.float32)
    distance[:POINTS] = np.random.default_rng(4).gamma(2.0, size=POINTS)
    policy = moderate.make(ratio=ratio)
    assert [epoch for epoch in range(EPOCHS) if policy.when(epoch, EPOCHS)] == [0]
    found = kept(policy, 0, teacher={'distance': jnp.asarray(distance)})
    ordered, count = np.argsort(distance[:POINTS], kind='stable'), round(ratio * POINTS)
    low = (POINTS - count) // 2
    assert found.tolist() == ordered[low : low + count].tolist()


def test_distances_are_to_the_median_of_the_class():
    rng = np.random.default_rng(3)
    embed, labels = rng.normal(size=(30, 5)).astype(np.float32), rng.integers(0, 3, 30)
    found = centre_distances(embed, labels)
    for point in range(30):
        own = embed[labels == labels[point]]
        middle = slice((len(own) - 1) // 2, len(own) // 2 + 1)  # one value, or the two in the middle
        centre = [np.mean(sorted(own[:, i])[middle]) for i in range(5)]
        assert found[point] == pytest.approx(np.sqrt(np.sum((embed[point] - centre) ** 2)), rel=1e-5)


def test_rounds_visits_the_points_of_a_class_equally_often():
    """Fourteen epochs at 10 %: without a teacher every class loses at most one visit between its points."""
    policy, labels = rounds.make(ratio=0.1, sizes='constant'), jnp.asarray(LABELS)
    assert policy.teacher_scores == () and all(policy.when(epoch, EPOCHS) for epoch in range(EPOCHS))
    visits = np.zeros(POINTS, int)
    for epoch in range(14):
        chosen = kept(policy, epoch, table_of(0, visits), seed=epoch, labels=labels)
        assert np.bincount(LABELS[chosen], minlength=4).tolist() == [5] * 4
        visits[chosen] += 1
    for label in range(4):
        own = visits[LABELS[:POINTS] == label]
        assert own.max() - own.min() <= 1 and own.sum() == 70


def test_rounds_shrinks_as_kcd_does():
    policy, like = rounds.make(ratio=0.3, stages=4), kcd.make(ratio=0.3, stages=4)
    assert policy.keep_counts(POINTS, EPOCHS) == like.keep_counts(POINTS, EPOCHS)
    found = [len(kept(policy, epoch, labels=jnp.asarray(LABELS))) for epoch in range(EPOCHS)]
    assert found == policy.keep_counts(POINTS, EPOCHS)


def test_rounds_takes_what_the_teacher_doubts_last():
    labels, doubtful = jnp.asarray(LABELS), np.arange(ROWS) % 4 == 0
    probability = np.where(doubtful, 0.09, 0.11).astype(np.float32)
    teacher = {'cross_entropy': jnp.asarray(-np.log(probability))}
    for ratio, aside in ((0.5, 0), (0.75, 0), (0.9, 30)):
        found = kept(rounds.make(ratio=ratio, sizes='constant', doubt=0.1), 3, labels=labels, teacher=teacher)
        assert doubtful[found].sum() == aside and len(found) == round(ratio * POINTS)
