"""The arithmetic of docs/SCALING.md, and its tables."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks.scaling import paper, report
from benchmarks.scaling.collectives import Collective

ROOT = pathlib.Path(__file__).parents[3]
LINK = paper.Link(8, 'a link', 1e9, 1e-6)


def test_the_time_of_a_collective():
    # 3 hops of latency; 7 of the 8 parts of a megabyte cross each link, twice for an all-reduce.
    assert paper.seconds('all-gather', 1_000_000, LINK) == pytest.approx(3e-6 + 875e-6)
    assert paper.seconds('all-reduce', 1_000_000, LINK) == pytest.approx(6e-6 + 1750e-6)


def test_merging_saves_latency_alone():
    found = [Collective('all-reduce', (), 1000, '')] * 10
    apart, merged = paper.program_seconds(found, LINK), paper.merged_seconds(found, LINK)
    assert apart == pytest.approx(10 * 6e-6 + 10 * 1.75e-6) and merged == pytest.approx(6e-6 + 10 * 1.75e-6)


def test_the_table_of_very_many_points():
    cost = paper.table_cost(800, LINK, 30.0)
    assert (cost.table, cost.plan, cost.peak, cost.moved) == (800, 16_000, 24_000, 5_600)
    assert cost.seconds == pytest.approx(2 * (3e-6 + 2.8e-6))
    assert paper.selection_cost(LINK) == (8 * 1024, pytest.approx(8 * (6e-6 + 2 * 7 / 8 * 1024e-9)))


@pytest.mark.parametrize(
    ('collective', 'part'),
    [
        (Collective('all-reduce', ('f32[16]', 'f32[3,3,16,16]'), 9280, 'jit(f)/(conv:gather)'), 'gradients, metrics'),
        (Collective('all-gather', ('s32[64,1]',), 256, 'jit(f)/scatter-add'), 'value table'),
        (Collective('all-reduce', ('s32[64]',), 256, 'jit(f)/gather'), 'value table'),
        (Collective('all-reduce', ('f32[16]', 'f32[16]'), 128, 'jit(f)/bn/reduce_sum'), 'batch statistics'),
    ],
)
def test_what_a_collective_is_for(collective, part):
    assert report.part_of(collective) == part


@pytest.mark.parametrize(
    ('size', 'text'), [(800, '800 B'), (1536, '1.5 KiB'), (45 << 20, '45 MiB'), (3 << 40, '3,072 GiB')]
)
def test_amounts(size, text):
    assert report.amount(size) == text


@pytest.mark.parametrize(('seconds', 'text'), [(0.25, '0.25 s'), (1.9e-3, '1.9 ms'), (13e-6, '13 us')])
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_the_document_has_the_tables_of_the_results():
    """When this fails: `python -m benchmarks.scaling --show=results/scaling.json --write=docs/SCALING.md`."""
    text = (ROOT / 'docs' / 'SCALING.md').read_text()
    found = json.loads((ROOT / 'results' / 'scaling.json').read_text())
    assert {name for _, name, _ in report.BLOCK.findall(text)} == {*report.TABLES}
    assert report.fill(text, found) == text
