"""Seeds in lockstep: each what it is alone, whatever the others do, and the same to the bit through a cut."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax import networks
from kcd_jax.training import check, lockstep, loop, state, step, train
from kcd_jax.trees import leaf_paths
from tests import digits
from tests.digits import assert_same_run, final_state, metrics


def configs_for(seeds, words='', **options):
    """The digits config in quicktest form on 120 points, a seed each."""
    return [digits.config_for(f'num_points=120,{words}', **options, survey=False, seed=seed) for seed in seeds]


@pytest.fixture(scope='session')
def teacher_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('teacher')


@pytest.fixture
def together(tiny_networks, teacher_dir, tmp_path):
    """Trains configs side by side in <folder>/<seed>, and returns the outcomes."""

    def together(configs, folder, teacher_dir=teacher_dir, size=None):
        jobs = [
            functools.partial(train.train, config, tmp_path / folder / str(config.seed), teacher_dir=teacher_dir)
            for config in configs
        ]
        lanes = [config.seed for config in configs]
        return lockstep.run([lambda seat, job=job: job(seat=seat) for job in jobs], lanes, size)

    return together


# ------------------------------------------------------------------------------------------------- the meeting point


class Counting:
    """Stands for a program: a state is a number, and a step adds one to it. `calls` is set by the fixture."""

    def __init__(self, size):
        self.size = size

    def __call__(self, asked):
        self.calls.append({lane: steps.current for lane, (_, steps) in asked.items()})
        return {lane: (steps.current + 1, steps.current) for lane, (_, steps) in asked.items()}


@pytest.fixture
def calls(monkeypatch):
    """The states that each program was called with, by lane."""
    monkeypatch.setattr(lockstep, 'Program', Counting)
    monkeypatch.setattr(Counting, 'calls', [], raising=False)
    return Counting.calls


def ask(state, phase='main', length=1):
    return loop.Steps(state, None, None, None, types.SimpleNamespace(name=phase), length)


def counting(steps, phase='main'):
    """A job that takes so many steps and returns where it has got to."""

    def job(seat):
        state = 100 * seat.lane
        for _ in range(steps):
            state, _ = seat.take(None, ask(state, phase))
        return state

    return job


def test_all_take_each_step_in_one_program_and_who_has_ended_leaves_the_others(calls):
    assert lockstep.run([counting(1), counting(3), counting(0)]) == [1, 103, 200]
    assert calls == [{0: 0, 1: 100}, {1: 101}, {1: 102}]


def test_runs_in_other_phases_take_their_steps_apart(calls):
    assert lockstep.run([counting(2, 'first'), counting(1, 'second')]) == [2, 101]
    assert calls == [{0: 0}, {1: 100}, {0: 1}]


def test_a_run_keeps_its_lane_whoever_else_is_missing(calls):
    assert lockstep.run([counting(1)], lanes=[2], size=3) == [201]
    assert calls == [{2: 200}]


def test_nobody_steps_before_everybody_is_there(calls):
    order = []

    def job(seat):
        order.append(f'set up {seat.lane}')
        seat.take(None, ask(0))
        order.append('stepped')

    lockstep.run([job] * 3)
    assert order == ['set up 0', 'set up 1', 'set up 2', *['stepped'] * 3]


def test_one_runs_error_is_its_own(calls):
    def job(seat):
        seat.take(None, ask(0))
        if seat.lane == 1:
            raise ValueError('its own')
        return seat.take(None, ask(1))

    first, second, third = lockstep.run([job] * 3)
    assert first == third == (2, 1)
    assert isinstance(second, ValueError) and str(second) == 'its own'


def test_what_ends_the_program_ends_every_run_that_is_in_it(calls, monkeypatch):
    def fail(self, asked):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(Counting, '__call__', fail)
    assert [str(outcome) for outcome in lockstep.run([counting(1)] * 2)] == ['out of memory'] * 2


def test_all_hear_of_a_signal_after_the_same_step(calls):
    def job(seat):
        for number in range(10):
            seat.take(None, ask(number))
            if seat.lane == 0 and number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)  # the other one asks for its next step meanwhile
            if seat.came():
                return number
        return 'never'

    first, second = lockstep.run([job] * 2)
    assert first == second and first in (4, 5)


def test_an_interruption_ends_the_waiting_runs(calls):
    left_at, before = [], set(threading.enumerate())

    def job(seat):
        if seat.lane == 1:
            signal.raise_signal(signal.SIGINT)
        try:
            for _ in range(10_000):
                seat.take(None, ask(0))
        except lockstep.Abandoned:
            left_at.append(seat.lane)
            raise

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of pytest-xdist hears none
    try:
        with pytest.raises(KeyboardInterrupt):
            lockstep.run([job] * 2)
    finally:
        signal.signal(signal.SIGINT, handler)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
    assert sorted(left_at) == [0, 1]


# -------------------------------------------------------------------------------------------------------- real runs


@pytest.mark.slow
def test_each_seed_is_what_it_is_alone(together, teacher_dir, tmp_path):
    configs = configs_for((0, 1, 2))
    outcomes = together(configs, 'together')
    assert [outcome.summary['side_by_side'] for outcome in outcomes] == [3, 3, 3]
    for config, outcome in zip(configs, outcomes, strict=True):
        alone = train.train(config, tmp_path / 'alone' / str(config.seed), teacher_dir=teacher_dir)
        assert alone.summary['side_by_side'] == 1
        for key in ('cost', 'epochs', 'parameters', 'teacher'):
            assert outcome.summary[key] == alone.summary[key], key
        arrays, others = final_state(outcome.workdir), final_state(alone.workdir)
        records, repeated = metrics(outcome.workdir), metrics(alone.workdir)
        # The same data in the same order; what is computed differs by the rounding of sums, which training enlarges.
        for path in ('key', 'table/count', 'plan/num_keep'):
            np.testing.assert_array_equal(arrays[path], others[path], err_msg=path)
        assert [record['kind'] for record in records] == [record['kind'] for record in repeated]
        train_records = [r for r in records if r['kind'] == 'train'], [r for r in repeated if r['kind'] == 'train']
        first, alone_first = (found[0] for found in train_records)
        assert first['loss'] == pytest.approx(alone_first['loss'], rel=1e-4)
        stages = [np.load(run / 'knowledge' / 'stage_1.npz') for run in (outcome.workdir, alone.workdir)]
        np.testing.assert_allclose(stages[0]['value'], stages[1]['value'], atol=1e-4)
    digests = {outcome.summary['accuracy'] for outcome in outcomes} | {outcome.summary['loss'] for outcome in outcomes}
    assert len(digests) > 3, 'three seeds are three runs'


@pytest.mark.slow
def test_epochs_of_other_lengths_and_a_seed_that_diverges(together, tmp_path, monkeypatch):
    """InfoBatch keeps another number of points for each seed; what one seed ends with is nobody else's.

    Programs of two steps, as an accelerator has them of a hundred.
    """
    epoch_of = loop.Loop.train_epoch

    def diverge(self, current, epoch, between):
        if self.config.seed == 1 and epoch == 3:
            raise loop.Diverged('the loss of step 1 is not finite')
        return epoch_of(self, current, epoch, between)

    monkeypatch.setattr(loop.Loop, 'train_epoch', diverge)
    configs = configs_for((0, 1, 2), policy='infobatch')
    for config in configs:
        config.chunk = 2
    first, second, third = together(configs, 'runs', tmp_path / 'teacher')
    assert isinstance(second, train.Diverged)
    sizes = [
        [record['kept'] for record in metrics(outcome.workdir) if record['kind'] == 'train']
        for outcome in (first, third)
    ]
    assert len(sizes[0]) == len(sizes[1]) == 6 and sizes[0] != sizes[1]
    assert first.summary['cost']['steps'] == sum(size // 20 for size in sizes[0])


@pytest.mark.slow
def test_a_cut_changes_nothing(together, tmp_path, monkeypatch):
    """SIGTERM in the middle of an epoch saves every seed; the same seeds go on together, to the bit."""
    configs = configs_for((0, 1), method='crd')
    together(configs, 'whole')
    epoch_of = loop.Loop.train_epoch

    def cut(self, current, epoch, between):
        seen = []

        def counting(now):
            seen.append(1)
            if self.config.seed == 0 and epoch == 3 and len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            between(now)

        return epoch_of(self, current, epoch, counting)

    monkeypatch.setattr(loop.Loop, 'train_epoch', cut)
    outcomes = together(configs, 'cut')
    assert all(isinstance(outcome, train.Preempted) for outcome in outcomes)
    monkeypatch.setattr(loop.Loop, 'train_epoch', epoch_of)
    # One goes on by itself, as after a kill that the other one had finished before: its lane is what counts.
    together(configs[1:], 'cut', size=2)
    together(configs[:1], 'cut', size=2)
    for config in configs:
        assert_same_run(tmp_path / 'whole' / str(config.seed), tmp_path / 'cut' / str(config.seed))


@pytest.mark.slow
def test_streamed_seeds_read_their_own_points(together, tmp_path):
    configs, own_teacher = configs_for((0, 1), 'stream=true'), tmp_path / 'teacher'
    for config, outcome in zip(configs, together(configs, 'together', own_teacher), strict=True):
        alone = train.train(config, tmp_path / 'alone' / str(config.seed), teacher_dir=own_teacher)
        counts = [np.load(run.workdir / 'knowledge' / 'stage_1.npz')['count'] for run in (outcome, alone)]
        np.testing.assert_array_equal(*counts)


# Those with state, phases or gradients of their own; what the others add is a term of the loss.
CASES = [
    ('crd', 'none'),
    ('kdgan', 'none'),
    ('kr', 'none'),
    ('sskd', 'none'),
    ('kd', 'unix'),
    ('kd', 'kcd,preset=reference'),
]


@pytest.mark.slow
@pytest.mark.parametrize(('method', 'policy'), CASES)
def test_one_program_takes_the_steps_of_every_method_and_policy(tiny_networks, method, policy):
    """The mapped step of two seeds against the step of each, from the same states."""
    (config,) = configs_for((0,), method=method, policy=policy)
    if policy == 'unix':
        config.policy.k = 12
    dataset = train.load_data(config)
    teacher = networks.get(config.teacher.name)(dataset.num_classes)
    variables = teacher.init(jax.random.PRNGKey(7), dataset.image_shape)
    run = check.resolve(config, dataset, device_count=1, teacher=teacher, teacher_variables=variables)
    recipe, rows = check.recipe_of(run, config), len(run.setup.labels)
    images = np.zeros((rows, *dataset.image_shape), np.uint8)
    images[: len(dataset.train)] = dataset.train.images
    points = step.Points(jnp.asarray(images), jnp.asarray(run.setup.labels))
    make = functools.partial(
        state.create,
        student=run.student,
        method=run.method,
        policy=run.policy,
        phases=run.phases,
        setup=run.setup,
        images=dataset.train.images,
    )
    states = [make(jax.random.PRNGKey(seed)) for seed in (0, 1)]
    orders = [step.epoch_order(each.key, each.plan, jnp.int32(0)) for each in states]
    for phase in run.phases:
        rates = {label: jnp.float32(0.01) for label in phase.optimisers} | {'phase_epoch': jnp.int32(0)}
        options = {'recipe': recipe, 'phase': phase, 'length': 1}
        both, losses = jax.jit(functools.partial(step.run_chunks, **options))(
            states, orders, [rates, rates], points, variables
        )
        one = jax.jit(functools.partial(step.run_chunk, **options))
        for number in (0, 1):
            alone, loss = one(states[number], orders[number], rates, points, variables)
            np.testing.assert_allclose(losses[number], loss, rtol=2e-4)
            np.testing.assert_array_equal(both[number].table.count, alone.table.count)
            np.testing.assert_allclose(both[number].table.value, alone.table.value, atol=1e-4)
            for path, leaf in leaf_paths(both[number].params).items():
                np.testing.assert_allclose(leaf, leaf_paths(alone.params)[path], atol=2e-3, err_msg=path)
        assert float(losses[0]) != float(losses[1])
