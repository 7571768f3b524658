"""Compared runs and trials: one teacher, one table, finished runs reused."""

from __future__ import annotations

import json
import pathlib
import shlex

import pytest
from ml_collections import ConfigDict

from kcd_jax.experiments import experiment
from kcd_jax.training import train

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_networks):
    config = experiment.load_config(
        f'{ROOT}/configs/digits_kd.py:quicktest,tiny_teacher-tiny,compare=(student,kd,kcd),trials=2'
    )
    config.checkpoint.seconds = 1e9
    return config


def test_an_experiment_runs_every_name_in_every_trial_and_ends_with_a_table(config, tmp_path, capsys, monkeypatch):
    results = experiment.run(config, tmp_path / 'all')
    assert [(result.name, result.summary['seed']) for result in results] == [
        (name, seed) for seed in (0, 1) for name in ('student', 'kd', 'kcd')
    ]
    teachers = {result.summary['teacher']['accuracy'] for result in results if result.summary['teacher']}
    assert len(teachers) == 1
    said = capsys.readouterr().out
    for word in ('Teacher', 'Student alone', 'KC-KD', '+-', 'vs KD', 'condensation 3/3 after epoch 5: kept 210 of 300'):
        assert word in said, word
    assert (tmp_path / 'all' / 'report.html').stat().st_size > 10_000

    # The same command again trains nothing, and says the same.
    monkeypatch.setattr(train.Loop, '__init__', lambda *args, **kwargs: pytest.fail('a finished run was run again'))
    again = experiment.run(config, tmp_path / 'all')
    assert [result.summary['accuracy'] for result in again] == [result.summary['accuracy'] for result in results]


def test_policies_share_initialisation_and_data_order(config, tmp_path):
    """Both train on all points first: KD and KC-KD of a seed are the same run until the first condensation."""
    results = experiment.run(config, tmp_path / 'all')
    first = {}
    for result in results:
        lines = (result.workdir / 'metrics.jsonl').read_text().splitlines()
        records = [json.loads(line) for line in lines]
        epoch = next(record for record in records if record['kind'] == 'train')
        first[result.name, result.summary['seed']] = (epoch['loss'], epoch['entropy'])
    for seed in (0, 1):
        assert first['kd', seed] == first['kcd', seed] != first['student', seed]
    assert first['kd', 0] != first['kd', 1]


def test_a_mistake_in_the_last_compared_run_is_found_before_the_first_trains(config, tmp_path):
    config.policy.stages = 4
    with pytest.raises(ValueError, match='4 stages do not divide 6 epochs'):
        experiment.run(config, tmp_path / 'all')
    assert not (tmp_path / 'all').exists()


@pytest.mark.parametrize('preset', ['paper', 'reference'])
def test_random_has_the_size_of_kcd_at_every_stage(config, preset):
    from kcd_jax import policies

    config.policy.preset = preset
    kcd, random = (experiment.variant(config, name).policy for name in ('kcd', 'random'))
    sizes = []
    for section in (kcd, random):
        keywords = {key: value for key, value in section.items() if key != 'name'}
        sizes.append(policies.get(section.name).make(**keywords).keep_counts(50_000, 240))
    assert sizes[0] == sizes[1]


def test_a_variant_is_a_run_with_parts_of_its_config_replaced(config, tmp_path, capsys):
    before = experiment.identity(config)
    config.variants = ConfigDict(
        {
            'kd+sp': {'run': 'sp', 'weights': {'alpha': 0.5}, 'method': {'group': 10}},
            'student-wide': {'run': 'student', 'student': {'name': 'tiny_teacher'}},
        }
    )
    both = experiment.variant(config, 'kd+sp')
    assert (both.method.name, both.method.group, both.policy.name) == ('sp', 10, 'none')
    assert both.weights.to_dict() == {'gamma': 1.0, 'alpha': 0.5, 'beta': 3000.0, 'temperature': 4.0}
    assert 'variants' not in both and 'reference' not in both
    assert experiment.identity(config) == before  # the folder does not depend on what is compared

    config.compare, config.reference = ('student', 'kd', 'kd+sp', 'student-wide'), 'student'
    config.trials, config.epochs = 1, 3
    results = experiment.run(config, tmp_path / 'all')
    assert [result.name for result in results] == list(config.compare)
    assert [result.summary['name'] for result in results] == list(config.compare)
    said = capsys.readouterr().out
    assert 'digits: tiny_teacher -> tiny, 3 epochs' in said and 'digits: tiny_teacher, 3 epochs' in said
    assert 'kd+sp  ' in said and 'vs Student alone' in ' '.join(said.split())


def test_a_variant_that_cannot_be_is_refused_in_a_line(config):
    config.variants = ConfigDict({'more': {'run': 'kd', 'weight': {'alpha': 2.0}}, 'wrong': {'run': 'kdd'}})
    with pytest.raises(ValueError, match="variant 'more': .*weight"):
        experiment.variant(config, 'more')
    with pytest.raises(ValueError, match=r"unknown run in compare 'kdd' \(did you mean 'kd'\?\)"):
        experiment.variant(config, 'wrong')
    with pytest.raises(ValueError, match=r"unknown run in compare 'moor' \(did you mean 'more'\?\)"):
        experiment.variant(config, 'moor')


def test_no_trials_are_refused(config, tmp_path):
    config.trials = 0
    with pytest.raises(ValueError, match='trials is 0'):
        experiment.run(config, tmp_path)


def test_published_results_carry_no_place_of_the_machine(config, tmp_path):
    config.compare, config.trials = ('student',), 1
    experiment.run(config, tmp_path / 'all')
    (path,) = experiment.publish(tmp_path / 'all', tmp_path / 'results')
    assert path.name == 'student_0.json'
    published = json.loads(path.read_text())
    assert published['accuracy'] == json.loads((tmp_path / 'all/student/trial_0/summary.json').read_text())['accuracy']
    assert str(tmp_path) not in path.read_text()


def test_a_command_is_what_somebody_else_would_type():
    from kcd_jax.runtime import environment

    argv = ['/somewhere/kcd_jax/main.py', '--config=configs/digits_kd.py:drops=(0.5,0.7)', '--workdir=/somewhere/else']
    expected = "python -m kcd_jax.main '--config=configs/digits_kd.py:drops=(0.5,0.7)'"
    assert environment.command(argv) == expected
    assert environment.command(shlex.split(expected)) == expected
