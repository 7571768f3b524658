"""The loop: what a run leaves, resumption, topologies, divergence; and methods and policies of every kind in it.

The networks are the tests' tiny ones. `reuse` needs a run to reuse and has its own tests. tests/faults/matrix.py trains
and resumes every pair of a method and a policy, a new file's too.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from kcd_jax import data, policies
from kcd_jax.runtime import sharding
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import loop, step, trainer
from kcd_jax.training.loop import Result
from tests import digits
from tests.digits import ROOT, assert_same_run, final_state, metrics, object_run, one_device, run_for, sigterm, stage

pytestmark = pytest.mark.fast_compile

PAIRS = {'fsp': 'tiny_teacher-tiny_teacher', 'one': 'tiny_teacher-tiny_one'}  # what the others' pair does not offer

# One of each kind: a bank, rotated views, branches, several phases and updates, an in-step teacher, own state, pools.
CASES = [(method, 'kcd') for method in ('kd', 'crd', 'sskd', 'fsp', 'one', 'reviewkd', 'embed')]
CASES += [('kd', policy) for policy in ('infobatch', 'seta', 'rounds', 'kcd,preset=reference', 'random,drawn=epoch')]
CASES += [('kr', 'unix,k=12')]  # 3/4 of 20 do not divide by four devices
CASES += [('kr,posterior=kdgan', 'none')]


@pytest.fixture(scope='module', autouse=True)
def tiny():
    """The tiny networks, known while this file's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        digits.know_tiny_networks(patch)
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> tuple[Result, int]:
    """A run of six epochs and three condensations, its teacher trained first, and how often its steps were traced."""
    traces, original = [], step.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, 'train_step', lambda *args: traces.append(1) or original(*args))
        result = run_for(eval_every=1).train(tmp_path_factory.mktemp('whole'))
    return result, len(traces)


@pytest.fixture(scope='module')
def whole(trained) -> Result:
    return trained[0]


@pytest.fixture(scope='module')
def teacher(whole) -> Teacher:
    """The teacher that was trained for `whole`."""
    return Teacher.restore(whole.workdir / 'teacher')


# ------------------------------------------------------------------------------------------------------- what is left


def test_a_run_leaves_what_it_promises(whole):
    folder = whole.workdir
    for name in ('config.json', 'metrics.jsonl', 'summary.json', 'checkpoints', 'student.safetensors'):
        assert (folder / name).exists(), name
    assert len(list((folder / 'knowledge').glob('stage_*.npz'))) == 3
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['accuracy'] == whole.accuracy and summary['policy'] == 'kcd' and summary['method'] == 'kd'
    assert summary['run'] == run_for(eval_every=1).describe()
    kinds = [record['kind'] for record in metrics(folder)]
    assert kinds.count('train') == 6 and kinds.count('condensation') == 3 and kinds[-1] == 'eval'


def test_the_trained_student_is_the_last_checkpoint(whole):
    arrays, model = final_state(whole.workdir), whole.model
    assert model.network.name == 'tiny' and model.card['accuracy'] == whole.accuracy
    np.testing.assert_array_equal(model.variables['params']['fc']['kernel'], arrays['params/student/fc/kernel'])


def test_the_cost_of_a_run_is_what_its_epochs_trained_on(whole):
    cost = whole.summary['cost']
    records = [record for record in metrics(whole.workdir) if record['kind'] == 'train']
    assert cost['processed_samples'] == sum(record['samples'] for record in records)
    assert cost['scheduled_samples'] == sum(record['kept'] for record in records)
    assert cost['steps'] == records[-1]['step']
    assert cost['samples']['teacher_forward'] == cost['processed_samples']
    assert cost['relative_macs'] == pytest.approx(cost['relative_processed'], abs=1e-12)


def test_a_stage_file_holds_the_plan_that_was_trained_on(whole):
    found = stage(whole.workdir, 3)
    kept = found['order'][: found['num_keep']]
    assert len(set(kept)) == int(found['num_keep']) == whole.summary['condensations'][-1]['kept'] == 210
    assert kept.max() < found['num_points'] == 300
    assert (found['epsilon'][found['order'][found['num_keep'] :]] == 0).all()


def test_the_step_is_traced_once_although_the_set_shrinks(trained):
    result, traces = trained
    assert len({record['kept'] for record in metrics(result.workdir) if record['kind'] == 'train'}) == 4
    assert traces == 2  # the teacher's step and the student's


def test_a_finished_run_is_read_back_and_not_run_again(whole, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, '__init__', lambda *args: pytest.fail('the run was started again'))
    again = run_for(eval_every=1).train(whole.workdir)
    assert again.summary == json.loads((whole.workdir / 'summary.json').read_text())
    assert run_for(eval_every=1).replace(name='label').train(whole.workdir).name == 'label'


def test_a_work_directory_of_another_run_is_refused_with_the_keys(whole):
    with pytest.raises(ValueError, match=r'optim\.lr') as caught:
        run_for('optim.lr=0.01', eval_every=1).train(whole.workdir)
    assert '\n' not in str(caught.value)


# -------------------------------------------------------------------------------------------------- cut and resumed


def test_a_run_cut_twice_ends_bit_for_bit_as_the_one_that_was_never_cut(whole, teacher, tmp_path):
    """SIGTERM in the middle of one epoch and after the first steps of another."""
    run = run_for(eval_every=1)
    for epoch, chunks in ((1, 3), (4, 1)):
        with sigterm(epoch, chunks):
            run.train(tmp_path, teacher_dir=whole.workdir / 'teacher')
    result = run.train(tmp_path, teacher_dir=whole.workdir / 'teacher')
    assert_same_run(whole.workdir, tmp_path)
    assert result.accuracy == whole.accuracy and result.summary['cost'] == whole.summary['cost']


KILLED = """
import sys
import jax
jax.config.update('jax_num_cpu_devices', 1)
import kcd_jax
from kcd_jax import networks
networks.__path__.append(sys.argv[1])
run = kcd_jax.Run(
    student='tiny',
    teacher=kcd_jax.Teacher.restore(sys.argv[2]),
    data=kcd_jax.data.load('digits', num_points=120),
    method=kcd_jax.methods.get('kd').make(),
    policy=kcd_jax.policies.get('kcd').make(ratio=0.7, stages=3),
    recipe=kcd_jax.Recipe(epochs=6, batch=20, augment={'flip': False}, eval_every=6, checkpoint={'seconds': 0}),
)
print(run.train(sys.argv[3]).accuracy)
"""


@pytest.mark.slow
def test_a_run_from_objects_alone_is_killed_and_resumed_bit_for_bit(whole, tmp_path):
    """SIGKILL, which no program can answer; a checkpoint is written after every step."""
    command = [sys.executable, '-c', KILLED, digits.TINY, str(whole.workdir / 'teacher')]

    def finish(folder) -> str:
        found = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr
        return found.stdout

    finish(tmp_path / 'whole')
    with subprocess.Popen([*command, str(tmp_path / 'cut')], cwd=ROOT, stderr=subprocess.PIPE) as process:
        log = tmp_path / 'cut' / 'metrics.jsonl'
        while not log.exists() or log.read_bytes().count(b'\n') < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / 'cut' / 'summary.json').exists() and process.returncode == -signal.SIGKILL
    assert 'from step' in finish(tmp_path / 'cut')
    assert_same_run(tmp_path / 'whole', tmp_path / 'cut')


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'policy'), CASES)
def test_it_trains_and_resumes_bit_for_bit(teacher, tmp_path, monkeypatch, method, policy):
    settings = (
        'num_points=60,epochs=3,stages=3' if policy.split(',')[0] in ('kcd', 'random') else 'num_points=60,epochs=3'
    )
    if policy == 'seta':
        settings = 'num_points=180,epochs=3'  # its window shows a part of them, and the second epoch needs two steps
    pair = PAIRS.get(method, digits.PAIR)
    run = run_for(settings, pair, method, policy, eval_every=3, survey=False)
    assert run.uses_teacher == (method != 'one')
    if method == 'sskd':
        assert len(run.epochs) == 4, 'one epoch of the head of the teacher in front'
    run = run.replace(teacher=teacher if run.uses_teacher else None)
    started: list[tuple[trainer.Trainer, object]] = []
    look = trainer.Trainer.initial_state
    monkeypatch.setattr(
        trainer.Trainer,
        'initial_state',
        lambda self: started.append((self, jax.device_get(self.teacher_variables))) or look(self),
    )
    result = run.train(tmp_path / 'whole')
    ((at_work, before),) = started
    assert bool(before) == (run.teacher_network is not None)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(at_work.teacher_variables), before)
    for path, array in final_state(result.workdir).items():
        assert array.dtype.kind != 'f' or np.isfinite(array).all(), path
    # Few epochs of a tiny network teach little, and warm-ups make a loss rise: what must hold is that it is a number.
    losses = [record['loss'] for record in metrics(result.workdir) if record['kind'] == 'train']
    assert len(losses) == len(run.epochs) and all(isinstance(loss, float) for loss in losses)

    with sigterm(len(run.epochs) // 2, 1):
        run.train(tmp_path / 'cut')
    run.train(tmp_path / 'cut')
    assert_same_run(result.workdir, tmp_path / 'cut')


# ----------------------------------------------------------------------------------------------------- topologies


def test_one_and_four_devices_keep_the_promised_identities(whole, tmp_path):
    """The same order of the data; the first epoch's table within 1e-4; 99 % of the kept set the same."""
    alone = run_for(eval_every=1).train(tmp_path, teacher_dir=whole.workdir / 'teacher', mesh=one_device())
    stages = [stage(result.workdir, 1) for result in (alone, whole)]
    np.testing.assert_array_equal(stages[0]['count'], stages[1]['count'])  # the same points were visited
    np.testing.assert_allclose(stages[0]['value'], stages[1]['value'], atol=1e-4)
    kept = [set(found['order'][: found['num_keep']]) for found in stages]
    assert len(kept[0] & kept[1]) >= 0.99 * len(kept[0])


def test_a_checkpoint_of_four_devices_resumes_on_one(whole, tmp_path):
    run, options = run_for(eval_every=1), {'teacher_dir': whole.workdir / 'teacher'}
    with sigterm(3, 2):
        run.train(tmp_path, mesh=sharding.make_mesh(), **options)
    before = final_state(tmp_path)
    result = run.train(tmp_path, mesh=one_device(), **options)
    records = [record for record in metrics(result.workdir) if record['kind'] == 'train']
    assert [record['epoch'] for record in records] == [1, 2, 3, 4, 5, 6]
    wanted = [record for record in metrics(whole.workdir) if record['kind'] == 'train']
    assert records[:3] == wanted[:3] and [r['step'] for r in records] == [r['step'] for r in wanted]
    visits = final_state(tmp_path)['table/count'] - before['table/count']
    assert visits.min() >= 0 and visits.sum() == 20 * (records[-1]['step'] - int(before['step']))


def test_a_chunk_of_steps_is_the_steps_one_by_one(teacher, tmp_path):
    """The accelerators' path: a scan over 4 steps, and what is left over as single steps."""
    runs = [run_for('policy=none,num_points=120,epochs=2', chunk=chunk).replace(teacher=teacher) for chunk in (1, 4)]
    single, chunked = (
        metrics(run.train(tmp_path / str(run.recipe.chunk), mesh=one_device()).workdir) for run in runs
    )  # fmt: skip
    assert [(r['kind'], r['step']) for r in single] == [(r['kind'], r['step']) for r in chunked]
    for key in ('loss', 'entropy'):  # another program rounds differently
        assert single[0][key] == pytest.approx(chunked[0][key], rel=1e-4)


# ----------------------------------------------------------------------------------------------------- the rest


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(teacher, tmp_path):
    run = run_for('optim.lr=1000,gamma=1000').replace(teacher=teacher)
    with pytest.raises(loop.Diverged, match=r'step \d+ is not finite'):
        run.train(tmp_path, mesh=one_device())
    assert not (tmp_path / 'summary.json').exists()


def test_bfloat16_computes_but_values_and_parameters_stay_float32(teacher, tmp_path):
    run = run_for('dtype=bfloat16,epochs=3,num_points=120')
    assert run.teacher_network is not None and run.recipe.dtype == 'bfloat16'
    teacher.save(tmp_path / 'teacher.safetensors')
    taught = Teacher.restore(tmp_path / 'teacher.safetensors', dtype=run.recipe.dtype)
    arrays = final_state(run.replace(teacher=taught).train(tmp_path / 'run', mesh=one_device()).workdir)
    assert {array.dtype.name for array in arrays.values() if array.dtype.kind == 'f'} == {'float32'}
    assert np.isfinite(arrays['table/value']).all() and arrays['table/value'].max() > 0.1
    assert not any(array.dtype.name == 'bfloat16' for array in arrays.values())


def test_a_held_out_part_is_evaluated_instead_of_the_test_set(teacher, tmp_path):
    dataset = data.load('digits', validation=0.25, num_points=60)
    run = object_run(teacher, data=dataset, policy=policies.get('none').make())
    run = run.replace(recipe=dataclasses.replace(run.recipe, epochs=1, eval_every=1))
    result = run.train(tmp_path, mesh=one_device())
    assert result.summary['evaluated_on'] == 'validation' and result.summary['num_points'] == 60
    correct = result.summary['teacher']['accuracy'] * len(dataset.validation)
    assert len(dataset.validation) == 300 and correct == pytest.approx(round(correct), abs=1e-6)


def test_a_teacher_is_trained_once_and_kept(whole, tmp_path, monkeypatch):
    """Runs of one experiment share a folder for it."""
    folder = pathlib.Path(whole.workdir, 'teacher')
    before = (folder / 'student.safetensors').stat().st_mtime_ns
    run = run_for('epochs=1,stages=1,num_points=60')
    result = run.train(tmp_path, teacher_dir=folder, mesh=one_device())
    assert (folder / 'student.safetensors').stat().st_mtime_ns == before
    assert result.summary['teacher']['accuracy'] == whole.summary['teacher']['accuracy']
