"""Runs with the settings that are off by default: what they change, what they leave alone, cut and resumed."""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax import data, methods, policies
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from kcd_jax.trees import leaf_paths
from tests.digits import final_state, metrics, one_device

RECIPE = {
    'epochs': 2,
    'batch': 16,
    'augment': {'crop': 1, 'flip': False},
    'eval_batch': 600,
    'survey': False,
    'checkpoint': {'seconds': 1e9},
}


def brightness(images):
    """A teacher: brighter images have higher classes."""
    return images.mean((1, 2, 3), keepdims=True).reshape(-1, 1) * np.arange(10, dtype=np.float32)


@pytest.fixture(scope='module')
def digits():
    return data.load('digits', num_points=64)


@pytest.fixture
def run(tiny_networks, digits):
    """run(method='none', ...): a short run on the digits; `changes` replace fields of its recipe."""

    def build(method='none', policy='none', keywords=None, dataset=None, **changes):
        teacher = None
        if method != 'none':
            teacher = Teacher.from_callable(brightness, classes=10, version='brightness')
        return Run(
            'tiny',
            dataset or digits,
            teacher=teacher,
            method=methods.get(method).make(),
            policy=policies.get(policy).make(**(keywords or {})),
            recipe=Recipe(**{**RECIPE, 'teaching': {'allow_weak': True}, **changes}),
        )

    return build


def trained(workdir):
    """{path: array} of the student's parameters and statistics at the end."""
    return {path: x for path, x in final_state(workdir).items() if path.startswith(('params/', 'model_state/'))}


def test_the_average_changes_nothing_in_the_training_and_is_what_is_saved(run, tmp_path):
    plain = run().train(tmp_path / 'plain', mesh=one_device())
    averaged = run(ema=0.9).train(tmp_path / 'averaged', mesh=one_device())
    for path, array in trained(plain.workdir).items():
        np.testing.assert_array_equal(array, trained(averaged.workdir)[path], err_msg=path)
    state = final_state(averaged.workdir)
    average = {path.removeprefix('ema/'): x for path, x in state.items() if path.startswith('ema/')}
    saved = leaf_paths(averaged.model.variables)
    assert saved.keys() == average.keys()
    for path, array in saved.items():
        np.testing.assert_array_equal(array, average[path], err_msg=path)
    one, other = plain.summary, averaged.summary
    assert one['raw_accuracy'] is None and other['raw_accuracy'] == one['accuracy']
    assert other['loss'] != one['loss']
    raw = [line['raw_accuracy'] for line in metrics(averaged.workdir) if line['kind'] == 'eval']
    assert raw == [line['accuracy'] for line in metrics(plain.workdir) if line['kind'] == 'eval']
    assert one['cost'] == other['cost']
