"""The benchmark's table and figure, from summaries that were made up."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from kcd_jax.report import benchmark
from tests.report.runs import make_summary

POINTS, DRAWS, SEEDS = 60, 4, 10
LABELS = ('Student alone', 'KD', 'Random, 30 %', "Random at KCD's sizes, 30 %", 'KCD, 30 %', 'Static, 30 %')


def summary(label, seed, accuracy, *, sweep='benchmark_hard', rows=None, **more):
    """A run that classifies `accuracy` of the test images right, most of the same ones for every label."""
    hard = np.random.default_rng(0).random((DRAWS, POINTS)) + 0.05 * np.random.default_rng(seed).random((DRAWS, POINTS))
    right = (hard < np.quantile(hard, accuracy)).reshape(-1)
    group = '30 %' if label.endswith('30 %') else ''
    card = {'sweep': sweep, 'title': 't', 'label': label, 'pair': '', 'place': LABELS.index(label), 'group': group}
    share = 0.3 if group else 1.0
    taught = 0 if label == 'Student alone' else round(1000 * share)
    made = make_summary('student' if label == 'Student alone' else 'kd', seed, float(right.mean()), cell=card, **more)
    made['right'] = {
        'points': POINTS, 'images': right.size, 'bits': base64.b64encode(np.packbits(right)).decode(),
    }  # fmt: skip
    made['cost'] |= {
        'macs': {'teacher_forward': 8 * taught, 'student_forward': 1000 * share, 'student_backward': 1000 * share},
        'samples': {'teacher_forward': taught},
    }
    made['computed'] = {'teacher_rows': rows or {'computed': taught, 'served': 0, 'mixed': 0, 'padding': 7}}
    return made


@pytest.fixture(scope='module')
def summaries():
    accuracies = dict(zip(LABELS, (0.6, 0.8, 0.7, 0.75, 0.75, 0.7), strict=True))
    mixed = {'computed': 250, 'served': 50, 'mixed': 100, 'padding': 0}
    return [
        summary(label, seed, accuracy, rows=mixed if label.startswith('KCD') else None)
        for label, accuracy in accuracies.items() for seed in range(100, 100 + SEEDS)
    ]  # fmt: skip


def test_differences_costs_and_p_values(summaries):
    records = {record['run']: record for record in benchmark.measure(summaries, resamples=500)}
    assert list(records) == list(LABELS) and {record['n'] for record in records.values()} == {SEEDS}
    kcd, static, random = (records[f'{name}, 30 %'] for name in ('KCD', 'Static', 'Random'))
    assert kcd['random'] == pytest.approx(5, abs=0.5) and kcd['kd'] == pytest.approx(-5, abs=0.5)
    assert kcd['control'] == pytest.approx(0) and kcd['control_se'] == 0 and kcd['control_p'] == 1
    assert static['random'] == 0 and static['control'] is None and random['random'] is None
    # Four tests: KCD, its control, and the static choice against Random, and KCD against its control.
    assert kcd['random_p'] == pytest.approx(4 * _p(kcd), rel=0.01) and static['random_p'] == 1
    full = 8000 + 2000
    assert kcd['compute'] == pytest.approx(0.3) and records['Student alone']['compute'] == pytest.approx(2000 / full)
    assert random['amortised'] == pytest.approx(600 / full)
    assert kcd['amortised'] == pytest.approx((600 + 8 * 100) / full), 'mixed images are asked for anew'


def _p(record):
    from scipy.stats import t

    return 2 * t.sf(record['random'] / record['random_se'], SEEDS - 1)


def test_the_tables_say_what_is_concluded(summaries):
    (found,) = benchmark.table(benchmark.measure(summaries, resamples=500))
    assert found.title == 'hard' and [row[0] for row in found.rows] == list(LABELS)
    assert found.notes[-1] == "Better than a random choice of the same cost: Random at KCD's sizes, 30 %; KCD, 30 %."
    assert any(note.startswith('KCD, 30 % less a random choice of its sizes: +0.00') for note in found.notes)
    equal = [run for run in summaries if run['cell']['label'] in ('KD', 'Random, 30 %', 'Static, 30 %')]
    (none,) = benchmark.table(benchmark.measure(equal, resamples=100))
    assert none.notes[-1] == 'No policy is better or worse than a random choice of the same cost.'
    few = [run for run in equal if run['seed'] == 100]
    assert benchmark.table(benchmark.measure(few, resamples=100))[0].notes[-1] == 'Too few seeds for a conclusion.'


def test_seeds_are_paired(summaries):
    """A seed that only one of two rows has does not enter their difference."""
    fewer = [run for run in summaries if run['cell']['label'] != 'KCD, 30 %' or run['seed'] > 101]
    record = next(record for record in benchmark.measure(fewer, resamples=100) if record['policy'] == 'KCD')
    assert record['random_n'] == record['n'] == SEEDS - 2


def test_bad_results_are_refused_in_one_line(summaries):
    with pytest.raises(ValueError, match='no finished run of a sweep'):
        benchmark.measure([make_summary('kd', 0, 0.9)])
    with pytest.raises(ValueError, match='benchmark_hard has no finished run of KD'):
        benchmark.measure([run for run in summaries if run['cell']['label'] != 'KD'])
    with pytest.raises(ValueError, match='does not say which test images'):
        benchmark.measure([{**run, 'right': None} for run in summaries])


def test_the_figure_has_every_row(summaries):
    drawn = benchmark.figure(benchmark.measure(summaries, resamples=100))
    compute, amortised = drawn.figure.axes
    assert [text.get_text() for text in drawn.figure.legends[0].get_texts()] == [
        'Random', "Random at KCD's sizes", 'KCD', 'Static'
    ]  # fmt: skip
    assert 'cold cache' in compute.get_xlabel() and 'without' in amortised.get_xlabel()
    assert {text.get_text() for text in compute.texts} == {'Student alone', 'KD'}
    assert len(drawn.data) == len(LABELS) and 'KCD, 30 %: 75.0 % at 30 %' in drawn.alt
