"""XLA_FLAGS keeps what the user put there: flags, or the path of a file with flags."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kcd_jax.runtime import backend

OURS = '--xla_ours=1'


@pytest.mark.parametrize(
    ('theirs', 'wanted'),
    [
        (None, OURS),
        ('', OURS),
        ('  ', OURS),
        ('--xla_theirs=2 --xla_ours=3', f'{OURS} --xla_theirs=2 --xla_ours=3'),
    ],
)
def test_the_users_flags_come_last(monkeypatch, theirs, wanted):
    monkeypatch.setenv('XLA_FLAGS', theirs or '')  # also so that it is restored
    if theirs is None:
        monkeypatch.delenv('XLA_FLAGS')
    backend.add_xla_flags([OURS])
    assert os.environ['XLA_FLAGS'] == wanted


@pytest.mark.parametrize('path', ['{home}/flags.txt', '~/flags.txt', ' {home}/flags.txt'])
def test_a_file_of_flags_is_read(monkeypatch, tmp_path, path):
    (tmp_path / 'flags.txt').write_text("--xla_a=1\n--xla_b='2 3'\n")
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XLA_FLAGS', path.format(home=tmp_path))
    backend.add_xla_flags([OURS])
    assert os.environ['XLA_FLAGS'] == f"{OURS} --xla_a=1 --xla_b='2 3'"


@pytest.mark.parametrize('content', [None, b'\xff\xfe'])
def test_a_file_that_cannot_be_read_is_refused(monkeypatch, tmp_path, content):
    path = tmp_path / 'flags.txt'
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv('XLA_FLAGS', str(path))
    with pytest.raises(
        ValueError, match=r'XLA_FLAGS=.*flags.txt names a file of flags that cannot be read \('
    ) as caught:
        backend.add_xla_flags([OURS])
    assert '\n' not in str(caught.value)
    assert os.environ['XLA_FLAGS'] == str(path)


def test_xla_obeys_the_flags_of_the_file(tmp_path):
    (tmp_path / 'flags.txt').write_text(f'--xla_dump_to={tmp_path}/dump\n--xla_dump_hlo_as_text=true\n')
    program = (
        'from kcd_jax.runtime import backend\n'
        "backend.add_xla_flags(['--xla_cpu_collective_call_terminate_timeout_seconds=600'])\n"
        'import jax; jax.jit(lambda x: x + 1)(1.0)'
    )
    environment = {**os.environ, 'XLA_FLAGS': str(tmp_path / 'flags.txt')}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    subprocess.run([sys.executable, '-c', program], env=environment, check=True, timeout=120)
    assert list((tmp_path / 'dump').glob('*.txt'))
