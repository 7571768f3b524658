"""The tables of docs/SCALING.md, from what `python -m benchmarks.scaling` read out of the compiled programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scaling import paper
from benchmarks.scaling.collectives import Collective

POINTS = (50_000, 1_281_167, 100_000_000, 1_000_000_000)
BLOCK = re.compile(r'(<!-- scaling: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def part_of(collective: Collective) -> str:
    """What a collective of a training step is for."""
    if collective.kind == 'all-gather' or collective.source.endswith('/gather'):
        return 'value table'
    # Kernels have two axes or more; the gradients of scale and shift are the sums that the statistics need anyway.
    return 'gradients, metrics' if any(',' in shape for shape in collective.shapes) else 'batch statistics'


def _collectives(program: Mapping[str, Any]) -> list[Collective]:
    return [Collective(**{**entry, 'shapes': tuple(entry['shapes'])}) for entry in program['collectives']]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def amount(size: float) -> str:
    """'1.07 MiB' of bytes."""
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024 or unit == 'GiB':
            break
        size /= 1024
    return f'{size:,.0f} {unit}' if unit == 'B' else f'{size:,.3g} {unit}' if size < 1000 else f'{size:,.0f} {unit}'


def duration(seconds: float) -> str:
    """'0.31 ms'."""
    return f'{seconds:,.2g} s' if seconds >= 0.1 else f'{1e3 * seconds:,.2g} ms' if seconds >= 1e-4 else (
        f'{1e6 * seconds:,.2g} us'
    )  # fmt: skip


def collectives_of(found: Mapping[str, Any]) -> str:
    """What was read: collectives of each program, by what they are for."""
    rows = []
    for program in found['programs']:
        parts: dict[tuple[str, str], list[int]] = {}
        for collective in _collectives(program):
            part = part_of(collective) if 'batch' in program else 'values and visits'
            parts.setdefault((part, collective.kind), []).append(collective.bytes)
        rows += [
            [program['name'], part, kind, f'{len(sizes)}', amount(sum(sizes))] for (part, kind), sizes in parts.items()
        ]
    return _markdown(['program', 'for', 'collective', 'count', 'bytes'], rows)


def steps_on_paper(found: Mapping[str, Any]) -> str:
    """A training step and a condensation on more devices."""
    rows = []
    for program in found['programs']:
        if 'batch' not in program:
            continue
        moved = _collectives(program)
        for link in paper.LINKS:
            table = paper.table_cost(program['num_points'], link, found['peak_bytes_a_point'])
            rows.append(
                [
                    program['name'].removeprefix('step, '),
                    f'{link.devices}',
                    f'{max(program["batch"], link.devices)}',
                    amount(sum(c.bytes for c in moved)),
                    duration(paper.program_seconds(moved, link)),
                    duration(paper.merged_seconds(moved, link)),
                    f'{amount(table.moved)}, {duration(table.seconds)}',
                ]
            )
    header = ['pair', 'devices', 'batch', 'a step', 'one by one', 'merged', 'a condensation']
    return _markdown(header, rows)


def tables_on_paper(found: Mapping[str, Any]) -> str:
    """The value table of very many points."""
    rows = []
    for num_points in POINTS:
        for link in paper.LINKS:
            cost = paper.table_cost(num_points, link, found['peak_bytes_a_point'])
            size, spent = paper.selection_cost(link)
            rows.append(
                [
                    f'{num_points:,}',
                    f'{link.devices}',
                    amount(cost.table),
                    amount(cost.plan),
                    amount(cost.peak),
                    f'{amount(cost.moved)}, {duration(cost.seconds)}',
                    f'{amount(size)}, {duration(spent)}',
                ]
            )
    header = ['points', 'devices', 'table', 'plan and order', 'peak', 'moved by a condensation', 'by a selection']
    return _markdown(header, rows)


TABLES = {'collectives': collectives_of, 'steps': steps_on_paper, 'tables': tables_on_paper}


def fill(text: str, found: Mapping[str, Any]) -> str:
    """A document with the content of its `<!-- scaling: NAME -->` blocks made anew."""
    return BLOCK.sub(lambda block: f'{block.group(1)}{TABLES[block.group(2)](found)}\n{block.group(3)}', text)
