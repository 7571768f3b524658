"""The launch scripts, the lock and the metadata, as far as they can be tested without installing anything."""

from __future__ import annotations

import configparser
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*(ROOT / 'launch').glob('*.sh'), ROOT / '.ci' / 'run'])


def bash(script: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment}
    return subprocess.run(['bash', '-c', script], capture_output=True, text=True, cwd='/', env=environment, timeout=60)


def test_shellcheck_finds_nothing():
    checker = pathlib.Path(sys.executable).with_name('shellcheck')
    command = [str(checker) if checker.exists() else 'shellcheck', '-x', *map(str, SCRIPTS)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr


def test_scripts_are_executable():
    assert {'run.sh', 'test.sh'} <= {path.name for path in SCRIPTS}
    assert [path.name for path in SCRIPTS if path.name != 'setup.sh' and not os.access(path, os.X_OK)] == []


@pytest.fixture
def environment(tmp_path) -> pathlib.Path:
    """A folder that looks like a virtual environment of this Python, without a package in it."""
    venv = tmp_path / 'a venv'
    (venv / 'bin').mkdir(parents=True)
    (venv / 'bin' / 'python').symlink_to(sys.executable)
    (venv / 'pyvenv.cfg').write_text('version = 3.11.0\n')
    return venv


SOURCE = f'set -euo pipefail; source {ROOT}/launch/setup.sh; '


def is_up_to_date(venv: pathlib.Path, extras: str) -> bool:
    found = bash(f'{SOURCE} if up_to_date "{extras}"; then echo yes; else echo no; fi', KCD_JAX_VENV=str(venv))
    assert found.returncode == 0 and not found.stderr, found.stderr
    return found.stdout == 'yes\n'


def test_the_stamp_says_what_is_installed(environment):
    assert not is_up_to_date(environment, '') and not is_up_to_date(environment, 'test')
    bash(f'{SOURCE} venv_key >"$venv/kcd_jax.test.stamp"', KCD_JAX_VENV=str(environment))
    assert is_up_to_date(environment, 'test')
    assert is_up_to_date(environment, ''), 'any set of extras holds the package itself'
    assert not is_up_to_date(environment, 'prepare')
    (environment / 'pyvenv.cfg').write_text('version = 3.12.0\n')
    assert not is_up_to_date(environment, 'test'), 'another Python'


def test_a_broken_environment_is_made_again(environment):
    bash(f'{SOURCE} venv_key >"$venv/kcd_jax.test.stamp"', KCD_JAX_VENV=str(environment))
    (environment / 'bin' / 'python').unlink()
    assert not is_up_to_date(environment, 'test')


def test_without_a_new_python_there_is_one_line(tmp_path):
    found = bash(f'{SOURCE} PATH={tmp_path}; find_python', KCD_JAX_VENV=str(tmp_path / 'venv'))
    assert found.returncode == 1
    assert found.stderr.count('\n') == 1
    assert found.stderr.startswith('no Python 3.11 or newer found; install one, or name it: PYTHON=')


def canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def test_the_lock_pins_what_is_required():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = [config['options.extras_require'][name] for name in ('test', 'prepare', 'notebooks')]
    wanted = '\n'.join([config['options']['install_requires'], *extras]).splitlines()
    names = {canonical(re.split(r'[ \[<>=]', line, maxsplit=1)[0]) for line in wanted if line and line[0] != '#'}
    lines = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
    pinned = {canonical(line.partition('==')[0]) for line in lines}
    assert names <= pinned, sorted(names - pinned)
    assert all('==' in line for line in lines)


def test_metadata():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['metadata']['name'] == 'kcd_jax' and config['options']['python_requires'] == '>=3.11'
    assert {'test', 'prepare', 'gpu', 'tpu', 'torch', 'notebooks', 'docs'} <= set(config['options.extras_require'])
    version = config['metadata']['version']
    assert f'version: {version}' in (ROOT / 'CITATION.cff').read_text()
    assert '## Unreleased' in (ROOT / 'CHANGELOG.md').read_text()
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()
