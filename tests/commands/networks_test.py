"""`python -m kcd_jax networks`: the table, one network, and one line for a mistake."""

from __future__ import annotations

import pytest

from kcd_jax import networks
from kcd_jax.commands import networks as command


def test_the_table_of_some_networks(capsys):
    assert command.main(['resnet8', 'wrn_16_1', '--classes=10', '--pixels=16']) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.startswith('network') and first.split()[:4] == ['resnet8', '10', '16', '78,042']
    assert second.startswith('wrn_16_1')


def test_all_networks_are_listed_and_broken_files_named(monkeypatch, tmp_path, capsys):
    (tmp_path / 'broken.py').write_text('NAMES = {')
    monkeypatch.setattr(networks, '__path__', [*networks.__path__, str(tmp_path)])
    monkeypatch.setattr(command, 'describe', lambda name, classes, pixels: name)
    assert command.main([]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1:] == networks.names()
    assert said.err.startswith("not listed: network file 'broken' cannot be loaded") and said.err.count('\n') == 1


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['resnet9'], "unknown network 'resnet9' (did you mean 'resnet"),
        (['resnet8', '--classes=-1'], '--classes=-1 is too small; use at least 1'),
        (['resnet8', '--pixels=4'], '--pixels=4 is too small; use at least 8'),
        (['resnet8', '--classes=many'], "invalid int value: 'many'"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert command.main(words) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count('\n') == 1 and not said.out


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as done:
        command.main(['--help'])
    assert done.value.code == 0 and 'python -m kcd_jax networks resnet8' in capsys.readouterr().out
