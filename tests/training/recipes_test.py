"""Runs with the settings that are off by default: what they change, what they leave alone, cut and resumed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kcd_jax import data, methods, policies
from kcd_jax.contracts import Network, Outputs
from kcd_jax.runtime.sharding import make_mesh
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from kcd_jax.trees import leaf_paths
from tests.digits import assert_same_run, final_state, metrics, one_device, sigterm

pytestmark = pytest.mark.fast_compile

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


MIXED = {'augment': {'crop': 1, 'flip': False, 'mixup': 0.4, 'cutmix': 1.0}, 'ema': 0.9, 'label_smoothing': 0.1}
EVERYTHING = {
    **MIXED,
    'augment': {**MIXED['augment'], 'trivial': True, 'erase': 0.5},
    'optim': {'name': 'adamw', 'clip': 1.0, 'decay': 'kernels', 'lr': 0.01},
    'dtype': 'bfloat16',
    'accumulate': 2,
}


def test_the_pass_and_the_step_mix_the_same_images_resident_and_streamed(run, digits, tmp_path):
    """A mixture that one of them built differently would change the losses of the first epoch."""
    kcd = {'method': 'kd', 'policy': 'kcd', 'keywords': {'stages': 2, 'ratio': 0.5}, **MIXED}
    before = run(**kcd)
    teacher = before.student_network
    teacher = Teacher(
        teacher, teacher.init(jax.random.PRNGKey(5), digits.image_shape), {'network': 'tiny', 'num_classes': 10}
    )
    results = {}
    for name, changes in {
        'before': {},
        'inside': {'recipe': before.recipe.replace(teaching={'allow_weak': True, 'in_step': True})},
        'streamed': {'data': data.by_index(digits)},
    }.items():
        one = before.replace(teacher=teacher, **changes)
        results[name] = one.train(tmp_path / name, mesh=one_device())
    first = {
        name: next(line for line in metrics(result.workdir) if line['kind'] == 'train')
        for name, result in results.items()
    }
    for term in ('loss', 'ce', 'kd', 'teacher_entropy'):
        assert first['inside'][term] == pytest.approx(first['before'][term], rel=1e-4), term  # other programs
        assert first['streamed'][term] == pytest.approx(first['before'][term], rel=1e-5), term
    rows = results['before'].summary['computed']['teacher_rows']
    assert rows['served'] == 0 and rows['mixed'] == rows['computed'] > 0  # nothing of it is cached
    costs = [result.summary['cost']['macs'] for result in results.values()]
    assert costs[0] == costs[1] == costs[2]


def test_all_of_it_goes_on_bit_for_bit_where_it_was_cut(run, digits, tmp_path):
    everything = run('kd', 'kcd', {'stages': 2, 'ratio': 0.5}, **EVERYTHING)
    whole = everything.train(tmp_path / 'whole', mesh=one_device())
    with sigterm(1, 1):  # in the middle of the second epoch
        everything.train(tmp_path / 'cut', mesh=one_device())
    everything.train(tmp_path / 'cut', mesh=one_device())
    assert_same_run(whole.workdir, tmp_path / 'cut')


class Linear(nn.Module):
    """A student without BatchNorm, so that rows do not depend on each other."""

    @nn.compact
    def __call__(self, image):
        embed = jnp.tanh(nn.Dense(12, name='hidden')(image.reshape(image.shape[0], -1)))
        return Outputs(nn.Dense(10, name='head')(embed), embed=embed)


def linear():
    module, constants = Linear(), {'mean': jnp.zeros(3), 'std': jnp.ones(3)}

    def init(key, shape):
        return {'params': module.init(key, jnp.zeros((1, *shape)))['params'], 'constants': constants}

    def apply(variables, image, train):
        return module.apply({'params': variables['params']}, image), {'constants': variables['constants']}

    return Network('linear', init, apply)


@pytest.mark.parametrize('in_step', [False, True])
def test_micro_batches_give_the_update_of_the_whole_batch(run, digits, tmp_path, in_step):
    student = linear()
    teacher = Teacher(
        student, student.init(jax.random.PRNGKey(5), digits.image_shape), {'network': 'linear', 'num_classes': 10}
    )
    results = []
    for count in (1, 4):
        one = run('kd', accumulate=count, teaching={'allow_weak': True, 'in_step': in_step})
        one = one.replace(student=student, teacher=teacher)
        results.append(one.train(tmp_path / str(count), mesh=make_mesh(jax.devices()[:2])))
    one, other = (final_state(result.workdir) for result in results)
    assert one.keys() == other.keys() and int(other['step']) == 8
    for path, array in one.items():
        np.testing.assert_allclose(array, other[path], rtol=1e-4, atol=1e-5, err_msg=path)  # sums in another order
    assert np.ptp(one['table/value'][:64]) > 0
    costs = [result.summary['cost'] for result in results]
    assert costs[0]['macs'] == costs[1]['macs'] and costs[0]['samples'] == costs[1]['samples']


@pytest.mark.parametrize(
    ('method', 'policy', 'changes', 'says'),
    [
        ('kd', 'none', {'accumulate': 3}, 'accumulate is 3, which does not divide batch 16; use e.g. 2'),
        ('kd', 'unix', {'accumulate': 2}, 'policy unix chooses inside the whole batch'),
        ('kdgan', 'none', {'accumulate': 2}, 'method kdgan makes 2 updates per step, and accumulate=2 works with one'),
        ('kd', 'unix', {'augment': {'mixup': 0.2}}, 'policy unix, which mixes inside the batch'),
        ('sskd', 'none', {'augment': {'cutmix': 1.0}}, 'method sskd shows 4 views of one point, and augment.cutmix'),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(run, method, policy, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        run(method, policy, **changes).validate()
    assert '\n' not in str(error.value)


def test_mixed_images_are_not_among_stored_outputs_and_smoothing_needs_a_cross_entropy(run, digits):
    stored = Teacher.from_outputs(np.zeros((64, 10), np.float32), np.zeros((len(digits.test), 10), np.float32))
    with pytest.raises(ValueError, match='mix images without stored outputs'):
        run('kd', augment={'mixup': 0.2}).replace(teacher=stored).validate()
    with pytest.raises(ValueError, match='no cross entropy to smooth'):
        run('kd', label_smoothing=0.1).replace(weights={'gamma': 0.0}).validate()


def test_check_names_what_is_on(run):
    lines = '\n'.join(run(**MIXED).check(1))
    assert 'recipe     mixup of every point, Beta(0.4), CutMix of every point, Beta(1), label smoothing 0.1' in lines
    assert not any(line.startswith('recipe ') for line in run().check(1))
