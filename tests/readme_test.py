"""The README's tables are those of results/, and its words name things that exist."""

from __future__ import annotations

import pathlib
import re

from kcd_jax.analysis import tables

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
TABLE = re.compile(r'<!-- table: (\S+) -->\n(.*?)<!-- end -->', re.DOTALL)


def test_the_tables_are_those_of_the_results():
    """When this fails: `python -m kcd_jax.analysis table FOLDER --format=markdown` prints what belongs there."""
    found = TABLE.findall(README)
    assert len(found) >= 2
    for folder, text in found:
        table = tables.experiment_table(tables.collect([ROOT / folder])).to_markdown()
        assert text.strip() == table.strip(), f'the table of {folder} is stale'


def test_named_files_exist():
    for name in re.findall(r'(?:configs|launch|docs|results|kcd_jax|tests)/[\w./]*\w', README):
        assert (ROOT / name).exists(), name
