"""The loop, by the shipped digits config shrunk: cost, compilations, resumption, topologies, divergence."""

from __future__ import annotations

import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from kcd_jax.experiments import experiment
from kcd_jax.runtime import sharding
from kcd_jax.training import step, train
from tests import digits
from tests.digits import assert_same_run, final_state, metrics

config_for = functools.partial(digits.config_for, eval_every=1)


@pytest.fixture(scope='session')
def teacher_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('teacher')


@pytest.fixture
def run(tiny_networks, teacher_dir, tmp_path):
    """Trains with one teacher for the whole session."""

    def run(config, name='run', **options):
        return train.train(config, tmp_path / name, **{'teacher_dir': teacher_dir, **options})

    return run


def test_a_run_leaves_what_it_promises(run):
    result = run(config_for())
    folder = result.workdir
    for name in ('config.json', 'metrics.jsonl', 'summary.json', 'checkpoints', 'student.safetensors'):
        assert (folder / name).exists(), name
    assert len(list((folder / 'knowledge').glob('stage_*.npz'))) == 3
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['accuracy'] == result.summary['accuracy'] and summary['policy'] == 'kcd'
    kinds = [record['kind'] for record in metrics(folder)]
    assert kinds.count('train') == 6 and kinds.count('condensation') == 3 and kinds[-1] == 'eval'


def test_the_cost_of_a_run_is_what_its_epochs_trained_on(run):
    result = run(config_for())
    cost = result.summary['cost']
    records = [record for record in metrics(result.workdir) if record['kind'] == 'train']
    assert cost['processed_samples'] == sum(record['samples'] for record in records)
    assert cost['scheduled_samples'] == sum(record['kept'] for record in records)
    assert cost['steps'] == records[-1]['step']
    assert cost['samples']['teacher_forward'] == cost['processed_samples']
    assert cost['relative_macs'] == pytest.approx(cost['relative_processed'], abs=1e-12)


def test_a_stage_file_holds_the_plan_that_was_trained_on(run):
    result = run(config_for())
    with np.load(result.workdir / 'knowledge' / 'stage_3.npz') as stage:
        kept = stage['order'][: stage['num_keep']]
        assert len(set(kept)) == int(stage['num_keep']) == result.summary['condensations'][-1]['kept'] == 210
        assert kept.max() < stage['num_points'] == 300
        assert (stage['epsilon'][stage['order'][stage['num_keep'] :]] == 0).all()


def test_the_step_is_compiled_once_although_the_set_shrinks(run, monkeypatch):
    traces = []
    original = step.train_step

    def counted(*args, **kwargs):
        traces.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(step, 'train_step', counted)
    config = config_for()
    config.policy.stages = 6
    config.epochs = 12
    result = run(config)
    assert len(result.summary['condensations']) == 6
    students = len(traces) - (1 if (result.workdir.parent / 'teacher').exists() else 0)
    assert students <= 2  # the student's own, and the teacher's if this test trained it


def test_a_finished_run_is_read_back_and_not_run_again(run, monkeypatch):
    first = run(config_for())
    monkeypatch.setattr(train.Loop, '__init__', lambda *args, **kwargs: pytest.fail('the run was started again'))
    assert run(config_for()).summary == json.loads((first.workdir / 'summary.json').read_text())


def test_a_work_directory_of_another_configuration_is_refused_with_the_keys(run):
    run(config_for())
    with pytest.raises(ValueError, match=r'optim\.lr') as caught:
        run(config_for('optim.lr=0.01'))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('words', ['', 'preset=reference', 'policy=random,drawn=epoch,stages=3'])
def test_a_run_cut_anywhere_goes_on_to_the_same_bits(run, monkeypatch, words):
    """SIGTERM in the middle of two epochs; the resumed run ends as the one that was never cut."""
    config = config_for(words)
    whole = run(config, 'whole')

    original = train.Loop.train_epoch

    def interrupt_at(epoch_to_cut, after_chunks):
        def train_epoch(self, current, epoch, between):
            seen = []

            def counting(state):
                seen.append(1)
                if epoch == epoch_to_cut and len(seen) == after_chunks:
                    os.kill(os.getpid(), signal.SIGTERM)
                between(state)

            return original(self, current, epoch, counting)

        monkeypatch.setattr(train.Loop, 'train_epoch', train_epoch)

    for epoch, chunk in ((1, 3), (4, 1)):
        interrupt_at(epoch, chunk)
        with pytest.raises(train.Preempted, match='SIGTERM'):
            run(config, 'cut')
    monkeypatch.setattr(train.Loop, 'train_epoch', original)
    cut = run(config, 'cut')
    assert_same_run(whole.workdir, cut.workdir)
    assert cut.summary['accuracy'] == whole.summary['accuracy']
    assert cut.summary['cost'] == whole.summary['cost']


def test_one_and_four_devices_keep_the_promised_identities(run):
    """The same data order to the bit; the first epoch's table within 1e-4; 99 % of the kept set the same."""
    results = {}
    for count in (1, 4):
        mesh = sharding.make_mesh(jax.devices()[:count])
        results[count] = run(config_for(), f'devices_{count}', mesh=mesh)
    stages = [np.load(results[count].workdir / 'knowledge' / 'stage_1.npz') for count in (1, 4)]
    np.testing.assert_array_equal(stages[0]['count'], stages[1]['count'])  # the same points were visited
    np.testing.assert_allclose(stages[0]['value'], stages[1]['value'], atol=1e-4)
    kept = [set(stage['order'][: stage['num_keep']]) for stage in stages]
    assert len(kept[0] & kept[1]) >= 0.99 * len(kept[0])


def test_a_checkpoint_of_four_devices_goes_on_on_one(run, monkeypatch):
    config = config_for()
    original = train.Loop.evaluate

    def stop_after_epoch_3(self, current, epoch):
        result = original(self, current, epoch)
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(train.Loop, 'evaluate', stop_after_epoch_3)
    with pytest.raises(train.Preempted):
        run(config, mesh=sharding.make_mesh(jax.devices()[:4]))
    monkeypatch.setattr(train.Loop, 'evaluate', original)
    result = run(config, mesh=sharding.make_mesh(jax.devices()[:1]))
    epochs = [record['epoch'] for record in metrics(result.workdir) if record['kind'] == 'train']
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(run):
    config = config_for('optim.lr=1e30')
    with pytest.raises(train.Diverged, match=r'step \d+ is not finite'):
        run(config)


def test_every_run_is_labelled_by_what_it_compares(tiny_networks):
    config = config_for()
    names = {name: train.run_name(experiment.variant(config, name)) for name in ('student', 'kd', 'random', 'kcd')}
    assert names == {name: name for name in names}
    random = experiment.variant(config, 'random')
    assert random.policy.ratio == config.policy.ratio and random.policy.stages == config.policy.stages


def test_the_teacher_is_the_same_to_the_bit_after_training(run, monkeypatch):
    kept = []
    original = train.Loop.evaluate_teacher

    def remember(self, network):
        kept.append((jax.device_get(self.teacher_variables), self))
        return original(self, network)

    monkeypatch.setattr(train.Loop, 'evaluate_teacher', remember)
    run(config_for())
    before, loop = kept[0]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(loop.teacher_variables)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_chunk_of_steps_is_the_steps_one_by_one(run):
    """The accelerators' path: a scan over 4 steps, and what is left over as single steps."""
    single, chunked = (
        run(config_for('policy=none'), 'single'),
        run(config_for('policy=none,chunk=4'), 'chunked', teacher_dir=None),
    )
    for one, other in zip(metrics(single.workdir), metrics(chunked.workdir), strict=True):
        assert one['step'] == other['step'] and one['kind'] == other['kind']
    first = [metrics(result.workdir)[0] for result in (single, chunked)]
    assert first[0]['loss'] == pytest.approx(first[1]['loss'], rel=1e-4)  # another program rounds differently
    assert first[0]['entropy'] == pytest.approx(first[1]['entropy'], rel=1e-4)


def test_bfloat16_computes_but_values_and_parameters_stay_float32(run):
    result = run(config_for('dtype=bfloat16'), teacher_dir=None)
    arrays = final_state(result.workdir)
    assert {array.dtype.name for path, array in arrays.items() if array.dtype.kind == 'f'} == {'float32'}
    assert np.isfinite(arrays['table/value']).all() and arrays['table/value'].max() > 0.1
    assert not any(array.dtype.name == 'bfloat16' for array in arrays.values())


def test_a_held_out_part_is_evaluated_instead_of_the_test_set(run):
    config = config_for('validation=0.25,teacher.epochs=12')
    result = run(config, teacher_dir=None)
    assert result.summary['evaluated_on'] == 'validation' and result.summary['num_points'] == 300
    assert result.summary['teacher']['accuracy'] * 300 == pytest.approx(
        round(result.summary['teacher']['accuracy'] * 300), abs=1e-6
    )
