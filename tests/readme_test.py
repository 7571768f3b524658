"""The README and the pages: their tables are those of results/, their paths exist, the README's Python runs."""

from __future__ import annotations

import re

import pytest

from kcd_jax.__main__ import COMMANDS
from kcd_jax.experiments import config as grammar
from tests.blocks import BLOCK, DOCUMENTS, ROOT, content

pytestmark = pytest.mark.fast_compile

# Paths that stand for the reader's own.
EXAMPLES = {'kcd_jax/data/stripes.py', 'kcd_jax/methods/mine.py', 'kcd_jax/policies/mine.py', 'results/NAME'}
PYTHON = re.compile(r'```python\n(.*?)```', re.DOTALL)


def blocks() -> list[tuple[str, str, str, str]]:
    """(document, kind, source, text) of every generated block."""
    return [(path.name, *found) for path in DOCUMENTS for found in BLOCK.findall(path.read_text(encoding='utf-8'))]


def test_there_are_tables():
    assert [block for block in blocks() if block[0] == 'README.md']
    assert len(blocks()) >= 8


@pytest.mark.parametrize(('document', 'kind', 'source', 'text'), blocks(), ids=lambda value: value.split('\n')[0][:40])
def test_a_generated_block_is_that_of_its_results(document, kind, source, text):
    assert text.strip() == content(kind, source), f'{kind} {source} in {document} is stale: python -m tests.blocks'


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(path):
    words = path.read_text(encoding='utf-8')
    named = re.findall(r'(?<![\w/.])(?:configs|launch|docs|results|kcd_jax|tests|notebooks)/[\w./]*[\w*]', words)
    for name in {*named} - EXAMPLES:
        assert any(ROOT.glob(name)), name


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path):
    """Commands, modules, and configs with their words; `...`, FILE and the reader's own parts stand for others."""
    words = path.read_text(encoding='utf-8')
    assert {*re.findall(r'python -m kcd_jax ([a-z][\w-]*)', words)} <= {*COMMANDS}
    for module in re.findall(r'python -m ((?:benchmarks|tests|kcd_jax)[\w.]*)', words):
        file = ROOT / module.replace('.', '/')
        assert file.with_suffix('.py').exists() or (file / '__main__.py').exists(), module
    for quoted, bare in re.findall(r"--config=(?:'([^']+)'|([^\s'`;)]+))", words):
        config = quoted or bare
        if not config.startswith(('FILE', '...')) and '=mine' not in config:
            grammar.load(str(ROOT / config) if config.startswith('configs/') else config)


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: path.name)
def test_linked_pages_exist(path):
    for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', path.read_text(encoding='utf-8')):
        assert (path.parent / target).exists(), target


def test_the_readme_is_short():
    assert len(DOCUMENTS[0].read_text(encoding='utf-8').splitlines()) <= 90


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """Both blocks as they stand, but for fewer epochs."""
    monkeypatch.chdir(tmp_path)
    api, loop = PYTHON.findall(DOCUMENTS[0].read_text(encoding='utf-8'))
    assert len(api.strip().splitlines()) <= 10
    names = {}
    exec(compile(api.replace('epochs=60', 'epochs=6'), 'README.md', 'exec'), names)
    assert len(names['names']) == len(names['digits'].test)
    exec(compile(loop, 'README.md', 'exec'), names)
    assert names['state'].table.num_points == 50_000
