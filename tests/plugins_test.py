"""A user's own files: found by their names, carried by what they build, and broken without breaking others."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from kcd_jax import methods, networks, plugins, policies
from kcd_jax.contracts import Weights

METHOD = """
    from kcd_jax.contracts import LossOut, Method, Weights

    WEIGHTS = Weights(beta=2.0)


    def make(*, scale: float = 1.0, taps: tuple = (1, 2)) -> Method:
        '''Builds the method.'''

        def loss(params, state, student, teacher, batch, clock, key):
            return LossOut(extra=scale * batch.weight, state=state)

        return Method(loss=loss)
"""
BROKEN = {
    'syntax': ('def make(:\n', 'SyntaxError', 1),
    'missing': ('"""A file."""\n\nimport no_such_module\n', 'ModuleNotFoundError', 3),
    'fails': ('"""A file."""\n\n\ndef wrong():\n    return 1 / 0\n\n\nwrong()\n', 'ZeroDivisionError', 5),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of methods that the package knows."""
    monkeypatch.setattr(methods, '__path__', [*methods.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob('*.py'):
        sys.modules.pop(f'kcd_jax.methods.{path.stem}', None)


def write(folder, name, text):
    (folder / f'{name}.py').write_text(textwrap.dedent(text))


def test_what_a_file_builds_carries_its_name_and_every_keyword(folder):
    write(folder, 'of_mine', METHOD)
    made = methods.get('of_mine').make(scale=3.0)
    assert (made.name, made.keywords) == ('of_mine', {'scale': 3.0, 'taps': (1, 2)})
    assert methods.get('of_mine').make().keywords == {'scale': 1.0, 'taps': (1, 2)}
    assert methods.weights_of(made) == Weights(beta=2.0)
    assert plugins.hyper_parameters(methods.get('of_mine')) == {'scale': 1.0, 'taps': (1, 2)}
    assert methods.get('of_mine').make.__doc__ == 'Builds the method.'


@pytest.mark.parametrize('package', [methods, policies])
def test_what_a_shipped_file_builds_can_be_built_again_from_what_it_carries(package):
    for name in set(package.names()) - {'reuse'}:  # which needs the folder of a finished run
        module = package.get(name)
        made = module.make()
        assert made.name == name and set(made.keywords) == set(plugins.hyper_parameters(module))
        again = module.make(**made.keywords)
        assert (again.name, again.keywords) == (made.name, made.keywords)


def test_a_keyword_that_a_file_does_not_have_is_refused(folder):
    write(folder, 'of_mine', METHOD)
    with pytest.raises(TypeError, match="^method of_mine .* 'scael'; it takes scale, taps$"):
        methods.get('of_mine').make(scael=3.0)
    with pytest.raises(TypeError, match="^policy seta .* 'bogus'; it takes ratio, groups, window, until, inside$"):
        policies.get('seta').make(bogus=1)
    with pytest.raises(TypeError, match="^policy none .* 'ratio'; it takes no keywords$"):
        policies.get('none').make(ratio=0.5)


def test_a_file_is_known_as_soon_as_it_is_there_and_private_ones_never(folder):
    assert 'of_mine' not in methods.names()
    write(folder, 'of_mine', METHOD)
    write(folder, '_of_mine', METHOD)
    assert 'of_mine' in methods.names() and '_of_mine' not in methods.names()


@pytest.mark.parametrize('kind', sorted(BROKEN))
def test_a_broken_file_is_one_line_with_its_place_and_stops_no_other(folder, kind):
    text, error, line = BROKEN[kind]
    write(folder, 'broken_one', text)
    with pytest.raises(ValueError) as caught:
        methods.get('broken_one')
    said = str(caught.value)
    assert '\n' not in said and error in said and str(folder / 'broken_one.py') in said
    assert f'line {line}' in said, said
    assert 'broken_one' in methods.names() and methods.get('kd').make().name == 'kd'


def test_a_file_without_make_is_named(folder):
    write(folder, 'empty_one', '"""Nothing here."""\n')
    with pytest.raises(ValueError, match="method 'empty_one' has no function make in .*empty_one.py"):
        methods.get('empty_one')


def test_an_unknown_name_names_the_known_ones_and_the_nearest():
    for package, kind in ((methods, 'method'), (policies, 'policy'), (networks, 'network')):
        known = package.names()[0]
        with pytest.raises(ValueError, match=f'unknown {kind}') as caught:
            package.get(f'{known}x')
        assert f'did you mean {known!r}' in str(caught.value) and '\n' not in str(caught.value)


def test_folders_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('KCD_JAX_PLUGINS', f'{tmp_path}/one:{tmp_path}/two:')
    assert plugins.own_folders('methods') == [f'{tmp_path}/one/methods', f'{tmp_path}/two/methods']
    monkeypatch.delenv('KCD_JAX_PLUGINS')
    assert plugins.own_folders('methods') == []


def test_a_folder_of_plug_ins_reaches_every_kind(tmp_path):
    for kind in ('methods', 'policies', 'networks', 'data'):
        (tmp_path / kind).mkdir()
    write(tmp_path / 'methods', 'of_mine', METHOD)
    write(tmp_path / 'policies', 'broken_one', 'import no_such_module\n')
    write(tmp_path / 'data', 'mine_data', '"""Data."""\n')
    code = (
        'from kcd_jax import data, methods, policies\n'
        'assert "of_mine" in methods.names() and "broken_one" in policies.names() and "mine_data" in data.names()\n'
        'print(methods.get("of_mine").make(scale=2.0).keywords["scale"], policies.get("kcd").make().name)\n'
    )
    environment = {**os.environ, 'KCD_JAX_PLUGINS': str(tmp_path)}
    found = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and found.stdout.split() == ['2.0', 'kcd'], found.stderr
