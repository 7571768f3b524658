"""Data without labels: what is trained, what is evaluated, and what is refused by name."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from kcd_jax import data, methods, policies
from kcd_jax.report import page
from kcd_jax.teachers import Teacher
from kcd_jax.training.journal import class_accuracy
from kcd_jax.training.run import Run
from tests.digits import metrics, one_device

pytestmark = pytest.mark.fast_compile

SETTINGS = {'epochs': 2, 'batch': 16, 'augment': {'crop': 1}, 'teaching': {'cache': 'off'}}
CLASSES = ('amber', 'blue', 'cyan')


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)


def colour(pixels: np.ndarray) -> np.ndarray:
    """A teacher's logits f32[P, 3]: which colour there is most of."""
    return 20 * pixels.mean(axis=(1, 2))


@pytest.fixture
def teacher(tiny_networks):
    return Teacher.from_callable(colour, classes=CLASSES, version='colours')


def run_of(images, teacher, labels=None, test=None, method='kd', policy='none', **fields) -> Run:
    dataset = data.from_arrays(images, labels, test=test)
    policy = policies.get(policy).make() if isinstance(policy, str) else policy
    made = {'method': methods.get(method).make(), 'policy': policy, 'recipe': SETTINGS}
    return Run(student='tiny', teacher=teacher, data=dataset, **{**made, **fields})


def test_a_run_without_labels_is_judged_by_agreement(images, teacher, tmp_path: pathlib.Path):
    run = run_of(images, teacher)
    assert (run.weights.gamma, run.data.num_classes, run.data.class_names) == (0.0, 3, CLASSES)
    lines = '\n'.join(run.check())
    assert 'gamma is 0' in lines and 'by agreement' in lines
    result = run.train(tmp_path / 'run', mesh=one_device())
    assert result.accuracy is None and result.headline.startswith('agreement ')
    assert repr(result).startswith('Result(kd, agreement ')
    summary = result.summary
    assert summary['measure'] == 'agreement' and 0 <= summary['agreement'] <= 1
    assert summary['class_accuracy'] is None and summary['teacher']['accuracy'] is None
    records = metrics(result.workdir)
    assert not [one for one in records if one['kind'] == 'visits' or 'accuracy' in one]
    assert 'labels' not in np.load(result.workdir / 'knowledge/points.npz').files
    names, _ = result.model.predict(images[:4])
    assert set(names) <= set(CLASSES)
    text = page.write(result.workdir).read_text()
    assert 'greement' in text and 'None' not in text and 'of the teacher are unknown' in text


def test_labels_of_the_test_images_alone_give_an_accuracy(images, teacher, tmp_path: pathlib.Path):
    labels = np.argmax(colour(images[:16] / 255.0), axis=1)
    result = run_of(images, teacher, test=(images[:16], labels)).train(tmp_path / 'run', mesh=one_device())
    assert result.summary['teacher']['accuracy'] == 1.0
    assert result.accuracy == result.summary['agreement']  # the teacher is always right
    assert len(result.summary['class_accuracy']) == 3


@pytest.mark.parametrize('method', [name for name in methods.names() if methods.get(name).make().needs_labels])
def test_methods_that_need_labels_are_refused_by_name(images, teacher, method):
    with pytest.raises(
        ValueError, match=f'method {method} reads the labels .* use a method that needs none, such as kd'
    ):
        run_of(images, teacher, method=method).validate()


@pytest.mark.parametrize(
    ('policy', 'remedy'),
    [
        ('balanced', 'a policy that needs none (none, random, kcd)'),
        ('moderate', 'a policy that needs none (none, random, kcd)'),
        ('learnability', 'policy.score=entropy, which needs none'),
    ],
)
def test_policies_that_need_labels_are_refused_with_what_works(images, teacher, policy, remedy):
    with pytest.raises(ValueError) as error:
        run_of(images, teacher, policy=policy).validate()
    said = str(error.value)
    assert said == f'policy {policy} reads the labels of the training points, and arrays has none; use {remedy}'
    for name, keywords in {'learnability': {'score': 'entropy'}, 'kcd': {'stages': 2}}.items():
        run_of(images, teacher, policy=policies.get(name).make(**keywords)).validate()


def test_what_else_is_refused(images, teacher):
    for change, words in (
        ({'weights': {'gamma': 0.5}}, 'weights.gamma is 0.5, and arrays has no labels'),
        ({'weights': {'alpha': 0.0}}, 'nothing is left to train on'),
        ({'teacher': None}, 'give a teacher'),
        ({'test': (images[:3], [0, 1, 3])}, 'the test label 3, and there are 3 classes'),
    ):
        with pytest.raises(ValueError) as error:
            run_of(**{'images': images, 'teacher': teacher, **change}).validate()
        assert words in str(error.value) and '\n' not in str(error.value)


def test_test_images_without_labels_need_a_teacher(images, tiny_networks):
    dataset = data.from_arrays(images, np.arange(len(images)) % 3, test=(images[:3], None))
    with pytest.raises(ValueError, match='nothing can be measured; give labels of the test images'):
        Run(student='tiny', data=dataset, recipe=SETTINGS).validate()


def test_class_accuracy():
    logits = np.eye(4)[[0, 1, 1, 2, 0]]
    assert class_accuracy(logits, np.array([0, 1, 0, 2, 2]), 4) == [0.5, 1.0, 0.5, None]
