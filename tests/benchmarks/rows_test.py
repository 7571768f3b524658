"""The bench's own machinery; its figures are for `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

import benchmarks as bench
from benchmarks import methods, rows, streaming, timing
from benchmarks.own import own_run
from kcd_jax.methods import _contrast


def test_a_row_says_whether_its_target_is_met():
    assert bench.Row('a', '1 ms', '2 ms', met=True).line().endswith('met')
    assert bench.Row('a', '3 ms', '2 ms', met=False).line().endswith('MISSED')
    assert bench.Row('a', '3 ms').line() == f'{"a":<58} 3 ms'


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


def test_rows_of_a_gpu_need_one(tmp_path):
    found = list(rows.gpu(True, tmp_path))
    assert len(found) == 2 and {row.met for row in found} == {None} and found[0].measured == 'no GPU here'


def test_condensation_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(rows.knowledge_speed, 'condensation_ms', lambda n, repeats: n / 1e4)
    assert [row.met for row in rows.condense(False, tmp_path)] == [True, False, False]


def test_a_streamed_row_is_held_to_tf_data_and_a_step_to_a_resident_one(tmp_path, monkeypatch):
    rates = {'ours': 95.0, 'bound': 99.0, 'pillow': 70.0, 'tf_data': 100.0, 'tf_decode': 80.0}
    ms = {'resident': 50.0, 'streamed': 52.6, 'waited': 1.1}
    monkeypatch.setattr(rows.streaming, 'measure', lambda *arguments: rates)
    monkeypatch.setattr(rows.streaming, 'waiting', lambda *arguments: ms)
    read, waited = rows.stream(True, tmp_path)
    assert (read.met, waited.met) == (True, False)
    assert read.measured == '95 images/s; its crops alone 99; Pillow alone 70; tf.data 100, its decoder alone 80'
    rates['ours'], ms['streamed'] = 89.0, 52.4
    assert [row.met for row in rows.stream(True, tmp_path)] == [False, True]
    del rates['tf_data']
    assert next(rows.stream(True, tmp_path)).met is None


@pytest.mark.slow
def test_reading_and_waiting_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, 'BATCH', 8)
    monkeypatch.setattr(streaming.importlib.util, 'find_spec', lambda name: None)
    rates = streaming.measure(16, 1, tmp_path)
    assert min(rates.values()) > 0 and 'tf_data' not in rates
    assert rates.keys() >= {'ours', 'ours_ms', 'workers', 'workers_start_s', 'bound', 'decode', 'pillow'}
    ms = streaming.waiting('resnet8-resnet8', 4, 1, tmp_path)
    assert 0 < ms['waited'] < ms['streamed'] and ms['resident'] > 0


def test_scores_by_a_product_are_those_by_rows():
    keys = jax.random.split(jax.random.key(0), 3)
    anchor, bank = jax.random.normal(keys[0], (4, 6)), jax.random.normal(keys[1], (20, 6))
    index = jax.random.randint(keys[2], (4, 9), 0, 20)
    # Sums of six products, in another order.
    np.testing.assert_allclose(
        _contrast.scores(anchor, bank, index), methods.scores_by_rows(anchor, bank, index), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_a_method_is_measured_beside_kd(tmp_path, monkeypatch):
    monkeypatch.setattr(methods.known_methods, 'names', lambda: ['fsp', 'kd'])
    monkeypatch.setattr(methods, 'PAIR', 'resnet8-resnet8')
    monkeypatch.setattr(methods.timing, 'alternate', lambda functions, repeats: dict.fromkeys(functions, 2.0))
    reference, first, second = methods.steps(True, tmp_path)
    assert reference.name.startswith('method kd, resnet8-resnet8, batch 64')
    assert [row.name for row in (first, second)] == ['method fsp, phase fsp', 'method fsp, phase main']
    assert first.measured.startswith('1.00 times KD; state +0.3 MiB')  # a second trace of the student
    assert first.details['state_bytes'] == second.details['state_bytes'] > 0


def test_a_light_network_is_measured_by_its_work_against_the_first_resnet(tmp_path, monkeypatch):
    images = {'resnet8': 1000.0, 'resnet20': 50.0}  # 12.5 and 40.8 million multiply-accumulates an image

    def fake(name, **options):
        return rows.network_speed.Speed(name, forward=1.0, train=images[name], compile_seconds=0.0)

    monkeypatch.setattr(rows.network_speed, 'measure', fake)
    found = list(rows.networks(True, tmp_path))
    assert [row.met for row in found] == [True, False]
    assert found[0].details['macs'] == 12_507_392 and 'has 2.04' in found[1].target


def test_an_unknown_group_is_one_line():
    done = subprocess.run([sys.executable, '-m', 'benchmarks', '--rows=stpe'], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: unknown group of rows 'stpe' (did you mean 'step'?)")


@pytest.mark.slow
def test_our_own_step_and_epochs(tmp_path):
    with own_run(f'resnet8-resnet8,{rows.KCD}', 300, tmp_path) as run:
        run.step()
        loss = run.step()
        assert loss.shape == () and int(run.state.step) == 2
        run.state = run.loop.end_epoch(run.state)
        run.epoch(256)
        run.epoch(128)
        assert int(run.state.step) == 2 + 4 + 2 and len(run.loop.programs) == 1
        assert jax.tree.leaves(run.state.params)
