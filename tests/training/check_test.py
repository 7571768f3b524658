"""The doctor: what a run will cost, known before training, and every mistake as one line before the first compile."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from kcd_jax.data import Dataset, Split
from kcd_jax.experiments import experiment
from kcd_jax.training import check, train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def dataset(num_points=50_000, num_classes=100, size=8) -> Dataset:
    def split(number):
        return Split(np.zeros((number, size, size, 3), np.uint8), np.zeros(number, np.int32))

    names = tuple(str(i) for i in range(num_classes))
    normalization = ((0.0,) * 3, (1.0,) * 3)
    return Dataset('made', split(num_points), split(10), names, num_classes, (size, size, 3), normalization, 'made up')


def resolve(words, data=None, devices=1):
    config = experiment.load_config(f'{ROOT}/configs/cifar100_kd.py:resnet20-resnet8,{words}')
    data = data or dataset()
    return check.resolve(config, data, device_count=devices), config


@pytest.mark.parametrize(
    ('words', 'scheduled', 'processed'),
    [
        ('preset=paper', (9_811_200, 12_000_000, 81.76), (9_801_920, 11_996_160, 81.71)),
        ('preset=reference', (10_500_000, 12_000_000, 87.50), (10_496_000, 11_996_160, 87.49)),
        ('policy=none', (12_000_000, 12_000_000, 100.0), (11_996_160, 11_996_160, 100.0)),
        ('policy=random', (9_811_200, 12_000_000, 81.76), (9_801_920, 11_996_160, 81.71)),
    ],
)
def test_the_cost_of_240_epochs_of_cifar_100(words, scheduled, processed):
    """KCD Eq. 16 with the resolutions of docs/METHODS.md 5.4; nothing is trained."""
    run, config = resolve(words)
    cost = check.cost(run, config, 50_000)
    assert (cost['scheduled_samples'], cost['scheduled_full']) == scheduled[:2]
    assert (cost['processed_samples'], cost['processed_full']) == processed[:2]
    assert round(100 * cost['relative_scheduled'], 2) == scheduled[2]
    assert round(100 * cost['relative_processed'], 2) == processed[2]
    assert f'{scheduled[0]:,} of {scheduled[1]:,} points ({scheduled[2]:.2f} %)' in check.cost_line(cost)


def test_the_learning_rate_falls_at_the_papers_epochs():
    run, _ = resolve('policy=none')
    rate = run.phases[0].optimisers['main'].lr
    falls = [epoch + 1 for epoch in range(1, 240) if rate(epoch) != rate(epoch - 1)]
    assert falls == [151, 181, 211] and rate(0) == 0.05 and rate(239) == pytest.approx(5e-5)


def test_light_students_take_the_papers_lower_rate():
    config = experiment.load_config(f'{ROOT}/configs/cifar100_kd.py:vgg13-mobilenetv2')
    assert config.optim.lr == 0.01 and config.teacher.lr == 0.05


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        ('ratio=0', 'above 0 and at most 1'),
        ('ratio=1.5', 'above 0 and at most 1'),
        ('stages=7', 'use 6 or 8 stages'),
        ('stages=0', 'stages is 0|0 stages'),
        ('epochs=0', 'epochs is 0'),
        ('ratio=0.001', 'fewer than one batch of 64'),
        ('batch=100', 'use 96 or 104'),
        ('logits=log', "logits is 'log'"),
        ('dtype=float16', "dtype is 'float16'"),
        ('drops=(0.5,1.5)', 'drops holds 1.5'),
        ('optim.lr=0.0', 'learning rate is 0'),
        ('momentum=1.5', 'momentum is 1.5'),
        ('preset=kcd', "preset is 'kcd'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_compiled(words, says, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda *args: pytest.fail('something was compiled'))
    with pytest.raises(ValueError, match=says) as caught:
        resolve(words, devices=8)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        ('method=kdd', "unknown method 'kdd' \\(did you mean 'kd'\\?\\)"),
        ('policy=kdc', "unknown policy 'kdc' \\(did you mean 'kcd'\\?\\)"),
        ('resnet20-resnet9', "unknown network 'resnet9'"),
        ('slow', "unknown config word 'slow'"),
        ('resnet21', "unknown config word 'resnet21' \\(did you mean 'resnet"),
        ('ratoi=0.5', "unknown config key 'ratoi' \\(did you mean 'ratio'\\?\\)"),
        ('optim.lrr=1', "unknown config key 'optim.lrr'"),
        ('epochs=many', "'epochs' takes a int"),
    ],
)
def test_an_unknown_word_names_the_known_ones(words, says):
    with pytest.raises(ValueError, match=says) as caught:
        experiment.load_config(f'{ROOT}/configs/cifar100_kd.py:{words}')
    assert '\n' not in str(caught.value)


def test_every_shipped_config_loads_with_and_without_quicktest():
    files = [path for path in (ROOT / 'configs').glob('*.py') if 'def get_config' in path.read_text()]
    assert {path.name for path in files} >= {'cifar100_kd.py', 'cifar10_kd.py', 'digits_kd.py', 'teacher.py'}
    for path in files:
        for words in ('', ':quicktest'):
            config = experiment.load_config(f'{path}{words}')
            assert config.epochs >= 1 and config.method.name and config.policy.name


def test_naming_a_method_or_a_policy_means_just_that_run():
    digits = f'{ROOT}/configs/digits_kd.py'
    assert tuple(experiment.load_config(digits).compare) == ('student', 'kd', 'random', 'kcd')
    single = experiment.load_config(f'{digits}:policy=none')
    assert tuple(single.compare) == () and single.trials == 1
    chosen = experiment.load_config(f'{digits}:method=kd,compare=(kd,kcd),trials=2')
    assert tuple(chosen.compare) == ('kd', 'kcd') and chosen.trials == 2


def test_a_pair_brings_the_methods_settings_for_it():
    config = experiment.load_config(f'{ROOT}/configs/cifar100_kd.py:wrn_40_2-wrn_16_2,method=reviewkd')
    assert config.weights.beta == 5.0
    kd = experiment.load_config(f'{ROOT}/configs/cifar100_kd.py:wrn_40_2-wrn_16_2')
    dkd = experiment.variant(kd, 'dkd')
    assert dkd.method.others == 6.0 and dkd.policy.name == 'none' and dkd.weights.alpha == 0.0


def test_a_teacher_is_one_word():
    config = experiment.load_config(f'{ROOT}/configs/teacher.py:resnet20,dataset=cifar10')
    assert (config.student.name, config.data.name, config.method.name, config.epochs) == (
        'resnet20',
        'cifar10',
        'none',
        240,
    )


def test_an_unknown_run_in_compare_names_the_known_ones():
    config = experiment.load_config(f'{ROOT}/configs/digits_kd.py')
    with pytest.raises(ValueError, match="unknown run in compare 'kdc' .did you mean 'kd'"):
        experiment.variant(config, 'kdc')


def test_the_number_of_trials_does_not_move_a_run():
    one, five = (experiment.load_config(f'{ROOT}/configs/digits_kd.py:trials={n}') for n in (1, 5))
    other = experiment.load_config(f'{ROOT}/configs/digits_kd.py:trials=1,ratio=0.5')
    assert experiment.identity(one) == experiment.identity(five) != experiment.identity(other)


def test_what_check_prints(tiny_networks, tmp_path):
    from kcd_jax.runtime import sharding

    config = experiment.load_config(f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny')
    lines = '\n'.join(train.check_run(config, sharding.make_mesh()))
    for word in (
        '300 training points',
        '10 classes',
        'tiny_teacher, trained first: 6 epochs',
        'not rescaled: 0.05 from epoch 1',
        '210 from epoch 6',
        'scheduled 1,516 of 1,800',
        '4 device(s)',
    ):
        assert word in lines, word


def test_a_missing_teacher_is_found_by_the_check(tiny_networks, tmp_path):
    from kcd_jax.runtime import sharding

    config = experiment.load_config(f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny')
    config.teacher.checkpoint = str(tmp_path / 'nothing.safetensors')
    with pytest.raises(ValueError, match='there is no teacher at'):
        train.check_run(config, sharding.make_mesh())
