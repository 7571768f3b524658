"""Scores of the training points by a frozen teacher: right, made once, cached, counted, or refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from kcd_jax import data, knowledge, methods, networks
from kcd_jax.contracts import SCORES, Policy
from kcd_jax.teachers import Teacher
from kcd_jax.training import ledger, serving, teacher_cache
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from tests.digits import assert_same_run, sigterm

pytestmark = pytest.mark.fast_compile

SETTINGS = {'epochs': 3, 'batch': 20, 'augment': {'crop': 1}, 'eval_every': 3, 'survey': False}
POINTS, KEPT = 120, 60
BY_LOGITS = tuple(name for name in SCORES if name != 'distance')


@pytest.fixture(scope='module')
def digits():
    return data.load('digits', num_points=POINTS)


@pytest.fixture
def network(tiny_networks, monkeypatch):
    """(network, variables, f32[P, H, W, 3] -> f32[P, K]) of a random tiny teacher."""
    monkeypatch.setattr(teacher_cache, '_SHARED', {})
    built = networks.get('tiny_teacher')(10)
    variables = built.init(jax.random.key(3), (16, 16, 3))
    return built, variables, jax.jit(lambda images: built.apply(variables, images, False)[0].logits)


@pytest.fixture
def teacher(network):
    return Teacher(network[0], network[1], {'network': 'tiny_teacher', 'num_classes': 10})


def policy_of(names=('entropy',), seen=None):
    """The points of the smallest score, chosen before the first epoch and after the second."""
    seen = [] if seen is None else seen

    def replan(key, table, plan, state, epoch, epochs, *, teacher):
        seen.append({name: np.asarray(score) for name, score in teacher.items()})
        padding = jax.numpy.arange(len(plan.order)) >= table.num_points
        order = jax.numpy.argsort(jax.numpy.where(padding, jax.numpy.inf, teacher[names[0]]))
        return knowledge.unmixed_plan(order.astype(jax.numpy.int32), KEPT), state

    return Policy(
        when=lambda epoch, epochs: epoch in (0, 2), replan=replan, keep_counts=lambda _, epochs: [KEPT] * epochs,
        teacher_scores=tuple(names),
    )  # fmt: skip


def run_of(teacher, dataset, policy, method='kd', **teaching):
    recipe = Recipe(**SETTINGS, teaching={'allow_weak': True, **teaching})
    return Run('tiny', dataset, teacher, methods.get(method).make(), policy, recipe=recipe)


def expected(network, digits):
    """{name: f64[N]} by the definitions, from whole images."""
    logits = np.asarray(network[2](digits.train.images.astype(np.float32) / np.float32(255)), np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    ordered = np.sort(p, axis=1)
    embed = np.asarray(network[0].apply(network[1], digits.train.images.astype(np.float32) / 255, False)[0].embed)
    medians = np.stack([np.median(embed[digits.train.labels == label], axis=0) for label in range(10)])
    return {
        'distance': np.linalg.norm(embed - medians[digits.train.labels], axis=1),
        'entropy': -(p * np.log(p)).sum(1),
        'cross_entropy': -np.log(p[np.arange(len(p)), digits.train.labels]),
        'margin': ordered[:, -1] - ordered[:, -2],
    }


@pytest.mark.parametrize(
    'kind', ['network', pytest.param('streamed', marks=pytest.mark.slow), 'function', 'stored', 'in the step']
)
def test_a_policy_sees_the_scores_of_the_images_as_they_are(network, teacher, digits, tmp_path, kind):
    seen, dataset, method = [], digits, 'kd'
    if kind == 'streamed':
        dataset = data.by_index(digits)
    elif kind == 'function':
        teacher = Teacher.from_callable(lambda x: np.asarray(network[2](x)), classes=10, version='tiny')
    elif kind == 'stored':
        teacher = Teacher.from_outputs(np.asarray(network[2](digits.train.images.astype(np.float32) / 255)))
    elif kind == 'in the step':
        method = 'at'
    result = run_of(
        teacher, dataset, policy_of(SCORES if kind in ('streamed', 'in the step') else BY_LOGITS, seen), method
    ).train(tmp_path)
    assert len(seen) == 2
    wanted = expected(network, digits)
    for name in seen[0]:
        scores = wanted[name]
        np.testing.assert_allclose(seen[0][name][:POINTS], scores, rtol=1e-4, atol=1e-5)
        assert not seen[0][name][POINTS:].any() and len(seen[0][name]) == 512
        np.testing.assert_array_equal(seen[0][name], seen[1][name])
    rows, cost = result.summary['computed']['teacher_rows'], result.summary['cost']
    asked = 3 * KEPT + POINTS
    assert cost['samples']['teacher_forward'] == asked
    assert rows['computed'] + rows['served'] == (POINTS if kind == 'in the step' else asked)
    if kind in ('network', 'streamed', 'in the step'):  # the padding of the calls is computed on top
        computed = cost['macs']['teacher_forward'] * (1 + (rows['padding'] - rows['served']) / asked)
        others = sum(cost['macs'].values()) - cost['macs']['teacher_forward']
        assert result.summary['computed']['macs'] == pytest.approx(others + computed)


def test_the_scores_of_one_run_serve_the_next(teacher, digits, tmp_path):
    policy = policy_of()
    off = run_of(teacher, digits, policy, cache='off').train(tmp_path / 'off')
    first, second = (run_of(teacher, digits, policy).train(tmp_path / name) for name in ('cold', 'warm'))
    assert_same_run(off.workdir, first.workdir)
    assert_same_run(off.workdir, second.workdir)
    served = [run.summary['computed']['teacher_rows'] for run in (first, second)]
    assert served[1]['served'] == 3 * KEPT + POINTS and served[1]['computed'] == 0
    at = run_of(teacher, digits, policy, 'at').train(tmp_path / 'at').summary['computed']['teacher_rows']
    assert at['served'] == POINTS and at['computed'] == 0, 'other views, the same clean images'


def test_the_cost_is_known_before_the_run_and_shown(teacher, digits):
    run = run_of(teacher, digits, policy_of(('margin', 'cross_entropy')))
    found = ledger.expected(run)
    assert found.samples['teacher_forward'] == 3 * KEPT + POINTS
    assert found.macs['teacher_forward'] == found.samples['teacher_forward'] * ledger.teacher_macs(teacher, (16, 16, 3))
    assert any(
        'scores' in line and 'margin, cross entropy of the teacher on 120 clean' in line for line in run.check(4)
    )


def test_a_teacher_that_only_scores_is_not_asked_in_training(teacher, digits, tmp_path):
    run = run_of(teacher, digits, policy_of(), 'none')
    assert any('scores the training points' in line for line in run.check(4) if line.startswith('teacher'))
    result = run.train(tmp_path)
    rows = result.summary['computed']['teacher_rows']
    assert result.summary['cost']['samples']['teacher_forward'] == rows['computed'] == POINTS
    assert 'agreement' in result.summary


def test_a_run_that_is_cut_goes_on_with_the_same_scores(teacher, digits, tmp_path):
    whole = run_of(teacher, digits, policy_of()).train(tmp_path / 'whole')
    with sigterm(1, 1):
        run_of(teacher, digits, policy_of()).train(tmp_path / 'cut')
    cut = run_of(teacher, digits, policy_of()).train(tmp_path / 'cut')
    assert_same_run(whole.workdir, cut.workdir)
    assert cut.summary['cost']['macs'] == whole.summary['cost']['macs']


def test_what_cannot_be_scored_is_refused_in_one_line(teacher, digits):
    with pytest.raises(ValueError, match='reads scores of a teacher; give one'):
        run_of(None, digits, policy_of(), 'none').check(4)
    with pytest.raises(ValueError, match="reads the score 'loss'; use entropy, cross_entropy, margin"):
        run_of(teacher, digits, policy_of(('loss',))).check(4)
    on_host = Teacher.from_callable(lambda x: np.zeros((len(x), 10), np.float32), classes=10, version='none')
    with pytest.raises(ValueError, match='gives no embeddings, which policy'):
        run_of(on_host, digits, policy_of(('distance',))).check(4)


def test_embeddings_of_too_many_points_are_refused(teacher, digits, monkeypatch):
    monkeypatch.setattr(serving, 'EMBEDDING_BYTES', 4 * POINTS * 8)
    run_of(teacher, digits, policy_of()).validate()
    with pytest.raises(ValueError, match='needs the embeddings of all 120 points at once, 0.0 GiB on every process'):
        run_of(teacher, digits, policy_of(('distance',))).validate()
