"""The benchmark's table and figure, from summaries that were made up."""

from __future__ import annotations

import base64
import copy
import json
import re

import numpy as np
import pytest

from kcd_jax.report import benchmark, benchmark_table
from tests.report.runs import make_summary

POINTS, DRAWS, SEEDS = 60, 4, 10
LABELS = ('Student alone', 'KD', 'Random, 30 %', "Random at KCD's sizes, 30 %", 'KCD, 30 %', 'Static, 30 %')


def summary(label, seed, accuracy, *, sweep='benchmark_hard', rows=None, places=LABELS, **more):
    """A run that classifies `accuracy` of the test images right, most of the same ones for every label."""
    hard = np.random.default_rng(0).random((DRAWS, POINTS)) + 0.05 * np.random.default_rng(seed).random((DRAWS, POINTS))
    right = (hard < np.quantile(hard, accuracy)).reshape(-1)
    group = label[-4:] if label.endswith(' %') else ''
    card = {'sweep': sweep, 'title': 't', 'label': label, 'pair': '', 'place': places.index(label), 'group': group}
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


def notes_of(summaries):
    (found,) = benchmark_table.table(benchmark.measure(summaries, resamples=500))
    return found.notes[2:]


def test_the_tables_say_what_is_concluded(summaries):
    (found,) = benchmark_table.table(benchmark.measure(summaries, resamples=500))
    assert found.title == 'hard' and [row[0] for row in found.rows] == list(LABELS)
    assert "Holm's method for 4 tests (provisional: 4 of 135; without clean, long, noisy, redundant)" in found.notes[0]
    alone, chosen, scheduled, errors, control = found.notes[2:]
    assert alone.startswith(
        'The student alone, on every point, takes 20.0 % of the compute of KD. Its accuracy is -20.'
    )
    assert alone.endswith('above that of 0 of the 4 rows with a budget.')
    assert chosen == 'Policies, against the random choice: Better: KCD, 30 %.'
    assert scheduled == (
        "Random points at other times or sizes, against the random choice: Better: Random at KCD's sizes, 30 %. "
        'No difference was seen in the other one.'
    )
    assert control.startswith("KCD, 30 % minus Random at KCD's sizes: +0.00 [+0.00, +0.00], adjusted p 1.000")
    assert re.fullmatch(
        r"Not in the protocol: the bootstrap's standard errors are \d\.\d\d times the unbiased ones \(median\)\. "
        r'With these every test decides the same\.', errors
    )  # fmt: skip
    equal = [run for run in summaries if run['cell']['label'] in ('KD', 'Random, 30 %', 'Static, 30 %')]
    scheduled, errors = notes_of(equal)
    assert scheduled.endswith('at other times or sizes, against the random choice: No difference was seen in any of 1.')
    assert errors.endswith('every test decides the same.')
    few = [run for run in equal if run['seed'] == 100]
    assert notes_of(few) == ['Too few seeds for a conclusion.']


@pytest.mark.parametrize('extra', [-40, 40])
def test_nothing_is_concluded_at_another_cost(summaries, extra):
    """KCD at a cost of four points less, and of four more, than the random choice."""
    summaries = copy.deepcopy(summaries)
    for run in summaries:
        if run['cell']['label'] == 'KCD, 30 %':
            run['cost']['macs'] = {
                **run['cost']['macs'],
                'teacher_forward': run['cost']['macs']['teacher_forward'] + 10 * extra,
            }
    assert notes_of(summaries)[1] == (
        'Policies, against the random choice: Nothing is concluded where the cost differs by over 3 points: KCD, 30 %.'
    )


def test_runs_of_other_settings_or_teachers_are_refused(summaries):
    summaries = copy.deepcopy(summaries)
    one, first = summaries[0], {'policy': {'name': 'none'}, 'recipe': {'optim': {'lr': 0.05}}}
    for run in summaries:
        run['run'] = first
    other = {**one, 'seed': 100 + SEEDS, 'run': {'policy': {'name': 'none'}, 'recipe': {'optim': {'lr': 0.1}}}}
    with pytest.raises(ValueError, match='runs differ: recipe.optim.lr is 0.05 there and 0.1 here; give those of one'):
        benchmark.measure([*summaries, other])
    for run, accuracy in zip(summaries, (0.9, 0.8), strict=False):
        run['teacher'] = {'network': 'resnet20', 'accuracy': accuracy}
    with pytest.raises(ValueError, match=r'the runs had teachers of 90.00 % \(.*\), 80.00 % \(.*\); give those of one'):
        benchmark.measure(summaries)


def test_the_table_names_what_made_it(summaries):
    summaries = copy.deepcopy(summaries)
    for run in summaries:
        run |= {'versions': {'jax': '0.10.1'}, 'device': {'kind': 'cpu'}, 'commit': f'{run["seed"] % 2}' * 40}
    (found,) = benchmark_table.table(benchmark.measure(summaries, resamples=50))
    assert found.notes[1] == 'JAX 0.10.1 on cpu; commits 0000000, 1111111.'
    assert 'one teacher (resnet20, the file trained, 93.12 %), whose variation' in found.notes[0]


def test_the_claim_is_judged_at_seventy_per_cent():
    """Without a loss by its interval; owed to KCD only if its control is worse."""
    labels = ('KD', 'Random, 70 %', f'{benchmark.SIZED}, 70 %', 'KCD, 70 %')

    def runs(*accuracies):
        return [
            summary(label, seed, accuracy, places=labels)
            for label, accuracy in zip(labels, accuracies, strict=True) for seed in range(100, 110)
        ]  # fmt: skip

    def said(*accuracies):
        return next(note for note in notes_of(runs(*accuracies)) if note.startswith('Condensing'))

    one = [run for run in runs(0.8, 0.7, 0.7, 0.8) if run['cell']['label'] != labels[3] or run['seed'] == 100]
    assert not any(note.startswith('Condensing') for note in notes_of(one)), 'one seed has no interval'
    assert said(0.8, 0.7, 0.7, 0.8).endswith('less than 0.5 points, and KCD owes that to what it ranks and mixes.')
    assert said(0.8, 0.7, 0.8, 0.8).endswith('that this is more than its sizes is not shown.')
    assert said(0.8, 0.7, 0.7, 0.75).startswith('Condensing to 70 % without a loss is not shown: the interval')


def test_what_is_missing_is_said(summaries):
    """Seeds, rows, tests; seeds that explore are left out beside others, and conclude nothing alone."""
    labels = {run['cell']['label'] for run in summaries} - {'KCD, 30 %'}
    some = [run for run in summaries if run['cell']['label'] in labels or run['seed'] > 103]
    assert notes_of(some)[-1] == 'Fewer seeds: KCD, 30 % (6 seeds).'
    explored = [{**run, 'seed': run['seed'] - 100} for run in summaries]
    assert 'Seeds below 100 explore: nothing is concluded.' in notes_of(explored)
    assert benchmark.measure(explored + summaries, 100) == benchmark.measure(summaries, 100)
    described = [{**run, 'cell': {**run['cell'], 'sweep': 'benchmark_cifar100'}} for run in summaries]
    assert 'Descriptive, with 10 seeds: no test is made, and nothing is concluded.' in notes_of(described)
    assert all(record['random_p'] is None for record in benchmark.measure(described, 100))
    tables = benchmark_table.table(benchmark.measure([*described, *summaries], 100))
    assert [found.title for found in tables] == ['hard', 'cifar100'], 'what is only described comes last'
    hard, cifar100 = tables
    assert 'p' in hard.headers and 'p' not in cifar100.headers and 'p: of' not in cifar100.notes[0]
    assert '95 %' not in ' '.join(cifar100.notes) and '(smallest to largest over the seeds)' in cifar100.notes[0]
    assert re.fullmatch(r'[+-]\d\.\d\d \([+-]\d\.\d\d to [+-]\d\.\d\d\)', cifar100.rows[4][3])


def test_seeds_are_paired(summaries):
    """A seed that only one of two rows has does not enter their difference."""
    fewer = [run for run in summaries if run['cell']['label'] != 'KCD, 30 %' or run['seed'] > 101]
    record = next(record for record in benchmark.measure(fewer, resamples=100) if record['policy'] == 'KCD')
    assert record['random_n'] == record['n'] == SEEDS - 2
    half = [run for run in summaries if run['cell']['label'] != 'Random, 30 %' or run['seed'] < 104]
    (found,) = benchmark_table.table(benchmark.measure(half, resamples=100))
    assert all(row[3].endswith('(4 pairs)') for row in found.rows if row[0] in ('KCD, 30 %', 'Static, 30 %'))


def test_bad_results_are_refused_in_one_line(summaries):
    with pytest.raises(ValueError, match='no finished run of a sweep'):
        benchmark.measure([make_summary('kd', 0, 0.9)])
    with pytest.raises(ValueError, match='benchmark_hard has no finished run of KD'):
        benchmark.measure([run for run in summaries if run['cell']['label'] != 'KD'])
    with pytest.raises(ValueError, match='benchmark_hard, KD has seed 100 twice'):
        benchmark.measure([*summaries, next(run for run in summaries if run['cell']['label'] == 'KD')])
    other = [{**run, 'batch': run['batch'] + run['seed'] % 2} for run in summaries]
    with pytest.raises(ValueError, match='benchmark_hard, Student alone: runs differ: epochs, batch'):
        benchmark.measure(other)
    with pytest.raises(ValueError, match='does not say which test images'):
        benchmark.measure([{**run, 'right': None} for run in summaries])


@pytest.mark.parametrize(
    'damage',
    [
        {'cell': {}},
        {'cost': None},
        {'versions': {'flax': '1'}},
        {'right': [1]},
        {'right': {'points': 7, 'images': 240, 'bits': ''}},
    ],
)
def test_a_file_that_is_not_whole_is_named(summaries, damage):
    broken = {**summaries[0], 'versions': {'jax': '1'}, 'device': {'kind': 'cpu'}, '_file': 'results/x.json', **damage}
    with pytest.raises(ValueError, match=r'results/x.json is (not a whole result of a sweep|damaged)') as caught:
        benchmark.measure([broken, *summaries[1:]])
    assert '\n' not in str(caught.value)


def test_answers_that_do_not_give_the_accuracy_are_refused(summaries):
    short = {**summaries[0]['right'], 'bits': summaries[0]['right']['bits'][:8]}
    with pytest.raises(ValueError, match='is damaged: its answers by test image do not give its accuracy'):
        benchmark.measure([{**summaries[0], 'right': short}, *summaries[1:]])


def test_the_figure_has_every_row(summaries):
    drawn = benchmark_table.figure(benchmark.measure(summaries, resamples=100))
    compute, amortised = drawn.figure.axes
    assert [text.get_text() for text in drawn.figure.legends[0].get_texts()] == [
        'Random', "Random at KCD's sizes", 'KCD', 'Static', 'Student alone', 'KD'
    ]  # fmt: skip
    assert 'without a cache' in compute.get_xlabel() and 'without' in amortised.get_xlabel()
    assert amortised.get_xscale() == 'log', 'rows without a teacher cost a fraction of the others'
    assert len(drawn.data) == len(LABELS) and 'KCD, 30 %: 75.0 % at 30 %' in drawn.alt


def test_the_figure_is_the_same_file_for_the_same_results(summaries, tmp_path):
    records = benchmark.measure(summaries, resamples=50)
    for form in ('svg', 'pdf', 'png'):
        for name in ('one', 'two'):
            benchmark_table.figure(records).save(tmp_path / f'{name}.{form}')
        assert (tmp_path / f'one.{form}').read_bytes() == (tmp_path / f'two.{form}').read_bytes()


def test_the_unbiased_error_is_told_where_it_decides_otherwise(summaries):
    """A difference that only the unbiased error tells from chance."""
    records = benchmark.measure(summaries, resamples=500)
    for record in records:
        if record['run'] == 'KCD, 30 %':
            record |= {'random_p': 0.06, 'random_unbiased_p': 0.04}
    (found,) = benchmark_table.table(records)
    assert any(note.endswith('With these the test decides otherwise for KCD, 30 %.') for note in found.notes)


def test_the_cost_with_an_own_cache_is_that_of_the_answers_it_computes(summaries, tmp_path):
    rows = {'KD': {'asked': 1000, 'served': 750}, 'Random, 30 %': {'asked': 300, 'served': 30}}
    rows['Student alone'] = {'asked': 0}
    (tmp_path / 'own.json').write_text(json.dumps({'sweeps': {'benchmark_hard': rows}}))
    own = benchmark.read_own_cache(tmp_path / 'own.json')
    records = {record['run']: record for record in benchmark.measure(summaries, 50, own)}
    full = 8000 + 2000
    assert records['KD']['own_cache'] == pytest.approx((2000 + 8 * 250) / full)
    assert records['Random, 30 %']['own_cache'] == pytest.approx((600 + 8 * 270) / full)
    assert records['Student alone']['own_cache'] == pytest.approx(0.2) and records['KCD, 30 %']['own_cache'] is None
    (found,) = benchmark_table.table([*records.values()])
    assert found.headers[-3:] == ['compute %', 'own cache %', 'amortised %'] and found.rows[1][-2] == '40.0'
    assert 'own cache: the same for one seed with a cache that starts empty' in found.notes[0]
    (plain,) = benchmark_table.table(benchmark.measure(summaries, 50))
    assert 'own cache' not in ' '.join([*plain.headers, *plain.notes])
    with pytest.raises(ValueError, match='the own caches are of benchmark_cleen, the runs of benchmark_hard; '):
        benchmark.measure(summaries, 50, {'benchmark_cleen': rows})
    for damaged in (
        '{',
        '{"sweeps": {}}',
        '{"sweeps": {"a": {"b": {}}}}',
        '{"sweeps": {"a": {"b": 3}}}',
        '{"sweeps": {"a": 3}}',
        '[]',
    ):
        (tmp_path / 'bad.json').write_text(damaged)
        with pytest.raises(ValueError, match=r'bad.json is no file of python -m benchmarks.own_cache; give one'):
            benchmark.read_own_cache(tmp_path / 'bad.json')


def test_the_summary_has_a_column_per_sweep(summaries):
    described = [{**run, 'cell': {**run['cell'], 'sweep': 'benchmark_cifar100'}} for run in summaries]
    records = benchmark.measure([*summaries, *described], 200)
    found = benchmark_table.summary(records)
    assert found.headers == ['difference', 'hard', 'cifar100']
    assert 'Student alone minus KD' in found.to_text() and found.to_csv().startswith('difference,benchmark_hard,')
    assert found.rows == [['KCD', '+5.0*', '+5.0'], ['Student alone minus KD', '-20.0', '-20.0']]
    assert 'same compute (hard 30 %, cifar100 30 %)' in found.notes[0]
    assert found.notes[0].endswith('cifar100: no tests.')
    wide = [{**one, 'budget': one['budget'] and '100 %'} for one in records if one['policy'] == 'Static']
    assert benchmark_table.summary([*records, *wide]).notes == found.notes, 'by size, not as text'
    dearer = [{**one, 'compute': one['compute'] + 0.04 * (one['policy'] == 'KCD')} for one in records]
    assert benchmark_table.summary(dearer).rows[0][1] == '+5.0', 'nothing is concluded at another cost'
