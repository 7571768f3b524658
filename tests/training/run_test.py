"""A run as an object: what it is built from, what it refuses, and how it is described and built again."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kcd_jax
from kcd_jax import data, methods, networks, policies
from kcd_jax.contracts import LossOut, Method, Phase, Update, Weights, run_key
from kcd_jax.runtime import files
from kcd_jax.teachers import torch_weights
from kcd_jax.teachers.model import Model
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run
from tests.digits import RECIPE, assert_same_run, object_run, one_device, run_for

pytestmark = pytest.mark.fast_compile


@pytest.fixture(autouse=True)
def tiny(tiny_networks):
    """Every test here knows the tiny networks."""


@pytest.fixture(scope='module')
def digits() -> data.Dataset:
    return data.load('digits', num_points=300)


def made_up(points: int, classes: int, size: int = 8) -> data.Dataset:
    """Black images of as many classes as asked for."""

    def split(number):
        return data.Split(np.zeros((number, size, size, 3), np.uint8), (np.arange(number) % classes).astype(np.int32))

    names = tuple(f'class {i}' for i in range(classes))
    pixels = data.Normalization((0.5,) * 3, (0.25,) * 3)
    return data.Dataset('made up', split(points), split(10), names, classes, (size, size, 3), pixels, 'made up')


def teacher_of(classes: int = 10, size: int = 16) -> Teacher:
    """An untrained teacher that was built in Python."""
    network = networks.get('tiny_teacher')(classes)
    shape = (size, size, 3)
    card = {'network': 'tiny_teacher', 'num_classes': classes, 'image_shape': list(shape)}
    return Teacher(network, network.init(jax.random.PRNGKey(3), shape), card)


# -------------------------------------------------------------------------------------------------------- construction


def test_defaults_follow_from_what_is_given(digits):
    alone, taught = Run('tiny', digits), Run('tiny', digits, teacher=teacher_of())
    assert (alone.method.name, alone.policy.name, alone.name) == ('none', 'none', 'student')
    assert (taught.method.name, taught.policy.name, taught.name) == ('kd', 'none', 'kd')
    assert alone.weights == Weights() and taught.weights == Weights(gamma=0.1, alpha=0.9)
    assert alone.recipe == Recipe() and alone.seed == 0
    assert alone.teacher_network is None and taught.teacher_network is taught.teacher.network


def test_a_name_tells_policies_apart_and_methods_where_there_is_none(digits):
    teacher = teacher_of()

    def name(method, policy):
        return Run(
            'tiny', digits, teacher, methods.get(method).make(), policies.get(policy).make(), name=''
        ).name  # fmt: skip

    assert [name('kd', 'kcd'), name('crd', 'none'), name('none', 'none')] == ['kcd', 'crd', 'student']
    assert Run('tiny', digits, name='mine').name == 'mine'


def test_mappings_stand_for_the_nested_parts(digits):
    run = Run('tiny', digits, teacher=teacher_of(), recipe={'optim': {'lr': 0.1}, 'epochs': 3}, weights={'alpha': 0.5})
    assert run.recipe.optim.lr == 0.1 and run.recipe.epochs == 3 and run.recipe.batch == 64
    assert run.weights == Weights(gamma=0.1, alpha=0.5)


def test_a_run_is_immutable(digits):
    run = Run('tiny', digits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.recipe.epochs = 1


def test_replacing_a_method_brings_its_weights_and_name_unless_they_were_given(digits):
    run = Run('tiny', digits, teacher=teacher_of())
    other = run.replace(method=methods.get('crd').make())
    assert other.weights == methods.get('crd').WEIGHTS and other.name == 'crd'
    assert run.name == 'kd' and run.weights.beta == 0
    assert run.replace(policy=policies.get('kcd').make()).name == 'kcd'
    chosen = run.replace(weights={'alpha': 0.25}, name='mine')
    kept = chosen.replace(method=methods.get('crd').make())
    assert kept.weights == chosen.weights and kept.name == 'mine'


def test_another_seed_is_the_same_run_otherwise(digits):
    run = object_run(policy=policies.get('none').make())
    other = run.with_seed(5)
    assert (run.seed, other.seed) == (0, 5) and other.teacher is run.teacher
    one, two = run.describe(), other.describe()
    assert one.pop('seed') != two.pop('seed') and one == two


def test_schedules_are_known_before_the_first_step():
    run = object_run()
    assert run.sizes == (300, 266, 266, 237, 237, 210) and run.steps == (15, 13, 13, 11, 11, 10)
    assert [phase.name for phase, _ in run.epochs] == ['main'] * 6 and run.rows == 20
    assert object_run(policy=policies.get('unix').make(k=12)).rows == 12


# ------------------------------------------------------------------------------------------------------ what it refuses

WRONG = [
    (lambda run: run.replace(student=5), 'student is 5; use'),
    (lambda run: run.replace(data='digits'), "data is 'digits'; use kcd_jax.data.load"),
    (lambda run: run.replace(teacher='teacher.safetensors'), 'use Teacher.restore'),
    (lambda run: run.replace(teacher=run), 'has a teacher itself'),
    (lambda run: run.replace(method='kd'), "method is 'kd'; use kcd_jax.methods.get"),
    (lambda run: run.replace(policy='kcd'), "policy is 'kcd'; use kcd_jax.policies.get"),
    (lambda run: run.replace(weights=0.5), 'weights is 0.5; use Weights'),
    (lambda run: run.replace(weights={'alfa': 0.5}), "unknown weight 'alfa'; known: gamma, alpha"),
    (lambda run: run.replace(weights={'alpha': -1.0}), 'weights.alpha is -1.0; use a number from 0 to 1e'),
    (lambda run: run.replace(recipe=60), 'recipe is 60; use Recipe'),
    (lambda run: run.replace(recipe={'epoch': 60}), 'unknown setting recipe.epoch; known: epochs'),
    (lambda run: run.replace(recipe={'optim': {'lrr': 1.0}}), 'unknown setting optim.lrr'),
    *((lambda run, seed=seed: run.with_seed(seed), 'use an integer from 0 to') for seed in (-1, 2**63, 1.0, True, '0')),
]  # fmt: skip


@pytest.mark.parametrize(('change', 'says'), WRONG)
def test_bad_arguments_of_a_run_are_refused_in_one_line(change, says):
    run = object_run()
    with pytest.raises(ValueError, match=says) as caught:
        change(run)
    assert '\n' not in str(caught.value)


def unix(k):
    return policies.get('unix').make(k=k)


def changed(name, **keywords):
    return lambda run: run.replace(policy=policies.get(name).make(**keywords))


CANNOT_WORK = [
    (lambda run: run.replace(student='tinny'), "unknown network 'tinny' .did you mean 'tiny"),
    (lambda run: run.replace(student=networks.get('tiny')(7)), 'student tiny has 7 classes and the data 10'),
    (lambda run: run.replace(teacher=None), 'method kd needs a teacher; give one'),
    (lambda run: run.replace(teacher=teacher_of(classes=7)), 'class'),
    (lambda run: run.replace(teacher=teacher_of(size=32)), '16'),
    (lambda run: run.replace(recipe=run.recipe.replace(batch=22)), 'use 20 or 24'),
    (lambda run: run.replace(recipe=run.recipe.replace(augment={'crop': 16})), 'augment.crop is 16 for images'),
    (lambda run: run.replace(policy=policies.get('kcd').make(ratio=0.05, stages=3)), 'fewer than one batch of 20'),
    (changed('static', ratio=1e-9), 'ratio 1e-09 keeps none of 300 points'),
    (changed('seta', groups=50, window=0.02), '1 of 300 .* raise policy.ratio or policy.window, or lower batch'),
    (changed('seta', window=0.2), 'policy seta can leave an epoch 18 of 300 points, fewer than one batch of 20'),
    (changed('infobatch', fraction=0.95), '15 of 300 points, .*; lower policy.fraction or batch'),
    (lambda run: run.replace(policy=policies.get('kcd').make(stages=4)), 'use 3 or 6 stages'),
    (lambda run: run.replace(policy=unix(k=15)), 'policy unix with rows .* 15'),
    (lambda run: run.replace(policy=unix(k=12), method=methods.get('sskd').make()), 'chooses inside the batch'),
    (lambda run: run.replace(method=methods.get('one').make()), 'branches'),
    (lambda run: run.replace(method=methods.get('fsp').make()), 'fsp'),
    (lambda run: run.replace(recipe=run.recipe.replace(batch=512)), 'fewer than one batch of 512; lower batch'),
]  # fmt: skip


@pytest.mark.parametrize(('change', 'says'), CANNOT_WORK)
def test_bad_runs_are_refused_in_one_line_before_compilation(change, says, monkeypatch):
    run = object_run()
    monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda *args: pytest.fail('something was compiled'))
    with pytest.raises(ValueError, match=says) as caught:
        change(run).check(4)
    assert '\n' not in str(caught.value)


def test_the_run_that_trains_the_teacher_is_checked_too():
    run = object_run()
    odd = run.replace(teacher=run.teacher.replace(recipe=run.teacher.recipe.replace(batch=30)))
    with pytest.raises(ValueError, match='batch 30 is not a multiple of 4 devices'):
        odd.check(4)


def test_what_check_prints():
    lines = '\n'.join(object_run().check())
    for words in (
        '300 training points, 10 classes',
        'tiny, 622 parameters',
        'tiny_teacher, trained first: 6 epochs on 300 points',
        'kd: 0.1 * CE + 0.9 * KD(T=4)',
        'kcd: 300 from epoch 1, 266 from epoch 2',
        '210 from epoch 6',
        'scheduled 1,516 of 1,800',
        'batch      20 over 4 device(s)',
        'learning rate (never rescaled): 0.05 from epoch 1',
    ):
        assert words in lines, words
    assert 'warning' not in lines


def test_check_warns_of_a_policy_that_never_selects():
    run = object_run(policy=policies.get('kcd').make(stages=1), recipe={**RECIPE, 'epochs': 1})
    assert any('kcd never selects within 1 epoch' in line for line in run.check())


# ------------------------------------------------------------------------------------------------ described and rebuilt


def as_read(run: Run) -> dict:
    """The description after a way through a file."""
    return json.loads(files.dumps(run.describe()))


def test_a_description_is_json_and_complete():
    run = run_for('method=dkd,policy=kcd,optim.nesterov=True,drops=(0.5,0.75)')
    described = run.describe()
    assert json.loads(json.dumps(described)) == described == as_read(run)
    known = {'student', 'teacher', 'data', 'method', 'policy', 'weights', 'recipe', 'seed'}
    assert set(described) == known | {'student_code', 'method_code', 'policy_code'}
    assert described['method'] == {'name': 'dkd', **run.method.keywords} and len(described['method']) == 5
    assert described['recipe']['optim']['drops'] == [0.5, 0.75] and described['recipe']['optim']['nesterov'] is True
    assert described['teacher']['run']['student'] == 'tiny_teacher'


def test_the_name_is_no_part_of_a_description():
    run = object_run()
    assert run.replace(name='another').describe() == run.describe()


@pytest.mark.parametrize(
    'change',
    [
        {'seed': 1},
        {'student': 'tiny_teacher'},
        {'policy': policies.get('kcd').make(stages=3, ratio=0.5)},
        {'weights': {'alpha': 0.5}},
        {'recipe': {**RECIPE, 'batch': 24}},
        {'method': methods.get('at').make()},
    ],
)
def test_whatever_changes_a_number_changes_the_description(change):
    assert object_run(**change).describe() != object_run().describe()


def test_a_description_builds_the_same_run_again():
    run = run_for('area=(0.5,1.0),seed=7')
    again = Run.from_description(as_read(run))
    assert again.describe() == run.describe()
    assert again.recipe == run.recipe and again.weights == run.weights and again.seed == 7
    assert again.sizes == run.sizes and again.student_network is run.student_network
    assert again.check(4) == run.check(4)


@pytest.mark.slow
def test_a_run_from_its_description_gives_the_same_numbers(tmp_path):
    run = object_run(recipe={**RECIPE, 'epochs': 3, 'eval_every': 3}, method=methods.get('fitnet').make())
    mesh = one_device()
    first = run.train(tmp_path / 'first', teacher_dir=tmp_path / 'teacher', mesh=mesh)
    described = json.loads((first.workdir / 'summary.json').read_text())['run']
    again = Run.from_description(described)
    second = again.train(tmp_path / 'second', teacher_dir=tmp_path / 'teacher', mesh=mesh)
    assert_same_run(first.workdir, second.workdir)
    assert second.summary['run'] == described
    # From the teacher's file, which has to be the same one.
    taught = run.replace(teacher=Teacher.restore(tmp_path / 'teacher'))
    restored = Run.from_description(as_read(taught))
    assert restored.teacher.identity == taught.teacher.identity and restored.describe() == taught.describe()
    third = restored.train(tmp_path / 'third', mesh=mesh)
    assert_same_run(first.workdir, third.workdir)


def test_a_teacher_that_changed_since_is_refused(digits, tmp_path):
    teacher_of().save(tmp_path / 'teacher.safetensors')
    run = Run('tiny', digits, Teacher.restore(tmp_path / 'teacher.safetensors'), recipe=Recipe(**RECIPE))
    described = as_read(run)
    assert Run.from_description(described).describe() == described
    teacher = teacher_of()
    doubled = jax.tree.map(lambda x: 2 * x, teacher.variables)
    Teacher(teacher.network, doubled, teacher.card).save(tmp_path / 'teacher.safetensors')
    with pytest.raises(ValueError, match='teacher .* changed since the run was described') as caught:
        Run.from_description(described)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('normalization', ['imagenet', ((0.5, 0.4, 0.3), (0.2, 0.2, 0.25))])
def test_a_pytorch_teacher_is_restored_from_a_description(digits, tmp_path, normalization):
    """A file that says neither its image size nor its normalization."""
    torch_weights.write(tmp_path / 'teacher.pth', teacher_of().variables)
    given = {'network': 'tiny_teacher', 'num_classes': 10, 'image_shape': (16, 16, 3), 'normalization': normalization}
    found = Teacher.restore(tmp_path / 'teacher.pth', **given)
    described = as_read(Run('tiny', digits, found, recipe=Recipe(**RECIPE)))
    again = Run.from_description(described)
    assert again.teacher.identity == found.identity and again.describe() == described


def test_data_that_changed_since_is_refused():
    described = as_read(object_run())
    described['data']['digests']['train labels'] = 'another'
    with pytest.raises(ValueError, match='the data digits changed since the run was described: train labels differ'):
        Run.from_description(described)


def test_parts_without_a_name_are_named_when_a_run_is_rebuilt(digits):
    run = Run('tiny', digits, teacher_of())
    with pytest.raises(ValueError, match='teacher of this run was built in Python'):
        Run.from_description(as_read(run))
    assert Run.from_description(as_read(run), teacher=run.teacher).describe() == run.describe()
    with pytest.raises(ValueError, match='the method of this run was built in Python'):
        Run.from_description(as_read(run.replace(method=Method(loss=own_loss))))
    with pytest.raises(ValueError, match='the data of this run was built in Python'):
        Run.from_description(as_read(run.replace(data=made_up(40, 10))))


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize('seed', [2**32, 2**32 + 7, 2**63 - 1])
def test_all_bits_of_a_seed_count(seed):
    keys = [tuple(np.asarray(run_key(s)).tolist()) for s in (seed, seed & 0xFFFFFFFF, seed >> 32, 0)]
    assert keys[0] not in keys[1:]


def test_small_seeds_keep_their_key():
    for seed in (0, 1, 2**32 - 1):
        np.testing.assert_array_equal(run_key(seed), jax.random.PRNGKey(seed))


def own_loss(params, method_state, student, teacher, batch, clock, key):
    """Half the squared distance of the logits, per point."""
    del params, teacher, clock, key
    target = jax.nn.one_hot(batch.label, student.logits.shape[-1], dtype=jnp.float32)
    return LossOut(0.5 * jnp.sum(jnp.square(student.logits - target), axis=-1), method_state)


def test_a_user_defined_method_needs_no_name(digits, tmp_path):
    method = Method(loss=own_loss, needs=())
    recipe = Recipe(**{**RECIPE, 'epochs': 2, 'eval_every': 2})
    run = Run('tiny', digits, method=method, policy=policies.get('random').make(stages=2), recipe=recipe)
    assert run.weights == Weights(gamma=1.0, beta=1.0) and 'custom: 1 * CE' in '\n'.join(run.check(1))
    result = run.train(tmp_path / 'run', mesh=one_device())
    assert result.summary['method'] == 'custom' and result.summary['run']['method'] == {'name': ''}
    losses = [json.loads(line).get('extra') for line in (result.workdir / 'metrics.jsonl').read_text().splitlines()]
    assert max(loss for loss in losses if loss is not None) > 0
    assert isinstance(result.model, Model) and result.model.network.name == 'tiny'


def test_the_package_offers_what_a_run_is_built_from():
    assert kcd_jax.Run is Run and kcd_jax.Recipe is Recipe and kcd_jax.Teacher is Teacher


def test_phases_that_records_and_programs_could_mix_up_are_refused(digits):
    """Two of one name, and one that records before one that does not."""

    def phases(*given):
        def made(epochs, main, student):
            update = Update(loss=own_loss, moves=('student/*',), label='main')
            return tuple(
                Phase(name, 1, ('student/*',), {f'main{place}': main},
                      (dataclasses.replace(update, label=f'main{place}'),), record)
                for place, (name, record) in enumerate(given)
            )  # fmt: skip

        return Method(loss=own_loss, phases=made, needs=())

    for given in ((('a', True), ('a', True)), (('a', True), ('b', False))):
        with pytest.raises(ValueError, match='give each its own name, and let those that record come last'):
            Run('tiny', digits, method=phases(*given), weights={'alpha': 0.0}, recipe=Recipe(**RECIPE)).validate()
