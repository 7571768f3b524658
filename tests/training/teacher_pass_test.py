"""The teacher pass: no cache, a cold one, a warm one, in memory or on disk, the training is the same bit for bit."""

from __future__ import annotations

import types

import numpy as np
import pytest

from kcd_jax import data, methods, policies
from kcd_jax.runtime import sharding
from kcd_jax.training import augment, evaluate, teacher_cache, teacher_pass
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from tests.digits import assert_same_run, metrics, one_device

pytestmark = pytest.mark.fast_compile

SETTINGS = {'epochs': 4, 'batch': 20, 'augment': {'crop': 1}, 'eval_every': 4, 'survey': False}
POOL = {'preset': 'reference', 'stages': 2}


@pytest.fixture(scope='module')
def digits():
    return data.load('digits', num_points=120)


@pytest.fixture(scope='module')
def teacher_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('teacher')


@pytest.fixture
def train(tiny_networks, digits, teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, '_SHARED', {})

    def train(name, dataset=None, method='kd', policy='kcd', keywords=None, recipe=None, seed=0, devices=4, **teaching):
        taught = Run(student='tiny_teacher', data=digits, recipe=Recipe(**SETTINGS), seed=1000)
        run = Run(
            student='tiny',
            teacher=taught,
            data=dataset or digits,
            method=methods.get(method).make(),
            policy=policies.get(policy).make(**(keywords or ({'stages': 2} if policy == 'kcd' else {}))),
            recipe=Recipe(**{**SETTINGS, **(recipe or {})}, teaching=teaching),
            seed=seed,
        )
        mesh = one_device() if devices == 1 else sharding.make_mesh()
        return run.train(tmp_path / name, teacher_dir=teacher_dir, mesh=mesh)

    return train


@pytest.fixture(scope='module')
def uncached_runs():
    return {}


@pytest.fixture
def cases(digits):
    """As it is, with a pool that the steps donate, and streamed: keywords of `train`."""
    return {'plain': {}, 'pool': {'keywords': POOL}, 'streamed': {'dataset': data.by_index(digits)}}


@pytest.fixture
def uncached(train, cases, uncached_runs):
    """uncached('pool'): the run of a case without a cache, trained once for all tests of this file."""

    def run(case):
        if case not in uncached_runs:
            uncached_runs[case] = train(f'uncached {case}', **cases[case], cache='off')
        return uncached_runs[case]

    return run


def test_every_kind_of_cache_gives_the_same_training(train, tmp_path, monkeypatch):
    evaluated, evaluator = [], evaluate.Evaluator.__call__

    def evaluation(self, name, *arguments):
        evaluated.append(name)
        return evaluator(self, name, *arguments)

    monkeypatch.setattr(evaluate.Evaluator, '__call__', evaluation)
    off = train('off', cache='off')
    assert 'teacher' in evaluated
    for name, cache in (
        ('cold', 'memory'),
        ('warm', 'memory'),
        ('filling', f'{tmp_path}/c'),
        ('full', f'{tmp_path}/c'),
    ):
        if name == 'full':
            teacher_cache._SHARED.clear()  # another process finds the files
        evaluated.clear()
        found = train(name, cache=cache)
        assert ('teacher' in evaluated) == (name not in ('warm', 'full'))
        assert_same_run(off.workdir, found.workdir)
        rows = found.summary['computed']['teacher_rows']
        asked = found.summary['cost']['samples']['teacher_forward']
        assert rows['computed'] + rows['served'] == asked
        if name in ('warm', 'full'):
            assert rows['computed'] == rows['mixed'] > 0  # only mixed points are asked again
    assert off.summary['computed']['teacher_rows']['served'] == 0


def test_a_teacher_inside_the_step_gives_the_same_losses_up_to_rounding(train, uncached):
    inside, before = train('inside', in_step=True), uncached('plain')
    for one, other in zip(metrics(inside.workdir), metrics(before.workdir), strict=True):
        if one['kind'] == 'train' and one['epoch'] == 1:
            for name in ('loss', 'kd', 'teacher_entropy'):
                assert one[name] == pytest.approx(other[name], rel=1e-4)  # two programs round differently
    assert inside.summary['cost']['macs'] == before.summary['cost']['macs']


@pytest.mark.parametrize('method', ['sskd', 'crd'])
def test_views_and_embeddings_come_from_the_cache(train, method):
    keywords = {'method': method, 'policy': 'none', 'devices': 1}
    off = train('off', **keywords, cache='off')
    assert_same_run(off.workdir, train('memory', **keywords).workdir)


def test_points_that_a_pool_altered_are_not_cached(train, uncached):
    train('cold', keywords=POOL)
    assert_same_run(uncached('pool').workdir, train('warm', keywords=POOL).workdir)


@pytest.mark.slow
def test_an_epoch_in_many_slices_is_the_same_training(train, uncached, cases, monkeypatch):
    drawn = []
    views = teacher_pass.TeacherPass._views
    monkeypatch.setattr(
        teacher_pass.TeacherPass,
        '_views',
        lambda self, index, key: drawn.append(len(index)) or views(self, index, key),
    )
    whole = {name: uncached(name) for name in cases}
    monkeypatch.setattr(teacher_pass, 'SLICE_BYTES', 1)
    monkeypatch.setattr(teacher_pass, 'ROWS', 20)  # one step
    drawn.clear()
    for name, keywords in cases.items():
        assert_same_run(whole[name].workdir, train(name, **keywords).workdir)
    assert set(drawn) == {20}


def test_streamed_points_are_answered_too(train, uncached, digits):
    assert_same_run(uncached('streamed').workdir, train('memory', data.by_index(digits)).workdir)


def test_fixed_views_of_a_random_resized_crop_are_cached_for_all_seeds(train, digits):
    recipe = {'epochs': 2, 'augment': {'crop': 0, 'area': (0.3, 1.0), 'views': 2}}
    keywords = {'policy': 'none', 'recipe': recipe, 'devices': 1}
    off = train('off', **keywords, cache='off')
    first = train('cold', **keywords)
    again = train('streamed', data.by_index(digits), **keywords)
    other = train('seed', **keywords, seed=1)
    assert_same_run(off.workdir, first.workdir)
    assert_same_run(off.workdir, again.workdir)
    computed = [run.summary['computed']['teacher_rows']['computed'] for run in (off, first, again, other)]
    assert computed[0] == 2 * 120 and computed[2] == 0
    assert 120 < computed[1] < 2 * 120 and computed[1] + computed[3] <= 2 * 120, 'two views per point in all'


@pytest.mark.parametrize(
    ('method', 'policy', 'why'),
    [
        ('kd', 'none', ''),
        ('at', 'none', 'reads its feats'),
        ('kd', 'unix', 'mixes inside the batch'),
        ('crd', 'kcd', ''),
    ],
)
def test_check_says_where_the_teacher_runs(tiny_networks, digits, method, policy, why):
    taught = Run(student='tiny_teacher', data=digits, recipe=Recipe(**SETTINGS))
    keywords = {'stages': 2} if policy == 'kcd' else {'k': 8} if policy == 'unix' else {}
    run = Run(
        student='tiny', teacher=taught, data=digits, method=methods.get(method).make(),
        policy=policies.get(policy).make(**keywords), recipe=Recipe(**SETTINGS),
    )  # fmt: skip
    line = next(line for line in run.check(4) if line.startswith('teacher'))
    assert (why in line and 'inside the step' in line) if why else 'answers before the steps' in line


def test_check_says_that_views_which_are_never_shown_twice_have_no_cache(tiny_networks, digits):
    taught = Run(student='tiny_teacher', data=digits, recipe=Recipe(**SETTINGS))
    for views, line in (
        ({'area': (0.3, 1.0)}, 'cache: none, since no view is shown twice (augment.area); augment.views=V gives'),
        ({'crop': 1, 'mixup': 0.2}, 'cache: none, since no view is shown twice (augment.mixup)'),
    ):
        run = Run(student='tiny', teacher=taught, data=digits, recipe=Recipe(**{**SETTINGS, 'augment': views}))
        assert any(line in said for said in run.check(4))


def test_a_run_hears_that_it_should_stop_after_a_few_calls_of_the_teacher(tiny_networks, digits):
    """A slice of a large data set is bounded by what it asks, not by the memory of the answers alone."""
    asking = object.__new__(teacher_pass.TeacherPass)
    train = types.SimpleNamespace(streamed=False)
    dataset = types.SimpleNamespace(train=train, image_shape=(16, 16, 3))
    asking.run = types.SimpleNamespace(recipe=types.SimpleNamespace(batch=20), data=dataset, num_points=50_000)
    asking.num_views, asking.width, asking._points = 1, 10, teacher_pass.ROWS
    assert asking.slice_steps(1) == teacher_pass.SLICE_CALLS * teacher_pass.ROWS // 20
    assert asking.slice_steps(100) == 300


def test_positions_are_distinct_for_every_view_of_every_point(tiny_networks, digits):
    asking = object.__new__(teacher_pass.TeacherPass)
    asking._crop, asking.num_views, asking.views_per_row = 1, 2, 2 * 9
    views = np.array(
        [[f, a, b, c, d] for f in (0, 1) for a in range(3) for b in range(3) for c in (0, 2) for d in (1, 2)]
    )
    index = np.arange(len(views)) % 5
    asking._views = lambda index, key: augment.View(views)
    found = asking._positions(index, None)
    seen = {(int(p), v, tuple(row[[0, 1 + 2 * v, 2 + 2 * v]])) for p, row in zip(index, views) for v in range(2)}
    assert len(set(found.reshape(-1).tolist())) == len(seen)
    assert found.min() >= 0 and found.max() < 5 * 2 * asking.views_per_row
