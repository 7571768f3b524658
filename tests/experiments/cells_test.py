"""The shipped sweeps: every table of the papers, and that a run of a cell lands in its cell of the table."""

from __future__ import annotations

import pathlib
import sys

import pytest

from kcd_jax.experiments import cells
from kcd_jax.experiments.cells import Knob, Sweep
from kcd_jax.report import paper_results, papers
from tests.report.runs import make_summary

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configs.ablations import SWEEPS  # noqa: E402

PAPERS = [name for name, sweep in SWEEPS.items() if sweep.paper]
RUNNABLE = [name for name in PAPERS if (ROOT / SWEEPS[name].config.partition(':')[0]).exists()]


def test_every_table_is_a_sweep():
    assert len(RUNNABLE) >= 15
    tables = {f'kcd_table{n}' for n in range(1, 8)} | {f'unix_table{n}' for n in range(1, 9)}
    tables |= {f'kr_table{n}' for n in range(1, 5)}
    assert tables == set(PAPERS)
    assert tables | {'fig3a', 'fig4', 'equal_compute'} <= set(SWEEPS)
    digits = {'equal_compute', 'fig3a', 'fig4', 'kcd_table4', 'unix_table5'}
    assert {f'digits_{name}' for name in digits} <= set(SWEEPS)
    assert not any('k=48' in words for words in SWEEPS['digits_unix_table5'].cells.values()), 'of a batch of 20'
    sizes = {name: len(cells.expand(SWEEPS[name])) for name in PAPERS}
    # Rows that are run x pairs; the eight students of the first table's eleven pairs once each.
    assert sizes['kcd_table1'] == 15 * 11 + 8 and sizes['kcd_table4'] == 24 and sizes['unix_table5'] == 60
    # Inception-BN is not among the networks.
    assert sizes['kr_table3'] == 0 and sizes['kr_table1'] == 8


@pytest.mark.parametrize('name', SWEEPS)
def test_results_have_names_of_their_own(name):
    slugs = [cell.slug for cell in cells.expand(SWEEPS[name])]
    assert len(set(slugs)) == len(slugs)
    assert all(slug == slug.lower() and set(slug) <= set('abcdefghijklmnopqrstuvwxyz0123456789_') for slug in slugs)


def summary_of(cell, config):
    """What a run of the config would say of itself."""
    kind = 'student' if config.method.name == 'none' else 'kd'
    return make_summary(
        kind, 0, 0.5, method=config.method.name, policy=config.policy.name, dataset=config.data.name,
        student=config.student.name, teacher=config.teacher.name, epochs=config.epochs, batch=config.batch,
        run={
            **{key: config[key].to_dict() for key in ('method', 'policy', 'weights', 'data')},
            'recipe': {'epochs': config.epochs, 'batch': config.batch, 'logits': config.logits},
        },
    )  # fmt: skip


@pytest.mark.parametrize('name', RUNNABLE)
def test_a_run_lands_in_its_cell(name):
    """One row at the least shows it, and no other row of the table but those that are the same run."""
    sweep = SWEEPS[name]
    table = papers.find(name)
    rows = {row.label: row for row in table.rows}
    for cell in cells.expand(sweep):
        config = cells.config_of(cell, ROOT)
        run = summary_of(cell, config)
        row = rows[cell.label]
        place = next(i for i, c in enumerate(table.columns) if f'{c.teacher}-{c.student}' == cell.pair)
        assert paper_results._belongs(run, row, place, table), (name, cell.label, cell.pair)
        runs = [other for other in table.rows if other.kind in ('run', 'student')]
        assert [other.label for other in runs if paper_results._belongs(run, other, place, table)] == [cell.label]


def test_unix_trains_on_the_rows_of_the_text():
    by_label = {(c.label, c.pair): cells.config_of(c, ROOT) for c in cells.expand(SWEEPS['unix_table3'])}
    first, second = 'wrn_40_2-wrn_16_2', 'resnet32x4-shufflev2'
    assert by_label['UNIXKD+AT', first].policy.k == 36 and by_label['UNIXKD+AT', second].policy.k == 48
    assert by_label['Random+KD+SP', second].policy.k == 50 and by_label['KD+AT', first].method.name == 'at'


def test_pairs_choose_columns():
    chosen = cells.expand(SWEEPS['kcd_table4'], ['vgg13-vgg8'])
    assert len(chosen) == 6 and {cell.pair for cell in chosen} == {'vgg13-vgg8'}
    with pytest.raises(ValueError, match="unknown pair of this sweep 'vgg13-vgg9'.*did you mean 'vgg13-vgg8'"):
        cells.expand(SWEEPS['kcd_table4'], ['vgg13-vgg9'])
    with pytest.raises(ValueError, match="unknown sweep 'kcd_tabl4'.*did you mean 'kcd_table4'"):
        cells.find(SWEEPS, 'kcd_tabl4')


def test_sources_and_transfers():
    found = {(cell.label, cell.pair): cell for cell in cells.expand(SWEEPS['fig4'])}
    assert found['KD + DS', 'wrn_40_2-wrn_16_2'].sources == [('KC-KD', 'wrn_40_2-wrn_16_2')]
    assert found['KD + DS, transferred', 'wrn_40_2-wrn_16_2'].sources == [('KC-KD', 'vgg13-vgg8')]
    assert ('KD + DS, transferred', 'vgg13-vgg8') not in found
    folders = {('KC-KD', 'vgg13-vgg8'): pathlib.Path('runs/here')}
    config = cells.config_of(found['KD + DS, transferred', 'wrn_40_2-wrn_16_2'], ROOT, folders)
    assert config.policy.run == 'runs/here' and config.student.name == 'wrn_16_2'


def test_budgets_make_rows():
    sweep = Sweep('t', 'f.py', {'KD': 'policy=none'}, equal={'KC-KD': Knob('policy=kcd', 'ratio', 0.1, 1.0, 0.1)},
                  budgets=(0.6, 0.825))  # fmt: skip
    found = cells.expand(sweep)
    assert [(c.label, c.group, c.budget) for c in found] == [
        ('KD', '', None), ('KC-KD, 60 %', '60 %', 0.6), ('KC-KD, 82.5 %', '82.5 %', 0.825)
    ]  # fmt: skip
    assert [cell.slug for cell in found] == ['kd', 'kc_kd_60', 'kc_kd_82p5']
    assert cells.with_words(found[1], 'ratio=0.4').config == 'f.py:policy=kcd,ratio=0.4'
    assert found[1].knob.values(64) == pytest.approx([0.1 * n for n in range(1, 11)])
    assert Knob('policy=unix', 'k', 1, None, 1).values(4) == [1, 2, 3, 4]


def test_the_same_run():
    def config(words='', seed=0):
        return cells.config_of(cells.Cell('KD', '', 0, f'configs/digits_kd.py:policy=kcd{words},seed={seed}'), ROOT)

    one = config().to_dict()
    assert cells.same_run(one, config(seed=3).to_dict())
    assert cells.same_run({**one, 'data': {**one['data'], 'dir': '/there'}}, one)
    assert cells.same_run({key: value for key, value in one.items() if key != 'logits'}, one), (
        'a key of a later version'
    )
    assert not cells.same_run(one, config(',ratio=0.5').to_dict())
    assert not cells.same_run(one, config(',teacher.epochs=3').to_dict())
    assert cells.folder_name(config()) == cells.folder_name(config(seed=3)) != cells.folder_name(config(',ratio=0.5'))
    moved = {**one, 'teacher': {**one['teacher'], 'checkpoint': '/there/teacher.pth'}}
    named = {**one, 'teacher': {**one['teacher'], 'checkpoint': 'teacher.pth'}}
    assert cells.same_run(moved, named) and not cells.same_run(moved, one)
