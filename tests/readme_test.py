"""The tables of the README and of docs/ are those of results/, and their words name things that exist."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from benchmarks import results
from kcd_jax.report import tables
from tests.faults import matrix

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'<!-- (table|bench|matrix): (\S+(?: --reference=\S+)?) -->\n(.*?)<!-- end -->', re.DOTALL)


def blocks() -> list[tuple[str, str, str, str]]:
    """(document, kind, source, text) of every generated block."""
    return [(path.name, *found) for path in DOCUMENTS for found in BLOCK.findall(path.read_text(encoding='utf-8'))]


def test_there_are_tables():
    assert len([block for block in blocks() if block[0] == 'README.md']) >= 2


@pytest.mark.parametrize(('document', 'kind', 'source', 'text'), blocks(), ids=lambda value: value.split('\n')[0][:40])
def test_a_generated_block_is_that_of_its_results(document, kind, source, text):
    """When this fails, the block wants what these print:

    table: `python -m kcd_jax report table SOURCE --format=markdown`; bench: `python -m benchmarks --show=SOURCE`;
    matrix: what the end of `python -m tests.faults.matrix --out=SOURCE` prints.
    """
    if kind == 'table':
        folder, _, reference = source.partition(' --reference=')
        parts = tables.tables(tables.collect([ROOT / folder]), reference or 'kd')
        wanted = '\n'.join(part.to_markdown() for part in parts)
    elif kind == 'matrix':
        wanted = matrix.markdown(json.loads((ROOT / source).read_text(encoding='utf-8')))
    else:
        wanted = results.markdown(json.loads((ROOT / source).read_text(encoding='utf-8')))
    assert text.strip() == wanted.strip(), f'the {kind} of {source} in {document} is stale'


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(path):
    words = path.read_text(encoding='utf-8')
    for example in ('policies/mine.py', 'methods/mine.py'):
        words = words.replace(example, '')
    for name in re.findall(r'(?<![\w/.])(?:configs|launch|docs|results|kcd_jax|tests|notebooks)/[\w./]*\w', words):
        assert (ROOT / name).exists(), name


def test_the_lines_for_a_loop_of_your_own_run():
    """The README's Python block, as it stands."""
    (source,) = re.findall(r'```python\n(.*?)```', DOCUMENTS[0].read_text(encoding='utf-8'), re.DOTALL)
    exec(compile(source, 'README.md', 'exec'), {})
