"""python -m kcd_jax cost."""

from __future__ import annotations

from kcd_jax.commands import cost


def test_the_ledger_of_a_config(tiny_networks, capsys):
    assert cost.main(['--config=configs/digits_kd.py:tiny_teacher-tiny,policy=unix', '--config.epochs=7']) == 0
    text = capsys.readouterr().out
    assert text.startswith('unix: method kd, policy unix, tiny_teacher -> tiny on digits\n')
    assert 'scoring_forward' in text and 'one image forward through tiny_teacher: ' in text and '105 steps' in text


def test_bad_input_is_one_line(capsys):
    assert cost.main(['--config=configs/nothing.py']) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert cost.main(['--confg=configs/nothing.py']) == 2
    assert 'unrecognized arguments: --confg' in capsys.readouterr().err
