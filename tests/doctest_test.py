"""The examples in the docstrings, run one by one."""

from __future__ import annotations

import doctest
import importlib
import pathlib

import pytest

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(path for path in (ROOT / 'kcd_jax').rglob('*.py') if '>>>' in path.read_text(encoding='utf-8'))


def module_of(path: pathlib.Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for path in FILES for test in finder.find(importlib.import_module(module_of(path))) if test.examples]


@pytest.mark.parametrize('test', examples(), ids=lambda test: test.name)
def test_the_example_says_what_it_prints(test, capsys):
    failures, tried = doctest.DocTestRunner().run(test)
    assert tried and not failures, capsys.readouterr().out


def test_what_others_rely_on_has_examples():
    found = {test.name.removeprefix('kcd_jax.') for test in examples()}
    surface = {
        'knowledge.value': ('prediction_entropy', 'record', 'record_last'),
        'knowledge.ranking': ('rank',),
        'knowledge.summary': ('summarize',),
        'knowledge.schedule': ('keep_counts', 'epoch_sizes', 'relative_cost'),
        'knowledge.condenser': ('Condenser',),
        'contracts': ('ValueTable.create',),
        'methods': ('get',),
        'policies': ('get',),
        'networks': ('get',),
        'data': ('load',),
        'experiments.config': ('load',),
    }
    assert {f'{module}.{name}' for module, names in surface.items() for name in names} <= found
