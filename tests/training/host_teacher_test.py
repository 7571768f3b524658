"""Teachers from anywhere: functions of NumPy images, stored outputs and ensembles, trained with and refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from kcd_jax import data, methods, networks, policies
from kcd_jax.runtime import sharding
from kcd_jax.teachers import Teacher
from kcd_jax.training import fill, ledger, teacher_cache
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from tests.digits import assert_same_run, metrics

pytestmark = pytest.mark.fast_compile

SETTINGS = {'epochs': 4, 'batch': 20, 'augment': {'crop': 1}, 'eval_every': 4}
WEAK = {'allow_weak': True}  # a random network teaches in most of these tests
VIEWS = 2 * 9


@pytest.fixture(scope='module')
def digits():
    return data.load('digits', num_points=120)


@pytest.fixture
def network(tiny_networks, monkeypatch):
    """(network, variables, f32[P, H, W, 3] -> (logits, embeddings)) of a random tiny teacher."""
    monkeypatch.setattr(teacher_cache, '_SHARED', {})
    built = networks.get('tiny_teacher')(10)
    variables = built.init(jax.random.key(3), (16, 16, 3))
    forward = jax.jit(lambda images: built.apply(variables, images, False)[0])
    return built, variables, forward


@pytest.fixture
def function(network):
    """A teacher that wraps the network in a function of NumPy images, and its calls so far."""
    calls = []

    def answer(images):
        assert isinstance(images, np.ndarray) and images.dtype == np.float32 and images.flags.writeable
        calls.append(len(images))
        outputs = network[2](images)
        return np.asarray(outputs.logits), np.asarray(outputs.embed)

    return Teacher.from_callable(answer, classes=10, version='tiny in NumPy'), calls


def run_of(teacher, dataset, method='kd', policy='none', keywords=None, augment=None, **teaching):
    recipe = {**SETTINGS, 'augment': augment or SETTINGS['augment'], 'teaching': {**WEAK, **teaching}}
    return Run(
        student='tiny',
        teacher=teacher,
        data=dataset,
        method=methods.get(method).make(),
        policy=policies.get(policy).make(**(keywords or {})),
        recipe=Recipe(**recipe),
    )


def shape_of(dataset):
    return tuple(dataset.image_shape)


# ---------------------------------------------------------------------------------------------------------- a function


def test_a_function_gives_the_same_training_without_a_cache_with_a_cold_and_a_warm_one(function, digits, tmp_path):
    teacher, calls = function
    train = lambda name, cache: run_of(teacher, digits, policy='kcd', keywords={'stages': 2}, cache=cache).train(  # noqa: E731
        tmp_path / name
    )
    off = train('off', 'off')
    for name, cache in (('cold', 'memory'), ('warm', 'memory'), ('disk', f'{tmp_path}/c'), ('full', f'{tmp_path}/c')):
        if name == 'full':
            teacher_cache._SHARED.clear()
        found = train(name, cache)
        assert_same_run(off.workdir, found.workdir)
        rows = found.summary['computed']['teacher_rows']
        if name in ('warm', 'full'):
            assert rows['computed'] == rows['mixed'] > 0
    assert {*calls} <= {8, 256}  # the fixed images, and calls of one size


def test_a_second_run_asks_a_function_about_its_fixed_images_alone(function, digits, tmp_path):
    teacher, calls = function
    run_of(teacher, digits).train(tmp_path / 'first')
    assert 256 in calls
    calls.clear()
    run_of(teacher, digits).train(tmp_path / 'second')
    assert {*calls} == {8}


def test_a_function_that_wraps_a_network_teaches_as_the_network_does(function, network, digits, tmp_path):
    card = {'network': 'tiny_teacher', 'num_classes': 10}
    own = run_of(Teacher(network[0], network[1], card), digits).train(tmp_path / 'own')
    wrapped = run_of(function[0], digits).train(tmp_path / 'wrapped')
    for one, other in zip(metrics(own.workdir), metrics(wrapped.workdir), strict=True):
        for name in {'loss', 'kd', 'agreement', 'teacher_kl', 'accuracy'} & {*one}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)
    assert own.summary['teacher']['accuracy'] == wrapped.summary['teacher']['accuracy']
    assert wrapped.summary['cost']['macs']['teacher_forward'] == 0 and wrapped.summary['teacher']['macs'] is None
    points = [np.load(run.workdir / 'knowledge' / 'points.npz') for run in (own, wrapped)]
    np.testing.assert_allclose(*(found['teacher_entropy'] for found in points), rtol=1e-4)


def test_the_embeddings_of_a_function_serve_methods_that_read_them(function, digits, tmp_path):
    off = run_of(function[0], digits, method='sskd', cache='off').train(tmp_path / 'off')
    assert_same_run(off.workdir, run_of(function[0], digits, method='sskd').train(tmp_path / 'memory').workdir)


def test_streamed_points_reach_a_function(function, digits, tmp_path):
    streamed = data.by_index(digits)
    off = run_of(function[0], streamed, cache='off').train(tmp_path / 'off')
    assert_same_run(off.workdir, run_of(function[0], digits).train(tmp_path / 'memory').workdir)


def test_the_macs_of_a_function_are_counted_if_it_says_them(network, digits):
    run = run_of(Teacher.from_callable(lambda x: network[2](x).logits, classes=10, version='v', macs=1000), digits)
    found = ledger.expected(run)
    assert found.macs['teacher_forward'] == 1000 * found.samples['teacher_forward'] > 0
    unknown = run_of(Teacher.from_callable(lambda x: network[2](x).logits, classes=10, version='v'), digits)
    lines = ledger.lines(ledger.expected(unknown))
    assert any('teacher_forward' in line and 'unknown' in line for line in lines)
    assert lines[-1].startswith('without teacher')


@pytest.mark.parametrize(
    ('answer', 'told'),
    [
        (lambda x: np.zeros((len(x), 9)), 'returned logits of shape [8, 9] instead of [8, 10]'),
        (lambda x: np.zeros((len(x) - 1, 10)), 'returned logits of shape [7, 10]'),
        (lambda x: np.full((len(x), 10), np.nan), 'not finite, first in row 0'),
        (lambda x: np.full((len(x), 10), 0.1), 'give logits'),
        (lambda x: {'logits': np.zeros((len(x), 10))}, 'returned dict, which is no array of numbers'),
        (lambda x: (x.sum((1, 2))[:, :1] * np.ones(10), x[:, 0, :2, 0], 3), 'returned 3 arrays'),
        (lambda x: x @ np.ones(4), 'raised ValueError: matmul'),
    ],
)
def test_a_function_that_answers_wrongly_is_refused_when_the_run_is_built(digits, tiny_networks, answer, told):
    with pytest.raises(ValueError, match='the teacher mine, asked about 8 images') as error:
        run_of(Teacher.from_callable(answer, classes=10, version='mine'), digits)
    assert told in str(error.value) and '\n' not in str(error.value)


def test_an_answer_that_is_not_finite_later_names_the_batch(network, digits, tmp_path):
    def answer(images):
        logits = np.array(network[2](images).logits)
        logits[5 if len(images) > 8 else 8 :] = np.nan
        return logits

    run = run_of(Teacher.from_callable(answer, classes=10, version='mine'), digits)
    with pytest.raises(ValueError, match=r'teacher mine, asked about 256 .* first for \d+, row 5 of the batch'):
        run.train(tmp_path)


def test_what_a_function_raises_later_names_the_batch(network, digits, tmp_path):
    def answer(images):
        if len(images) > 8:
            raise RuntimeError('out of memory')
        return network[2](images).logits

    run = run_of(Teacher.from_callable(answer, classes=10, version='mine'), digits)
    with pytest.raises(ValueError, match=r'the teacher mine, asked about 256 .*, raised RuntimeError: out of memory'):
        run.train(tmp_path)


def test_a_function_that_changed_since_it_was_made_is_refused_at_the_start(network, digits, tmp_path):
    shift = [0.0]
    teacher = Teacher.from_callable(lambda x: network[2](x).logits + np.float32(shift[0]), classes=10, version='mine')
    run = run_of(teacher, digits)
    shift[0] = 1.0
    with pytest.raises(ValueError, match='the teacher mine gives other answers to the same 8 images'):
        run.train(tmp_path)


def test_the_identity_of_a_function_is_its_version_and_its_answers(network, digits):
    def identity(version='a', scale=1.0):
        made = lambda x: np.asarray(network[2](x).logits) * np.float32(scale)  # noqa: E731
        return Teacher.from_callable(made, classes=10, version=version, image_shape=shape_of(digits)).identity

    assert identity() == identity() != identity('b') != identity(scale=2.0) != identity()


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'method': 'at'}, 'reads its feats; it can serve the methods'),
        ({'policy': 'unix', 'keywords': {'k': 8}}, 'policy unix mixes inside the batch'),
        ({'in_step': True}, 'recipe.teaching.in_step'),
    ],
)
def test_what_a_function_cannot_serve_is_refused_in_one_line(function, digits, changes, told):
    with pytest.raises(ValueError, match='the teacher tiny in NumPy') as error:
        run_of(function[0], digits, **changes).check(4)
    assert told in str(error.value) and '\n' not in str(error.value)
    if 'method' in changes:
        assert 'crd' in str(error.value) and 'kd,' in str(error.value) and 'vid' not in str(error.value)


def test_logits_alone_do_not_serve_a_method_of_embeddings(network, digits):
    teacher = Teacher.from_callable(lambda x: network[2](x).logits, classes=10, version='mine')
    with pytest.raises(ValueError, match=r'gives logits, and method crd reads its embed; it can serve .*kd'):
        run_of(teacher, digits, method='crd').check(4)


def test_embeddings_of_any_teacher_serve_a_policy_that_reads_them(function, network, digits, tmp_path):
    clean = network[2](np.asarray(digits.train.images).astype(np.float32) / np.float32(255))
    card = {'network': 'tiny_teacher', 'num_classes': 10}
    teachers = {
        'own': Teacher(*network[:2], card),
        'function': function[0],
        'stored': Teacher.from_outputs(np.asarray(clean.logits), embed=np.asarray(clean.embed)),
        'alone': Teacher.from_callable(lambda x: np.asarray(network[2](x).embed), version='embeddings'),
    }
    kept = []
    for name, teacher in teachers.items():
        method = {'method': 'embed'} if name == 'alone' else {}
        run_of(teacher, digits, **method, policy='moderate').train(tmp_path / name)
        kept.append(np.load(tmp_path / name / 'knowledge' / 'points.npz')['count'] > 0)
    for other in kept[1:]:
        np.testing.assert_array_equal(kept[0], other)
    assert 0 < kept[0].sum() < len(kept[0])


def test_what_cannot_score_points_by_embeddings_is_refused(function, network, digits):
    ensemble = Teacher.ensemble([function[0], function[0]])
    with pytest.raises(ValueError, match='gives no embeddings, which policy moderate reads; use a teacher that does'):
        run_of(ensemble, digits, policy='moderate').check(4)
    alone = Teacher.from_callable(lambda x: np.asarray(network[2](x).embed), version='embeddings')
    run = run_of(alone, digits, method='embed', policy='learnability').replace(weights={'gamma': 1.0})
    with pytest.raises(ValueError, match='gives embeddings alone, and the scores that policy learnability reads are'):
        run.check(4)


# ------------------------------------------------------------------------------------------------------ stored outputs


def test_stored_outputs_of_every_view_are_what_the_function_answers(function, network, digits, tmp_path):
    views = np.zeros((120, VIEWS, 10), np.float32)
    padded = np.pad(np.asarray(digits.train.images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = shape_of(digits)[:2]
    for number in range(VIEWS):
        flip, y, x = number // 9, number // 3 % 3, number % 3
        image = np.asarray(digits.train.images)[:, :, ::-1] if flip else np.asarray(digits.train.images)
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, y : y + height, x : x + width]
        views[:, number] = network[2](padded.astype(np.float32) / np.float32(255)).logits
    test = network[2](np.asarray(digits.test.images).astype(np.float32) / np.float32(255)).logits
    stored = Teacher.from_outputs(views, np.asarray(test), classes=digits.class_names)
    asked, kept = (run_of(t, digits).train(tmp_path / n) for t, n in ((function[0], 'asked'), (stored, 'stored')))
    for one, other in zip(metrics(asked.workdir), metrics(kept.workdir), strict=True):
        for name in {'loss', 'kd', 'agreement', 'teacher_entropy'} & {*one}:
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)
    assert kept.summary['teacher']['accuracy'] == asked.summary['teacher']['accuracy']


@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
def test_one_stored_answer_per_point_comes_from_a_file_and_is_said(tiny_networks, digits, tmp_path, suffix):
    from safetensors.numpy import save_file

    logits = {'train': 5 * np.eye(10, dtype=np.float32)[digits.train.labels]}
    path = tmp_path / f'outputs.{suffix}'
    np.savez(path, **logits) if suffix == 'npz' else save_file(logits, path)
    run = run_of(Teacher.from_outputs(path), digits, policy='kcd', keywords={'stages': 2, 'augment': 'none'})
    assert any('used for every view' in line for line in run.check(4))
    result = run.train(tmp_path / 'run')
    assert 'used for every view' in json.dumps(result.summary['teacher']['notes'])
    assert result.summary['teacher']['accuracy'] is None and 'agreement' in result.summary
    rows = result.summary['computed']['teacher_rows']
    assert rows['served'] == result.summary['cost']['samples']['teacher_forward'] and rows['computed'] == 0
    again = Run.from_description(run.describe())
    assert again.describe() == run.describe()


@pytest.mark.parametrize(
    ('train', 'test', 'changes', 'told'),
    [
        ((120, 10), None, {'policy': 'kcd', 'keywords': {'stages': 2}}, 'policy kcd mixes images'),
        ((120, 10), None, {'policy': 'unix', 'keywords': {'k': 8}}, 'policy unix mixes inside the batch'),
        ((119, 10), None, {}, 'holds 119 training points and the data has 120'),
        ((120, 10), 3, {}, 'holds 3 test images'),
        ((120, 7, 10), None, {}, 'holds 7 views per point, and augment.crop=1 with augment.flip=True has 18'),
        ((120, 18, 10), None, {'augment': {'area': (0.5, 1.0)}}, 'views by augment.area have no finite number'),
        ((120, 9), None, {}, 'knows 9 classes'),
        ((120, 10), None, {'method': 'rkd'}, 'reads its embed'),
    ],
)
def test_stored_outputs_that_do_not_fit_a_run_are_refused(tiny_networks, digits, train, test, changes, told):
    draw = np.random.default_rng(0).normal
    stored = Teacher.from_outputs(draw(size=train), None if test is None else draw(size=(test, train[-1])))
    with pytest.raises(ValueError, match='stored outputs') as error:
        run_of(stored, digits, **changes).check(4)
    assert told in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('with_logits', [True, False])
def test_stored_embeddings_of_other_test_images_are_refused(tiny_networks, digits, with_logits):
    draw = np.random.default_rng(0).normal
    stored = Teacher.from_outputs(
        draw(size=(120, 10)) if with_logits else None, embed=draw(size=(120, 8)), test_embed=draw(size=(3, 8))
    )
    with pytest.raises(ValueError, match=r'holds 3 test images \(test_embed\) and the data evaluates 597'):
        run_of(stored, digits, method='embed').check(4)


def test_stored_outputs_in_another_order_are_refused_by_the_labels(tiny_networks, digits, tmp_path):
    train, test = (5 * np.eye(10, dtype=np.float32)[part.labels] for part in (digits.train, digits.test))
    shuffled = np.random.default_rng(0).permutation(train)
    run = run_of(Teacher.from_outputs(shuffled, test), digits, allow_weak=False)
    with pytest.raises(ValueError, match=r'of the 120 training points, by its rows in the order of the data'):
        run.train(tmp_path)


# -------------------------------------------------------------------------------------------------------- an ensemble


def test_an_ensemble_of_a_network_and_a_function_trains_the_same_cold_and_warm(function, network, digits, tmp_path):
    card = {'network': 'tiny_teacher', 'num_classes': 10}
    both = Teacher.ensemble([function[0], Teacher(*network[:2], card)], weights=[1, 3])
    off = run_of(both, digits, cache='off').train(tmp_path / 'off')
    assert_same_run(off.workdir, run_of(both, digits).train(tmp_path / 'cold').workdir)
    assert_same_run(off.workdir, run_of(both, digits).train(tmp_path / 'warm').workdir)
    alone = run_of(function[0], digits).train(tmp_path / 'alone')  # two equal members are one
    for one, other in zip(metrics(alone.workdir), metrics(off.workdir), strict=True):
        if 'kd' in one:
            assert one['kd'] == pytest.approx(other['kd'], rel=1e-3, abs=1e-6)
    assert 'weights 0.25, 0.75' in json.dumps(off.summary['teacher']['notes'])


def test_runs_share_their_views_only_if_the_recipe_says_so(function, digits, tmp_path):
    def rows(seed, views):
        run = run_of(function[0], digits, augment={'crop': 1, 'seed': views}).with_seed(seed)
        assert any('drawn with seed' in line for line in run.check(4)) == (views >= 0)
        return run.train(tmp_path / f'{seed}_{views}').summary['computed']['teacher_rows']

    first, second = rows(0, 5), rows(1, 5)
    assert first['computed'] > 0 and second['computed'] == 0  # kd on every point: the same rows in another order
    assert rows(2, -1)['computed'] > 0


@pytest.mark.parametrize('streamed', [False, True])
def test_a_filled_cache_serves_every_row_of_its_epochs(function, digits, tmp_path, streamed):
    dataset = data.by_index(digits) if streamed else digits
    run = run_of(function[0], dataset, cache=f'{tmp_path}/c')
    fill.refuse(run, 4)
    shown = []
    first = dict(fill.fill(run, 4, sharding.make_mesh(), shown.append))
    again = fill.fill(run, 4, sharding.make_mesh(), shown.append)
    assert first['computed'] > 0 and again['computed'] == 0 and sum(shown) == 2 * fill.images(run, 4)
    teacher_cache._SHARED.clear()
    result = run.train(tmp_path / 'run')
    assert result.summary['computed']['teacher_rows']['computed'] == 0
    assert_same_run(run_of(function[0], dataset, cache='off').train(tmp_path / 'off').workdir, result.workdir)


def test_seeds_that_share_their_views_are_filled_once(function, digits):
    runs = [run_of(function[0], digits, policy=policy) for policy in ('none', 'random')]
    assert len(fill.streams(runs, range(3))) == 3
    shared = [run_of(function[0], digits, augment={'crop': 1, 'seed': 0})]
    assert [run.view_seed for run in fill.streams(shared, range(3))] == [0]
    other = run_of(function[0], digits, augment={'crop': 2, 'seed': 0})
    assert len(fill.streams([*shared, other], range(3))) == 2


def test_filling_ends_at_the_bound_and_keeps_what_is_there(function, digits, tmp_path):
    run = run_of(function[0], digits, cache=f'{tmp_path}/c', cache_gb=1e-6)
    with pytest.raises(ValueError, match=r'[0-9]+ rows are in .*, which takes no more; raise teaching.cache_gb'):
        fill.fill(run, 4, sharding.make_mesh(), lambda rows: None)
    assert len(function[1]) < 4  # calls of the function: those of its checks, and of one block


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({}, 'name a folder'),
        ({'cache': 'c', 'augment': {'area': (0.5, 1.0)}}, 'random resized crops, .* set augment.views'),
    ],
)
def test_what_has_no_cache_to_fill_is_refused(function, digits, changes, told):
    with pytest.raises(ValueError, match=told):
        fill.refuse(run_of(function[0], digits, **changes), 4)


def test_stored_outputs_have_no_cache_to_fill(tiny_networks, digits):
    stored = Teacher.from_outputs(train=np.zeros((len(digits.train), 10), np.float32))
    with pytest.raises(ValueError, match='holds stored outputs; there is nothing to fill'):
        fill.refuse(run_of(stored, digits, cache='c'), 4)
