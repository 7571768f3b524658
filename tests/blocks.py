"""The generated blocks of the README and the pages; `python -m tests.blocks` writes all of them from results/."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any

from benchmarks import results
from kcd_jax.report import benchmark, benchmark_table, tables
from tests.faults import matrix

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
BLOCK = re.compile(
    r'<!-- (table|benchmark|summary|bench|matrix): (\S+(?: --reference=\S+)?) -->\n(.*?)<!-- end -->', re.DOTALL
)


@functools.cache
def measured(source: str) -> list[dict[str, Any]]:
    """The records of the benchmark; the bootstrap takes seconds."""
    own_cache = benchmark.read_own_cache(ROOT / 'results/own_cache.json')
    return benchmark.measure(tables.collect(sorted(ROOT.glob(source))), own_cache=own_cache)


def content(kind: str, source: str) -> str:
    """What belongs into a block.

    Args:
      kind: 'table' of runs, 'benchmark' of policies or its 'summary', 'bench' of measurements, 'matrix' of methods and
        policies.
      source: a folder or file of results, for a table followed by ' --reference=ROW' if rows are compared with another
        row than kd; for a benchmark a pattern of folders.
    """
    if kind in ('benchmark', 'summary'):
        records = measured(source)
        parts = benchmark_table.table(records) if kind == 'benchmark' else [benchmark_table.summary(records)]
        return '\n'.join(part.to_markdown() for part in parts).strip()
    if kind == 'table':
        folder, _, reference = source.partition(' --reference=')
        parts = tables.tables(tables.collect([ROOT / folder]), reference or 'kd')
        return '\n'.join(part.to_markdown() for part in parts).strip()
    found = json.loads((ROOT / source).read_text(encoding='utf-8'))
    return (matrix.markdown(found) if kind == 'matrix' else results.markdown(found)).strip()


def updated(text: str) -> str:
    """The text of a document with all of its blocks as they should be."""

    def block(match: re.Match[str]) -> str:
        kind, source, _ = match.groups()
        return f'<!-- {kind}: {source} -->\n{content(kind, source)}\n<!-- end -->'

    return BLOCK.sub(block, text)


if __name__ == '__main__':
    for document in DOCUMENTS:
        old = document.read_text(encoding='utf-8')
        if (new := updated(old)) != old:
            document.write_text(new, encoding='utf-8')
            print(f'updated {document.relative_to(ROOT)}')
