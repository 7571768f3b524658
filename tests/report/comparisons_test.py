"""Comparisons of runs: sweeps and experiments, their tables and their figures."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from kcd_jax.commands.report import main
from kcd_jax.report import drawings, page, tables
from kcd_jax.report.comparisons import rows_of, split
from kcd_jax.report.records import Files
from tests.report.runs import make_summary

# A row's multiply-accumulates in thousands, its policy, and its accuracies by seed.
ROWS = {
    'Student alone': (700, 'none', (0.70, 0.72)),
    'KD': (7000, 'none', (0.80, 0.82)),
    'Random KD, 60 %': (4200, 'random', (0.78, 0.79)),
    'KC-KD, 60 %': (4270, 'kcd', (0.79, 0.81)),
    'Random KD, 80 %': (5600, 'random', (0.79, 0.80)),
    'KC-KD, 80 %': (5600, 'kcd', (0.80, 0.83)),
}


def card(label, place, pair=''):
    return {
        'sweep': 'mine', 'title': 'My sweep', 'label': label, 'pair': pair, 'place': place, 'group': '',
        'references': ['KD', 'Random KD'],
    }  # fmt: skip


def results(pair='', student='resnet8', alone=True):
    found = []
    for place, (label, (macs, policy, accuracies)) in enumerate(ROWS.items()):
        for seed, accuracy in enumerate(accuracies):
            name = 'student' if place == 0 else 'kd' if policy == 'none' else policy
            run = make_summary(name, seed, accuracy, student=student, cell=card(label, place, pair))
            run['cost'] = {**run['cost'], 'macs': {'teacher_forward': 1000 * macs}}
            found += [run] if place or alone else []
    return found


def cells_of(table, header):
    return {row[0]: row[table.headers.index(header)] for row in table.rows}


def test_sweep_table_matches_hand_computed_values():
    (table,) = tables.tables(results()[::-1])
    assert [row[0] for row in table.rows] == ['Teacher', *ROWS], "the sweep's own order"
    assert cells_of(table, 'accuracy %')['KD'] == '81.00 ± 1.41'
    # KC-KD, 60 % against KD: -1, -1; against Random KD, 60 %: +1, +2, standard error 0.5, times t = 12.71: 6.35.
    assert cells_of(table, 'vs KD')['KC-KD, 60 %'] == '-1.00 [-1.00, -1.00]'
    assert cells_of(table, 'vs Random KD')['KC-KD, 60 %'] == '+1.50 [-4.85, +7.85]'
    assert cells_of(table, 'vs Random KD')['KC-KD, 80 %'] == '+2.00 [-10.71, +14.71]'
    assert cells_of(table, 'vs Random KD')['KD'] == '', 'there is none of its budget'
    assert list(cells_of(table, 'cost %').values()) == ['', '10.00', '100.00', '60.00', '61.00', '80.00', '80.00']
    assert any('at the same budget' in note for note in table.notes)
    record = next(one for one in table.records if one['run'] == 'KC-KD, 60 %')
    assert record['vs Random KD'] == pytest.approx(1.5)


def test_unfinished_rows_are_empty():
    cards = [card(label, place) for place, label in enumerate(ROWS)]
    some = [run for run in results() if run['cell']['label'] in ('KD', 'KC-KD, 80 %')]
    (table,) = tables.tables(some, expected=cards)
    for row in table.rows:
        assert any(row[1:]) == (row[0] in ('Teacher', 'KD', 'KC-KD, 80 %'))
    assert table.notes[-1] == 'Empty: not finished.'
    (nothing,) = tables.tables([], expected=cards)
    assert [row[0] for row in nothing.rows] == list(ROWS) and not any(any(row[1:]) for row in nothing.rows)


def test_cost_is_in_samples_without_counted_macs():
    runs = results()
    for run in runs:
        del run['cost']['macs']
    (table,) = tables.tables(runs)
    assert cells_of(table, 'cost %')['KC-KD, 60 %'] == '81.71'
    assert any(note.startswith('cost: samples processed') for note in table.notes)


def test_student_alone_is_in_the_tables_of_all_its_pairs():
    runs = results('a-resnet8') + results('b-resnet8', alone=False) + results('a-resnet14', 'resnet14', alone=False)
    first, second, third = tables.tables(runs)
    assert cells_of(first, 'accuracy %')['Student alone'] == cells_of(second, 'accuracy %')['Student alone'] != ''
    assert 'Student alone' not in cells_of(third, 'accuracy %')


def test_the_teacher_comes_first():
    teacher = make_summary('teacher', 1000, 0.93, student='resnet20', cell=card('Teacher', -1))
    other = make_summary('teacher', 1000, 0.95, student='resnet56', cell=card('Teacher', -1))
    (table,) = tables.tables([other, teacher, *results()])
    assert table.rows[0][:2] == ['Teacher', '93.00']


def test_duplicate_seeds_are_refused():
    with pytest.raises(ValueError, match="row 'Student alone' has seed 0 twice"):
        tables.tables([*results(), results()[0]])


def test_the_figure_shows_the_table():
    (comparison,) = split(results())
    (drawn,) = drawings.of_comparison(comparison, Files())
    (axes,) = drawn.figure.axes
    shown = {container.get_label(): container for container in axes.containers}
    assert list(shown) == ['KD', 'Random KD', 'KC-KD'], 'the student alone has another kind of cost'
    data, _, (bars,) = shown['KC-KD']
    assert list(data.get_ydata()) == pytest.approx([80.0, 81.5])
    # Two lines, one percent of cost apart.
    assert list(data.get_xdata()) == pytest.approx([61.5, 80.5])
    assert list(shown['Random KD'][0].get_xdata()) == pytest.approx([59.5, 79.5])
    assert list(shown['KD'][0].get_xdata()) == pytest.approx([100.0])
    (low, high), *_ = [segment[:, 1] for segment in bars.get_segments()]
    assert high - low == pytest.approx(2 * 100 * 0.02 / 2**0.5), 'one sample standard deviation to each side'
    assert 'multiply-accumulates' in axes.get_xlabel() and axes.get_ylabel() == 'accuracy (%)'
    assert 'KC-KD, 60 % 80.00 % at 61.0 %' in drawn.alt


def test_command_line(tmp_path, capsys):
    folder = tmp_path / 'mine'
    folder.mkdir()
    for place, run in enumerate(results()):
        (folder / f'{place}.json').write_text(json.dumps(run))
    assert main(['table', str(folder), '--format=markdown']) == 0
    assert capsys.readouterr().out.startswith('**My sweep (digits: resnet20 -> resnet8, 6 epochs)**')
    assert main(['figures', str(folder), f'--folder={tmp_path / "figures"}']) == 0
    assert (tmp_path / 'figures' / 'accuracy_against_cost.png').stat().st_size > 10_000
    (other,) = [make_summary('kd', 0, 0.7)]
    both = tables.tables([*tables.collect([folder]), other])
    assert [table.title for table in both] == ['My sweep (digits: resnet20 -> resnet8, 6 epochs)',
                                               'digits: resnet20 -> resnet8, 6 epochs']  # fmt: skip


METHODS = ('at', 'kd', 'crd', 'dkd', 'fitnet', 'nst', 'pkt', 'rkd', 'sp', 'vid')


def methods():
    """Ten methods with two seeds: KD at 80 and 82 %, the others a point apart."""
    made = []
    for place, method in enumerate(METHODS):
        for seed in (0, 1):
            accuracy = 0.80 + 0.02 * seed + 0.01 * (place - 1)
            made.append(make_summary('kd' if method == 'kd' else method, seed, accuracy, method=method, policy='none'))
    return made


def labelled(runs, label, **described):
    """Runs of a sweep's row."""
    return [{**run, 'cell': card(label, 9), 'run': {**run['run'], **described}} for run in runs]


def test_sweeps_then_experiments():
    sweep, experiment = split([*methods(), *results()])
    assert (sweep.sweep, experiment.sweep) == ('mine', '')
    assert sweep.title.startswith('My sweep')
    rows = {row.label: row for row in sweep.rows}
    assert sweep.base(rows['KC-KD, 60 %']).label == 'KD' and sweep.base(rows['KD']) is None
    assert [row.label for row in experiment.rows][:2] == ['KD', 'AT'], 'plain KD comes before other methods'


def test_another_reference():
    (part,) = split([*methods(), make_summary('student', 0, 0.7), make_summary('student', 1, 0.7)], 'student')
    assert part.base(part.rows[1]).label == 'Student alone'


def test_many_rows_get_one_line_each():
    (part,) = split(methods())
    drawn = {one.name: one for one in drawings.of_comparison(part, Files())}['accuracy_against_cost']
    (axes,) = drawn.figure.axes
    assert drawn.title == 'Accuracy of each run' and len(axes.get_yticks()) == len(METHODS)
    assert axes.get_xlabel() == 'accuracy (%); dotted: KD'
    assert 'KD 81.00 % at 100.0 %' in drawn.alt


def test_ratios_of_a_sweep_are_drawn():
    runs = results()
    for ratio, label in ((0.5, 'KC-KD, ratio 0.5'), (0.9, 'KC-KD, ratio 0.9')):
        runs += labelled([make_summary('kcd', 0, 0.7 + ratio / 10)], label, policy={'name': 'kcd', 'ratio': ratio})
    runs += labelled([make_summary('reuse', 0, 0.8, policy='reuse')], 'KD + DS')
    (part,) = split(runs)
    drawn = {one.name: one for one in drawings.of_comparison(part, Files())}
    assert list(drawn) == ['accuracy_against_cost', 'accuracy_against_ratio']
    (axes,) = drawn['accuracy_against_ratio'].figure.axes
    (line,) = [container.lines[0] for container in axes.containers]
    np.testing.assert_allclose(line.get_xdata(), [50, 90])
    np.testing.assert_allclose(line.get_ydata(), [75, 79])
    assert 'KD + DS 80.00 %' in drawn['accuracy_against_cost'].alt


def test_costs_are_in_macs_if_samples_are_not_all():
    runs = methods()[2:4]
    for seed in (0, 1):
        run = make_summary('unix', seed, 0.8)
        run['cost'] |= {'relative_macs': 0.9, 'relative_processed': 0.75}
        runs.append(run)
    for run in runs[:2]:
        run['cost']['relative_macs'] = 1.0
    (drawn,) = drawings.costs(split(runs)[0])
    (axes,) = drawn.figure.axes
    assert axes.get_xlabel().startswith('multiply-accumulates') and 'UNIX-KD 80.00 % at 90.0 %' in drawn.alt


def test_costs_are_in_macs_if_only_some_rows_ask_a_teacher():
    (drawn,) = drawings.costs(split([make_summary(name, 0, 0.75) for name in ('student', 'kd', 'kcd')])[0])
    assert 'Student alone 75.00 % at 42.9 %' in drawn.alt and 'KD 75.00 % at 100.0 %' in drawn.alt
    assert drawn.figure.axes[0].get_xlabel().startswith('multiply-accumulates')


def test_the_page_of_a_sweep_has_its_rows(tmp_path):
    for place, run in enumerate(results()):
        (tmp_path / f'{place}.json').write_text(json.dumps(run))
    source = page.write(tmp_path).read_text(encoding='utf-8')
    root = ElementTree.fromstring(source.removeprefix('<!DOCTYPE html>\n'))
    assert root.find('.//h1').text == 'My sweep (digits: resnet20 -> resnet8, 6 epochs)'.replace('->', '→')
    rows = [cell.text for cell in root.iter('th') if cell.get('scope') == 'row']
    assert rows[:4] == ['Teacher', 'Student alone', 'KD', 'Random KD, 60 %']


def test_long_curves_of_many_runs_show_few(tmp_path):
    rows = rows_of(methods())
    for row in rows:
        row.runs[0]['_file'] = str(tmp_path / row.label / 'summary.json')
        (tmp_path / row.label).mkdir()
        ends = {'kind': 'eval', 'epoch': 1, 'accuracy': row.runs[0]['accuracy'], 'loss': 1.0}
        (tmp_path / row.label / 'metrics.jsonl').write_text(json.dumps(ends) + '\n')
        row.runs[1:] = []
    drawn, _ = drawings.learning_curves(rows, Files())
    shown = [line.get_label() for line in drawn.figure.axes[0].get_lines()]
    assert shown == [f'{name}, n = 1' for name in ('KD', 'AT', 'NST', 'PKT', 'RKD', 'SP', 'VID')]
    assert 'Of 10 rows' in drawn.alt


def test_gallery_is_drawn_from_the_last_condensation(experiment):
    run = next(run for run in tables.collect([experiment]) if run['policy'] == 'kcd')
    images = np.zeros((300, 4, 4, 3), np.uint8)
    value = Files().stages(run)[-1].value
    images[np.argmax(value)] = 255
    (drawn,) = drawings.gallery(run, drawings.Pictures(images), Files())
    (axes,) = drawn.figure.axes
    shown = axes.get_images()
    assert len(shown) == 2 * drawings.MAX_IMAGES and shown[0].get_array().min() == 255
    assert axes.texts[1].get_text() == f'point {np.argmax(value)}\n{value.max():.3f} nats'
    assert drawn.data[0] == {'half': 'most', 'point': np.argmax(value), 'name': axes.texts[1].get_text().split('\n')[0],
                             'value': value.max()}  # fmt: skip
    with pytest.raises(ValueError, match='5 images do not belong'):
        drawings.gallery(run, drawings.Pictures(images[:5]), Files())
    with pytest.raises(ValueError, match='4 labels do not belong'):
        drawings.gallery(run, drawings.Pictures(images, np.zeros(4, int)), Files())


def test_missing_gallery_is_reported(experiment, capsys, tmp_path):
    assert main(['figures', str(experiment), f'--folder={tmp_path / "figures"}']) == 0
    assert capsys.readouterr().err.startswith('no gallery of images: ')


def test_full_sets_are_not_compared(experiment):
    for seed in range(3):
        path = experiment / 'random' / f'trial_{seed}' / 'knowledge' / 'stage_3.npz'
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, 'num_keep': np.int32(300)})
    (drawn,) = drawings.hamming_distances(rows_of(tables.collect([experiment])), Files())
    labels = [text.get_text() for text in drawn.figure.axes[0].get_yticklabels()]
    assert labels == ['KC-KD, seed 0', 'KC-KD, seed 1', 'KC-KD, seed 2']
