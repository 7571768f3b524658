"""The notebooks run in a clean kernel, show their figures, and are committed without outputs."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

pytestmark = pytest.mark.fast_compile

_SPEC = importlib.util.spec_from_file_location('notebooks', pathlib.Path(__file__).with_name('notebooks.py'))
notebooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(notebooks)


def test_every_notebook_has_quick_parameters():
    assert notebooks.names() == sorted(notebooks.QUICK)


@pytest.mark.parametrize('name', notebooks.names())
def test_no_output_is_committed(name):
    for cell in notebooks.read(name).cells:
        assert not cell.get('outputs') and cell.get('execution_count') is None


@pytest.mark.parametrize('name', notebooks.names())
def test_no_logic_of_its_own(name):
    """Functions and classes belong in the package, except for the loop and the method that two notebooks are about."""
    source = '\n'.join(cell.source for cell in notebooks.read(name).cells if cell.cell_type == 'code')
    allowed = {'your_own_loop': 2, 'adding_a_method': 2}.get(name, 0)
    assert source.count('def ') + source.count('class ') + source.count('lambda ') <= allowed


@pytest.mark.slow
@pytest.mark.parametrize('name', notebooks.names())
def test_runs_and_shows_its_figures(name, tmp_path, monkeypatch):
    monkeypatch.setenv('KCD_JAX_PLUGINS', '')  # which the kernels inherit and `quick` sets
    book = notebooks.execute(name, notebooks.quick(name, str(tmp_path)))
    outputs = [output for cell in book.cells for output in cell.get('outputs', ())]
    shown = [output.data for output in outputs if output.output_type in ('display_data', 'execute_result')]
    figures = [data for data in shown if data.get('text/plain', '').startswith('<Figure')]
    assert figures and all('image/png' in data for data in figures)
