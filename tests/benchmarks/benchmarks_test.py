"""The machinery of the benchmarks; the numbers themselves are for `python -m benchmarks`."""

from __future__ import annotations

import json
import math
import subprocess
import types

import jax
import numpy as np
import pytest

from benchmarks import __main__ as program
from benchmarks import (
    condensation,
    index_space,
    methods,
    networks,
    own_cache,
    results,
    steps,
    streaming,
    teaching,
    timed_run,
    timing,
)
from kcd_jax import networks as all_networks
from kcd_jax.commands import bench

pytestmark = pytest.mark.fast_compile

TINY = 'tiny_teacher-tiny'


def test_a_row_says_whether_its_target_is_met():
    assert results.Row('a', '1 ms', '2 ms', True).line().endswith('met')
    assert results.Row('a', '3 ms', '2 ms', False).line().endswith('MISSED')
    assert results.Row('a', '3 ms').line() == f'{"a":<68} 3 ms'


def test_medians_of_alternating_calls(monkeypatch):
    clock, calls = [0.0], []

    def work(name, seconds):
        calls.append(name)
        clock[0] += seconds.pop(0)

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(timing, 'WARM_UP', 1)
    durations = {'a': [100.0, 1.0, 3.0, 100.0, 2.0, 2.0], 'b': [9.0, 5.0, 5.0, 9.0, 9.0, 5.0]}
    found = timing.alternate({name: lambda name=name: work(name, durations[name]) for name in durations}, 2)
    assert found == pytest.approx({'a': 2000.0, 'b': 5000.0}) and calls == list('aaabbb' * 2)


# ------------------------------------------------------------------------------------------------------ command line


def test_every_group_exists():
    modules = {'condensation': condensation, 'methods': methods, 'networks': networks, 'steps': steps}
    for place in program.GROUPS.values():
        module, function = place.split('.')
        assert callable(getattr({**modules, 'streaming': streaming, 'teaching': teaching}[module], function))


def test_help_names_every_flag_with_an_example(capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(['--help'])
    text = capsys.readouterr().out
    assert end.value.code == 0 and 'python -m benchmarks --rows=step,methods' in text
    assert all(word in text for word in ('--rows', '--quick', '--json', '--show', 'index_space'))


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--rows=stpe'], "unknown group of rows 'stpe' (did you mean 'step'?)"),
        (['--show=absent.json'], 'absent.json is not a file written by --json'),
    ],
)
def test_bad_input_is_one_line(flags, says, capsys):
    assert program.main(flags) == 2
    assert capsys.readouterr().err.startswith(f'error: {says}')


def test_rows_are_printed_written_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(condensation, 'condensation_ms', lambda num_points, repeats: num_points / 1e4)
    monkeypatch.setattr('kcd_jax.commands.launch.prepare_jax', lambda devices=0, deterministic=False: None)
    file = tmp_path / 'bench.json'
    assert program.main(['--rows=condensation', '--quick', f'--json={file}']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '4 x cpu' and [line.split()[-1] for line in lines[2:]] == ['met', 'MISSED']
    assert program.main([f'--show={file}']) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        '| condensation in jit, 50 thousand points | 5.0 ms | 5 ms | met |',
        '| condensation in jit, 1.28 million points | 128.0 ms | 100 ms | MISSED |',
    ]


def test_an_installed_package_has_no_benchmarks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, 'ROOT', tmp_path)
    assert bench.main([]) == 2
    assert capsys.readouterr().err.startswith('error: the benchmarks are not part of the installed package')


# -------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_a_gpu_need_one(tmp_path):
    found = list(steps.full_run(True, tmp_path))
    assert len(found) == 2 and {row.met for row in found} == {None} and found[0].measured == 'no GPU here'


def test_a_streamed_row_is_held_to_tf_data_and_a_step_to_a_resident_one(tmp_path, monkeypatch):
    rates = {'ours': 95.0, 'crops': 99.0, 'pillow': 70.0, 'tf_data': 100.0}
    ms = {'resident': 50.0, 'streamed': 52.6}
    monkeypatch.setattr(streaming, 'reading_rates', lambda *arguments: rates)
    monkeypatch.setattr(streaming, 'step_ms', lambda *arguments: ms)
    read, step = streaming.streaming(True, tmp_path)
    assert (read.met, step.met) == (True, False)
    assert read.measured == '95 images/s; its crops alone 99; Pillow alone 70; tf.data 100'
    rates['ours'], ms['streamed'] = 89.0, 52.4
    assert [row.met for row in streaming.streaming(True, tmp_path)] == [False, True]
    del rates['tf_data']
    assert next(streaming.streaming(True, tmp_path)).met is None


@pytest.mark.slow
def test_reading_and_streamed_steps_are_measured(tmp_path, monkeypatch, tiny_networks):
    monkeypatch.setattr(streaming, 'BATCH', 8)
    monkeypatch.setattr(streaming, 'PAIR', TINY)
    monkeypatch.setattr(streaming.importlib.util, 'find_spec', lambda name: None)
    rates = streaming.reading_rates(16, 1, tmp_path)
    assert set(rates) == {'ours', 'crops', 'pillow'} and min(rates.values()) > 0
    monkeypatch.setattr(streaming, 'BATCH', timed_run.BATCH)
    ms = streaming.step_ms(4, 1)
    assert set(ms) == {'resident', 'streamed'} and min(ms.values()) > 0


@pytest.mark.slow
def test_a_method_is_compared_with_kd(tmp_path, monkeypatch, tiny_networks):
    monkeypatch.setattr(methods.methods, 'names', lambda: ['fsp', 'kd'])
    monkeypatch.setattr(methods, 'PAIR', 'tiny-tiny')  # FSP needs equal widths
    monkeypatch.setattr(methods.timing, 'alternate', lambda functions, repeats: dict.fromkeys(functions, 2.0))
    reference, first, second = methods.compared_with_kd(True, tmp_path)
    assert reference.name.startswith('method kd, tiny-tiny, batch 64')
    assert [row.name for row in (first, second)] == ['method fsp, phase fsp', 'method fsp, phase main']
    assert first.measured.startswith('1.00 times KD; state +')
    # The first phase has an optimiser of its own: a second momentum of the student.
    assert first.details['state_bytes'] == second.details['state_bytes'] > 0


def test_a_network_is_measured_on_all_devices():
    found = networks.measure('resnet8x0_25', 1, batch=4, num_classes=5, pixels=8)
    assert set(found) == {'forward', 'train', 'macs'}
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert set(networks.NAMES) <= set(all_networks.names())


def test_a_light_network_is_compared_by_its_work_with_the_first_resnet(tmp_path, monkeypatch):
    speeds = {
        'resnet8': {'forward': 1.0, 'train': 1000.0, 'macs': 12_507_392},
        'resnet20': {'forward': 1.0, 'train': 50.0, 'macs': 40_805_632},
    }
    monkeypatch.setattr(networks, 'measure', lambda name, repeats: speeds[name])
    found = list(networks.all_networks(True, tmp_path))
    assert [row.met for row in found] == [True, False] and 'has 2.04' in found[1].target


@pytest.mark.slow
def test_steps_and_epochs_of_a_timed_run(tiny_networks):
    run = timed_run.timed_run(TINY, 300, policy='kcd')
    run.epoch(256)
    run.epoch(128)
    assert int(run.state.step) == 4 + 2 and run.num_programs == 1
    assert run.step().shape == () and int(run.state.step) == 7 and run.num_programs == 1
    assert run.macs_per_step > 0 and run.state_bytes > 0


@pytest.mark.slow
def test_a_teacher_that_answered_before_is_timed_beside_the_others(tiny_networks, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, 'PAIRS', (TINY,))
    monkeypatch.setattr(teaching, 'SEEDS', 2)
    monkeypatch.setattr(teaching, 'POLICIES', {'none': {}})
    monkeypatch.setattr(teaching.importlib.util, 'find_spec', lambda name: None)
    rows = list(teaching.against_everything(True, tmp_path))
    assert [row.name.startswith('KD step, cache') for row in rows] == [
        True
    ] * 4  # 2 ratios: of the pair, and the mean of all
    mixed, programs = teaching.kcd_against_kd(True, tmp_path)
    assert 0 < mixed.details['mixed'] < mixed.details['keep'] < mixed.details['points'] and programs.met
    (shared,) = teaching.twelve_runs(True, tmp_path)
    views = 8 * timed_run.BATCH * 4  # points and epochs of the quick form
    assert 0.9 * views < shared.details['rows'] <= views  # a view may come twice


def test_the_interval_of_ratios_is_that_of_their_logarithms():
    center, low, high = teaching.interval([1.0, 2.0, 4.0])
    half = 4.302653 * math.log(2) / math.sqrt(3)  # Student's t of two degrees of freedom
    assert (center, low, high) == pytest.approx((2.0, 2 * math.exp(-half), 2 * math.exp(half)), rel=1e-6)


@pytest.mark.slow
def test_vmapped_steps_are_those_of_the_seeds(tiny_networks):
    """The row compares equal work: each of the stacked states becomes what a step of its own makes of it."""
    run = timed_run.timed_run(TINY, 128)
    arguments = run.arguments()
    mapped = jax.vmap(run.function(), in_axes=(0, *(None for _ in arguments)))
    _, losses = jax.jit(mapped)(jax.tree.map(lambda x: jax.numpy.stack([x] * 3), run.state), *arguments)
    # Batched convolutions sum in another order.
    np.testing.assert_allclose(losses, [run.step()] * 3, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- very many points

FOUND = {
    'record': 1e-4, 'record_copied': 8208, 'record_moved': 0.0, 'condense': 0.05, 'stage': 1.0, 'order': 0.1,
    'stage_bytes': 70.0,
}  # fmt: skip


def test_rows_of_very_many_points(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(condensation, 'measure_index_space', lambda number, folder: asked.append(number) or FOUND)
    found = list(condensation.in_a_run(False, tmp_path))
    assert asked == [1_280_000, 14_000_000, 100_000_000] and [row.met for row in found] == [True] * 6
    assert found[0].measured == '0.10 ms; in place' and '70 bytes per point' in found[1].measured


@pytest.mark.parametrize('fault', [{'record_copied': 8 * 1_280_000}, {'record_moved': 1.0}])
def test_a_copy_of_the_table_is_seen(tmp_path, monkeypatch, fault):
    found = {**FOUND, **fault, 'condense': 0.2}
    monkeypatch.setattr(condensation, 'measure_index_space', lambda number, folder: found)
    assert [row.met for row in condensation.in_a_run(True, tmp_path)] == [False, False]


def test_a_process_that_fails_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match='python -c 1/0 failed: ZeroDivisionError: division by zero'):
        timed_run.in_own_process('-c', '1/0')
    done = types.SimpleNamespace(returncode=-9, stderr='', stdout='')
    monkeypatch.setattr(subprocess, 'run', lambda *args, **keywords: done)
    with pytest.raises(ValueError, match='python -m x failed: status -9, perhaps out of memory'):
        timed_run.in_own_process('-m', 'x')


@pytest.mark.slow
def test_the_index_space_of_a_run(tmp_path):
    """It condenses to 0.7, records in place, and leaves the stage file."""
    number = index_space.WARM_UP_POINTS
    found = index_space.measure(number, tmp_path)
    assert found['record_copied'] < number and not found['record_moved']
    assert set(FOUND) <= set(found) and all(found[key] > 0 for key in ('condense', 'stage', 'order'))
    with np.load(tmp_path / 'knowledge' / 'stage_1.npz') as stage:
        assert int(stage['num_keep']) == round(0.7 * number) and np.count_nonzero(stage['epsilon']) == 0.3 * number


def test_the_program_of_the_first_step_is_python():
    compile(steps.FIRST_STEP.format(pair='a-b'), 'FIRST_STEP', 'exec')


def test_counts_with_an_own_cache_are_continued_only_for_the_same_runs(tmp_path):
    output, header = tmp_path / 'own.json', {'seed': 100, 'words': '', 'commit': 'aa'}
    assert own_cache.continued(output, header) == {**header, 'sweeps': {}}
    output.write_text(json.dumps({**header, 'sweeps': {'a': {}}}))
    assert own_cache.continued(output, {**header, 'commit': 'bb'})['sweeps'] == {'a': {}}
    with pytest.raises(ValueError, match='own.json was counted with --seed=100; use that, or another --json'):
        own_cache.continued(output, {**header, 'seed': 101})
    output.write_text('{')
    with pytest.raises(ValueError, match='own.json is damaged; remove it, or use another --json'):
        own_cache.continued(output, header)
