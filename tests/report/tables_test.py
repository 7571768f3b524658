from __future__ import annotations

import csv
import io
import json
import random

import pytest

from kcd_jax.commands.report import main
from kcd_jax.report import tables
from tests.report.runs import make_summary


def table_of(summaries, reference='kd'):
    """The only table of the summaries."""
    (table,) = tables.tables(summaries, reference)
    return table


def column(table, header):
    place = table.headers.index(header)
    return {row[0]: row[place] for row in table.rows}


def test_table_matches_hand_computed_values(experiment):
    table = table_of(tables.collect([experiment]))
    assert table.title == 'digits: resnet20 -> resnet8, 6 epochs'
    assert [row[0] for row in table.rows] == ['Teacher', 'Student alone', 'KD', 'Random KD', 'KC-KD']
    # Sample standard deviations: .70 .72 .71 -> 0.01; .75 .77 .76 -> 0.01.
    assert list(column(table, 'accuracy %').values()) == [
        '93.12',
        '71.00 ± 1.00',
        '75.00 ± 1.00',
        '74.00 ± 1.00',
        '76.00 ± 1.00',
    ]
    # KC-KD minus KD by seed: +1, +2, 0; mean +1, sd 1, standard error 1/sqrt(3) = 0.577; times t = 4.303: 2.48.
    # Random: -1, 0, -2. Student: -4, -3, -5.
    assert list(column(table, 'vs KD').values()) == [
        '',
        '-4.00 [-6.48, -1.52]',
        '',
        '-1.00 [-3.48, +1.48]',
        '+1.00 [-1.48, +3.48]',
    ]
    assert 'pairs' not in table.headers, 'every seed has its pair'
    assert list(column(table, 'n').values()) == ['', '3', '3', '3', '3']
    assert list(column(table, 'best %').values()) == ['94.12', '72.00', '76.00', '75.00', '77.00']
    assert list(column(table, 'cost %').values()) == ['', '100.00', '100.00', '81.71', '81.71']
    # 3,000 of KD's 7,000 without a teacher; 5,719 of 7,000.
    assert list(column(table, 'MAC %').values()) == ['', '42.86', '100.00', '81.70', '81.70']
    assert list(column(table, 'samples').values()) == ['1,728', '1,728', '1,728', '1,412', '1,412']
    assert list(column(table, 'seconds').values()) == ['16.0', '17.0', '17.0', '17.0', '17.0']
    assert column(table, 'agree %')['KC-KD'] == '88.00'


def test_order_of_files_does_not_matter(experiment):
    summaries = tables.collect([experiment])
    shuffled = random.Random(0).sample(summaries, len(summaries))
    assert table_of(shuffled).rows == table_of(summaries).rows


def test_one_seed_shows_no_deviation():
    table = table_of([make_summary('kd', 0, 0.74), make_summary('kcd', 0, 0.75)])
    assert column(table, 'accuracy %') == {'Teacher': '93.12', 'KD': '74.00', 'KC-KD': '75.00'}
    assert column(table, 'vs KD')['KC-KD'] == '+1.00'
    assert column(table, 'n')['KC-KD'] == '1'
    assert any(note.startswith('n = 1:') for note in table.notes)


def test_variants_keep_their_names_and_are_not_the_reference():
    runs = [
        make_summary('crd+kd', 0, 0.76, method='crd', policy='none'),
        make_summary('own', 0, 0.75, policy='none'),
        make_summary('kd', 0, 0.74),
        make_summary('student', 0, 0.71),
        {**make_summary('student', 0, 0.72), 'name': 'student-wide', 'student': 'wide'},
    ]
    table, other = tables.tables(runs, 'student')
    expected = {'Teacher': '', 'Student alone': '', 'KD': '+3.00', 'CRD+KD': '+5.00', 'own': '+4.00'}
    assert column(table, 'vs Student alone') == expected
    assert column(table_of(runs[:4]), 'vs KD')['own'] == '+1.00'
    assert [row[0] for row in other.rows] == ['Student alone']


def test_pairs_are_by_seed_not_by_place():
    runs = [make_summary('kd', seed, accuracy) for seed, accuracy in ((0, 0.1), (1, 0.5), (2, 0.7))]
    runs += [make_summary('kcd', seed, accuracy) for seed, accuracy in ((2, 0.8), (1, 0.6))]
    runs += [make_summary('random', seed, 0.5) for seed in (1, 5)]
    table = table_of(runs)
    assert column(table, 'vs KD')['KC-KD'] == '+10.00 [+10.00, +10.00]'
    assert (column(table, 'n')['KC-KD'], column(table, 'pairs')['KC-KD']) == ('2', '2')
    assert (column(table, 'n')['Random KD'], column(table, 'pairs')['Random KD']) == ('2', '1')


def test_cells_that_were_not_measured_are_empty():
    table = table_of([make_summary('kcd', 0, 0.75, agreement=None, seconds={})])
    assert [row[0] for row in table.rows] == ['Teacher', 'KC-KD']
    assert column(table, 'seconds')['KC-KD'] == column(table, 'agree %')['KC-KD'] == ''
    assert not any(header.startswith('vs') for header in table.headers), 'there is no KD to compare with'


def test_names_follow_the_method():
    runs = [make_summary(name, 0, 0.7, method='crd') for name in ('kd', 'random', 'kcd', 'unix', 'mine')]
    table = table_of(runs)
    assert [row[0] for row in table.rows[1:]] == ['CRD', 'Random CRD', 'KC-CRD', 'UNIX-CRD', 'mine CRD']
    assert 'vs CRD' in table.headers


def test_variants_of_a_policy_are_rows_of_their_own():
    runs = [make_summary('kd', 0, 0.74)]
    runs += [
        make_summary('kcd', 0, 0.7 + ratio / 100, run={'seed': 0, 'policy': {'name': 'kcd', 'ratio': ratio}})
        for ratio in (0.7, 0.3)
    ]
    assert [row[0] for row in table_of(runs).rows] == [
        'Teacher',
        'KD',
        'KC-KD (ratio 0.7)',
        'KC-KD (ratio 0.3)',
    ]


def test_duplicate_seeds_are_refused():
    with pytest.raises(ValueError, match=r"run 'kd' has seed 0 twice \(one and another\); give one of them"):
        table_of([make_summary('kd', 0, 0.74), make_summary('kd', 0, 0.75)])


def test_experiments_are_kept_apart():
    runs = [
        make_summary('kd', 0, 0.74),
        make_summary('kd', 0, 0.5, dataset='cifar100'),
        make_summary('student', 0, 0.7),
    ]
    first, second = tables.tables(runs)
    assert [row[0] for row in first.rows] == ['Teacher', 'Student alone', 'KD']
    assert [row[0] for row in second.rows] == ['Teacher', 'KD']


def test_nothing_finished():
    with pytest.raises(ValueError, match='no finished run'):
        tables.tables([])


def test_text_fits_a_terminal(experiment):
    summaries = tables.collect([experiment])
    for summary in summaries:
        summary['cost'] = {**summary['cost'], 'processed_samples': 11_996_160}
        summary['seconds'] = {'total': 123456.0}
    text = table_of(summaries).to_text()
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()
    assert 'Student alone' in text and '75.00 +- 1.00' in text and '12.00 M' in text
    narrow = table_of(summaries).to_text(width=90)
    assert max(map(len, narrow.splitlines())) <= 90


def test_markdown_and_csv(experiment):
    table = table_of(tables.collect([experiment]))
    lines = table.to_markdown().splitlines()
    assert lines[0] == '**digits: resnet20 -> resnet8, 6 epochs**'
    assert {line.count('|') for line in lines if line.startswith('|')} == {11}
    assert '| KC-KD | 76.00 ± 1.00 | 3 | +1.00 [-1.48, +3.48] | 77.00 | 81.71 | 81.70 | 1,412 | 17.0 | 88.00 |' in lines
    row = list(csv.DictReader(io.StringIO(table.to_csv())))[-1]
    assert (
        row['run'] == 'KC-KD'
        and row['accuracy_mean'] == '76'
        and row['accuracy_sd'] == '1'
        and (row['accuracy_low'], row['accuracy_high']) == ('73.5159', '78.4841')
        and not [key for key in row if key.endswith(' se')]
        and row['vs KD low'] == '-1.48414'
        and row['vs KD n'] == '3'
    )
    assert row['relative_processed'] == '0.8171' and row['macs'] == '5719' and row['seeds'] == '0 1 2'


def test_collect_reads_folders_files_and_copies(experiment, tmp_path):
    everything = tables.collect([experiment])
    assert len(everything) == 13
    results = tmp_path / 'results'
    results.mkdir()
    for place, file in enumerate(sorted(experiment.glob('*/trial_*/summary.json'))):
        (results / f'{place}.json').write_text(file.read_text())
    (results / 'index.json').write_text('["0.json"]')
    assert len(tables.collect([results])) == 12
    assert len(tables.collect([experiment, results])) == 13, 'a copy is no second run'
    assert len(tables.collect([experiment / 'kd' / 'trial_0' / 'summary.json'])) == 1


def test_damaged_files_are_named(experiment):
    (experiment / 'kd' / 'trial_1' / 'summary.json').write_text('{"method": "kd", ')
    (experiment / 'kd' / 'trial_2' / 'summary.json').write_text('{"method": "kd"}')
    with pytest.raises(ValueError, match=r'kd/trial_1/summary.json is damaged .*; remove it or run that run again'):
        tables.collect([experiment])
    damaged = []
    assert len(tables.collect([experiment], damaged)) == 11
    assert len(damaged) == 2 and 'policy, seed, accuracy missing' in damaged[1]
    with pytest.raises(ValueError, match='does not exist'):
        tables.collect([experiment / 'nowhere'])


def test_non_numbers_are_missing():
    assert tables.number({'a': {'b': float('nan')}}, 'a', 'b') is None
    assert (
        tables.number({'a': True}, 'a') is None
        and tables.number({}, 'a', 'b') is None
        and tables.number({'a': 2}, 'a') == 2.0
    )


def test_command_line(experiment, capsys, tmp_path):
    assert main(['table', str(experiment)]) == 0
    assert 'KC-KD' in capsys.readouterr().out
    assert main(['table', str(experiment), '--format=csv', f'--output={tmp_path / "t.csv"}']) == 0
    assert (tmp_path / 't.csv').read_text().startswith('run,name,method')
    capsys.readouterr()
    (experiment / 'kd' / 'trial_0' / 'summary.json').write_text('')
    assert main(['table', str(experiment)]) == 0
    assert 'left out: ' in capsys.readouterr().err
    assert main(['table', str(tmp_path / 'nothing')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert json.loads((experiment / 'kcd' / 'trial_0' / 'summary.json').read_text())['name'] == 'kcd'


def test_a_selection_is_compared_with_its_own_method():
    runs = [make_summary('kd', seed, 0.74) for seed in (0, 1)]
    runs += [make_summary('crd', seed, 0.75, method='crd', policy='none') for seed in (0, 1)]
    runs += [make_summary('kcd', seed, 0.77, method='crd') for seed in (0, 1)]
    table = table_of(runs)
    assert column(table, 'vs base') == {
        'Teacher': '',
        'KD': '',
        'CRD': '+1.00 [+1.00, +1.00]',
        'KC-CRD': '+2.00 [+2.00, +2.00]',
    }
    assert any(note.startswith('vs base (of a selection: its method') for note in table.notes)


def test_a_scoring_pass_is_counted():
    unix = make_summary('unix', 0, 0.76)
    # 4,000 + 1,000 + 2,000 at three quarters, and a forward of the whole batch.
    passes = {'teacher_forward': 3000, 'student_forward': 750, 'student_backward': 1500, 'scoring_forward': 1000}
    unix['cost'] = {**unix['cost'], 'relative_processed': 0.75, 'macs': passes}
    table = table_of([make_summary('kd', 0, 0.75), unix])
    assert column(table, 'MAC %') == {'Teacher': '', 'KD': '100.00', 'UNIX-KD': '89.29'}
    assert column(table, 'cost %')['UNIX-KD'] == '75.00'
    assert any(note.startswith('MAC: ') for note in table.notes)
    assert max(map(len, table.to_text().splitlines())) <= 100
    assert 'MAC %' not in table_of([make_summary('kd', 0, 0.75)]).headers


def test_counted_cost_is_of_the_same_method_on_every_point():
    """A method's own phases do not shrink: its samples fall more than its products."""
    sskd = make_summary('kcd', 0, 0.76, method='sskd')
    sskd['cost'] = {**sskd['cost'], 'relative_processed': 0.8171, 'relative_macs': 0.8537}
    plain = make_summary('kcd', 0, 0.76)
    plain['cost'] = {**plain['cost'], 'relative_macs': plain['cost']['relative_processed']}
    assert 'MAC %' not in table_of([plain]).headers
    table = table_of([sskd])
    assert list(column(table, 'MAC %').values())[-1] == '85.37'
    assert any('relative to the same method on every point' in note for note in table.notes)


def macs_of(*runs):
    """(the column of multiply-accumulates, its note) of a table; (None, None) without one."""
    table = table_of(runs)
    notes = [note for note in table.notes if note.startswith('MAC: ')]
    return (column(table, 'MAC %'), notes[0]) if 'MAC %' in table.headers else (None, None)


def test_counted_cost_is_of_kd_if_only_some_rows_ask_a_teacher():
    student, kd, kcd, crd = (
        make_summary('student', 0, 0.7), make_summary('kd', 0, 0.75), make_summary('kcd', 0, 0.75),
        make_summary('crd', 0, 0.75, method='crd', policy='none'),
    )  # fmt: skip
    crd['cost'] |= {'macs': {**crd['cost']['macs'], 'method': 1400}, 'macs_full': 8400, 'relative_macs': 1.0}
    found, note = macs_of(student, crd, kd)
    assert found == {'Teacher': '', 'Student alone': '42.86', 'KD': '100.00', 'CRD': '120.00'}
    assert note.endswith('relative to KD on every point.')
    found, note = macs_of(student, kcd)
    assert found['KC-KD'] == '81.70' and note.endswith('relative to KD on every point.'), 'which was not run'
    found, note = macs_of(student, crd)
    assert found['Student alone'] == '35.71' and note.endswith('relative to CRD on every point.')
    kd['cost']['macs']['teacher_forward'] = 0
    assert macs_of(student, kd) == (None, None), 'the teacher does not say what it computes'
    assert macs_of(kd, kcd, crd) == macs_of(student) == (None, None), 'all ask a teacher, or none does'


def test_summaries_without_counted_costs_still_make_a_table():
    runs = [make_summary('student', 0, 0.7), make_summary('kd', 0, 0.75)]
    unix = make_summary('unix', 0, 0.8)
    unix['cost']['macs']['scoring_forward'] = 1000
    assert column(table_of([unix]), 'MAC %')['UNIX-KD'] == '100.00', 'there is nothing that it is relative to'
    for missing in ('macs_full', 'macs'):
        for run in runs:
            del run['cost'][missing]
        table = table_of(runs)
        assert 'MAC %' not in table.headers and column(table, 'cost %')['Student alone'] == '100.00'


CHANCE = 'No policy differs from the random choice by more than two standard errors (paired over seeds).'


def against_random(*differences, policy='kcd', reference='random'):
    """The notes of a table of a random choice, KD, which is far better, and another row; a difference per seed."""
    runs = []
    for seed, gap in enumerate(differences):
        row = make_summary(policy, seed, 0.7 + gap / 100, method='kd', policy=policy)
        runs += [make_summary('random', seed, 0.7), make_summary('kd', seed, 0.9), row]
    return table_of(runs, reference).notes


def test_a_table_says_that_no_policy_differs_from_the_random_choice():
    # Mean 2, standard error 1/sqrt(3); mean 1, standard error 1; mean -2, standard error 1/sqrt(3).
    assert CHANCE not in against_random(1, 2, 3)
    assert CHANCE in against_random(0, 2)
    assert CHANCE not in against_random(-1, -2, -3)
    assert CHANCE not in against_random(0, 2, reference='kd'), 'it is not compared with a random choice'
    (single,) = [note for note in against_random(0) if 'claim' in note or note == CHANCE]
    assert single.startswith('n = 1:')
    two_rows = [make_summary(name, seed, 0.7 + seed / 10) for name in ('random', 'kd') for seed in (0, 1)]
    assert CHANCE not in table_of(two_rows, 'random').notes, 'there is no policy'


def test_a_sweep_says_that_no_policy_differs_from_the_random_choice_of_its_budget():
    def notes(*accuracies):
        card = {'sweep': 's', 'title': 'S', 'pair': '', 'group': '', 'references': ['KD', 'Random KD']}
        runs = []
        for seed in (0, 1):
            rows = {'KD': ('kd', 0.9), 'Random KD, 60 %': ('random', 0.7), 'KC-KD, 60 %': ('kcd', accuracies[seed])}
            for place, (label, (name, accuracy)) in enumerate(rows.items()):
                runs.append(make_summary(name, seed, accuracy, cell={**card, 'label': label, 'place': place}))
        return table_of(runs).notes

    assert CHANCE in notes(0.7, 0.72) and CHANCE not in notes(0.72, 0.73)


def test_columns_move_closer_before_they_continue_below():
    table = tables.Table('t', ['run', 'a', 'b', 'c'], [['Row', *3 * ['xxxxxxxx']]])
    assert table.to_text(33).splitlines()[-1] == 'Row  xxxxxxxx  xxxxxxxx  xxxxxxxx'
    assert table.to_text(32).splitlines()[-1] == 'Row xxxxxxxx xxxxxxxx xxxxxxxx'
    assert table.to_text(29).splitlines()[-1] == 'Row  xxxxxxxx'


def test_shorter_runs_belong_to_the_same_experiment():
    """Phases before the main one, or a policy that trains for fewer epochs, change the epochs of a run."""
    kd, short = (make_summary(name, 0, 0.75, run={'recipe': {'epochs': 6}}) for name in ('kd', 'short'))
    short['epochs'] = 5
    assert [row[0] for row in table_of([kd, short]).rows] == ['Teacher', 'KD', 'short KD']


def test_a_teacher_whose_accuracy_was_not_measured_is_no_second_one():
    runs = [make_summary('kd', seed, 0.74) for seed in (0, 1)] + [make_summary('kcd', seed, 0.75) for seed in (0, 1)]
    for change, told in ({'accuracy': None}, False), ({'accuracy': 0.5}, True):
        changed = [{**runs[0], 'teacher': {**runs[0]['teacher'], **change}}, *runs[1:]]
        assert any('different teachers' in note for note in table_of(changed).notes) == told
