"""The launch scripts, the lock and the metadata, as far as they can be tested without installing anything."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*(ROOT / 'launch').glob('*.sh'), ROOT / 'launch' / 'slurm.sbatch', ROOT / '.ci' / 'run'])


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


# ------------------------------------------------------------------------------------------------- dry runs of clusters

POD = {'TPU_NAME': 'pod', 'ZONE': 'us-west4-a', 'TYPE': 'v5litepod-16', 'VERSION': 'v2-alpha-tpuv5-lite'}
CONFIG = '--config=configs/digits_kd.py:quicktest,method=kd,policy=kcd'


def dry_run(script: str, *args: str, **environment: str) -> list[list[str]]:
    """The commands that a launch script would do, in words."""
    words = shlex.join([f'{ROOT}/launch/{script}', *args])
    found = bash(f'bash {words}', DRY_RUN='1', **environment)
    assert found.returncode == 0 and not found.stderr, found.stderr
    return [split_as_bash(line) for line in found.stdout.splitlines()]


def split_as_bash(line: str) -> list[str]:
    """The words of a line quoted by bash's printf %q, which knows more quotes than shlex."""
    found = subprocess.run(
        ['bash', '-c', f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True, timeout=60
    )
    return found.stdout.split('\0')[:-1]


def test_a_dry_run_of_a_tpu_slice_shows_every_command():
    tpu = ['gcloud', 'compute', 'tpus', 'tpu-vm']
    commands = dry_run('tpu_pod.sh', 'all', CONFIG, '--workdir=runs/first', SPOT='1', PROJECT='mine', **POD)
    create, agent, bundle, copy, install, again, run, folder, fetch, delete = commands
    assert create == [
        *tpu, 'create', 'pod', '--accelerator-type=v5litepod-16', '--version=v2-alpha-tpuv5-lite', '--spot',
        '--zone=us-west4-a', '--project=mine',
    ]  # fmt: skip
    assert agent == again == ['ssh-add', '-q', str(pathlib.Path.home() / '.ssh' / 'google_compute_engine')]
    assert bundle[:3] == ['git', '-C', str(ROOT)] and bundle[3:5] == ['bundle', 'create'] and bundle[-1] == 'HEAD'
    assert copy[:5] == [*tpu, 'scp'] and 'pod:kcd_jax.bundle' in copy and '--worker=all' in copy
    assert install[:6] == run[:6] == [*tpu, 'ssh', 'pod'] and '--worker=all' in run
    assert folder == ['mkdir', '-p', f'{ROOT}/runs']
    assert fetch[4:9] == ['scp', '--recurse', 'pod:kcd_jax/runs/first', f'{ROOT}/runs/', '--worker=0']
    assert delete == [*tpu, 'delete', 'pod', '--quiet', '--zone=us-west4-a', '--project=mine']
    for command in (install, run):  # what the hosts' shells get is a script that bash can read
        script = next(word for word in command if word.startswith('--command=')).removeprefix('--command=')
        assert subprocess.run(['bash', '-n', '-c', script], timeout=60, check=False).returncode == 0, script


def test_a_tpu_slice_needs_its_name_and_a_verb():
    assert 'set TPU_NAME' in bash(f'{ROOT}/launch/tpu_pod.sh create', TPU_NAME='').stderr
    assert 'set TYPE' in bash(f'{ROOT}/launch/tpu_pod.sh create', **{**POD, 'TYPE': '', 'DRY_RUN': '1'}).stderr
    for arguments, says in (('start', 'usage'), ('run', 'run what'), (f'all {CONFIG}', 'needs --workdir')):
        found = bash(f'{ROOT}/launch/tpu_pod.sh {arguments}', DRY_RUN='1', **POD)
        assert found.returncode == 2 and says in found.stderr, found.stderr


def stubs(folder: pathlib.Path, **bodies: str) -> str:
    """Programs of our own in `folder`, by name; returns a PATH on which they come first."""
    folder.mkdir(exist_ok=True)
    for name, body in bodies.items():
        (folder / name.replace('_', '-')).write_text(f'#!/usr/bin/env bash\n{body}\n')
        (folder / name.replace('_', '-')).chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


def test_a_fresh_host_waits_for_the_locks_of_apt(tmp_path):
    """A fresh host holds apt's locks for its first minutes: the installation tries again until they are free."""
    install = dry_run('tpu_pod.sh', 'install', **POD)[3]
    script = next(word for word in install if word.startswith('--command=')).removeprefix('--command=')
    path = stubs(
        tmp_path / 'bin',
        sudo=f'echo "$*" >>{tmp_path}/asked; [ "$(wc -l <{tmp_path}/asked)" -gt 2 ]',
        sleep='',
        git=f'mkdir -p kcd_jax.new/launch; echo "install_extras() {{ touch {tmp_path}/installed; }}" '
        '>kcd_jax.new/launch/setup.sh',
    )
    # `command -v` must not find the Python of this machine.
    hidden = 'command() { false; }; '
    found = bash(f'mkdir -p {tmp_path}/home; cd {tmp_path}/home; {hidden}{script}', PATH=path)
    assert found.returncode == 0, found.stderr
    asked = (tmp_path / 'asked').read_text().splitlines()
    assert [line.split()[3] for line in asked] == ['update', 'update', 'update', 'install']
    assert (tmp_path / 'installed').exists()


@pytest.mark.parametrize('running', [True, False])
def test_all_hosts_are_reached_through_an_ssh_agent(tmp_path, running):
    """An agent of our own is started where there is none, and ended; a running one is used as it is."""
    log = tmp_path / 'log'
    path = stubs(
        tmp_path / 'bin',
        ssh_add=f'echo "add $*" >>{log}; if [ "$1" = -l ]; then exit {0 if running else 2}; fi',
        ssh_agent=f'echo "agent $*" >>{log}; echo "SSH_AUTH_SOCK=x; export SSH_AUTH_SOCK;"',
        ssh_keygen=f'echo keygen >>{log}',
        gcloud=f'echo gcloud >>{log}',
    )
    found = bash(f'{ROOT}/launch/tpu_pod.sh run {CONFIG}', PATH=path, HOME=str(tmp_path), **POD)
    assert found.returncode == 0, found.stderr
    add = f'add -q {tmp_path}/.ssh/google_compute_engine'
    own = [[], []] if running else [['agent -s'], ['agent -k']]
    assert log.read_text().splitlines() == ['keygen', 'add -l', *own[0], add, 'gcloud', *own[1]]


def test_a_dry_run_of_a_slurm_job_shows_the_step():
    install, run = dry_run('slurm.sbatch', CONFIG, '--workdir=runs/a b', SLURM_SUBMIT_DIR=str(ROOT), KCD_JAX_VENV='/v')
    assert install == ['install_extras', '']
    assert run[0] == 'srun' and run[-4:] == ['kcd_jax.main', '--coordinator=auto', CONFIG, '--workdir=runs/a b']
    assert '/v/bin/python' in run


def test_a_slurm_job_that_was_preempted_is_queued_again(tmp_path):
    """With a srun and a scontrol of our own: 75 always goes on, a lost process at most five times, a mistake never."""
    path = stubs(tmp_path, srun='exit "$CODE"', scontrol=f'echo "$@" >>{tmp_path}/told')
    (tmp_path / 'launch').mkdir()
    (tmp_path / 'launch' / 'setup.sh').write_text('install_extras() { :; }\nVENV_PYTHON=python\n')
    for code, restarts, told in ((75, '9', True), (69, '0', True), (69, '5', False), (2, '0', False), (0, '0', False)):
        (tmp_path / 'told').unlink(missing_ok=True)
        found = bash(
            f'bash {ROOT}/launch/slurm.sbatch --config=x', PATH=path, CODE=str(code), SLURM_JOB_ID='7',
            SLURM_RESTART_COUNT=restarts, SLURM_SUBMIT_DIR=str(tmp_path),
        )  # fmt: skip
        assert found.returncode == code, found.stderr
        assert (tmp_path / 'told').exists() == told, code
        assert not told or (tmp_path / 'told').read_text() == 'requeue 7\n'


def test_the_step_of_a_slurm_job_gets_the_cores_of_its_tasks(tmp_path):
    """srun does not inherit --cpus-per-task of sbatch."""
    path = stubs(tmp_path, srun=f'echo "$SRUN_CPUS_PER_TASK" >{tmp_path}/cores')
    (tmp_path / 'launch').mkdir()
    (tmp_path / 'launch' / 'setup.sh').write_text('install_extras() { :; }\nVENV_PYTHON=python\n')
    job = {'SLURM_CPUS_PER_TASK': '8', 'SLURM_JOB_ID': '7', 'SLURM_SUBMIT_DIR': str(tmp_path)}
    assert bash(f'bash {ROOT}/launch/slurm.sbatch --config=x', PATH=path, **job).returncode == 0
    assert (tmp_path / 'cores').read_text() == '8\n'


@pytest.mark.slow
@pytest.mark.parametrize('cluster', ['tpu', 'slurm'])
def test_the_program_accepts_what_the_clusters_are_told(cluster, tmp_path):
    """The command line of the dry run, joined to itself alone instead of to a cluster, with --check."""
    if cluster == 'tpu':
        command = dry_run('tpu_pod.sh', 'run', CONFIG, f'--workdir={tmp_path}/run', **POD)[-1]
        script = next(word for word in command if word.startswith('--command='))
        words = split_as_bash(script.partition('./launch/run.sh ')[2])
    else:
        command = dry_run('slurm.sbatch', CONFIG, f'--workdir={tmp_path}/run', SLURM_SUBMIT_DIR=str(ROOT))[1]
        words = command[command.index('kcd_jax.main') + 1 :]
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        alone = [f'--coordinator=127.0.0.1:{probe.getsockname()[1]}', '--processes=1', '--process=0']
    words = [word for word in words if word != '--coordinator=auto']
    found = subprocess.run(
        [sys.executable, '-m', 'kcd_jax.main', *alone, *words, '--check'],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert 'policy     kcd' in found.stdout and not (tmp_path / 'run').exists()


# ---------------------------------------------------------------------------------------------------- the environment


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


def locked(python_version: str) -> dict[str, str]:
    """{package: version} of constraints.txt for this version of Python."""
    lines = [line for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')]
    requirements = [Requirement(line) for line in lines]
    assert all(len(r.specifier) == 1 and next(iter(r.specifier)).operator == '==' for r in requirements)
    wanted = [r for r in requirements if r.marker is None or r.marker.evaluate({'python_version': python_version})]
    assert len({canonicalize_name(r.name) for r in wanted}) == len(wanted), 'a package with two versions'
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in wanted}


@pytest.mark.parametrize('python_version', ['3.11', '3.12', '3.13'])
def test_the_lock_pins_what_is_required(python_version):
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = [config['options.extras_require'][name] for name in ('test', 'prepare', 'notebooks')]
    lines = '\n'.join([config['options']['install_requires'], *extras]).splitlines()
    pinned = locked(python_version)
    for requirement in (Requirement(line) for line in lines if line and line[0] != '#'):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f'{name} is required and not locked'
        assert pinned[name] in requirement.specifier, f'{requirement} excludes the locked {pinned[name]}'


def test_what_the_package_imports_is_required_and_no_more():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')

    def names(section: str) -> set[str]:
        lines = section.splitlines()
        return {canonicalize_name(Requirement(line).name) for line in lines if line and line[0] != '#'}

    required = names(config['options']['install_requires'])
    optional = set().union(*(names(section) for section in config['options.extras_require'].values()))
    imported = set()
    for path in (ROOT / 'kcd_jax').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition('.')[0])
    packages = importlib.metadata.packages_distributions()
    others = imported - set(sys.stdlib_module_names) - {'kcd_jax', 'benchmarks', 'configs'}
    found = {canonicalize_name(packages.get(name, [name])[0]) for name in others}
    assert found <= required | optional, sorted(found - required - optional)
    # tensorflow-datasets needs importlib_resources, and jax.export flatbuffers; neither is declared there.
    assert required - found <= {'importlib-resources', 'flatbuffers'}, sorted(required - found)


def test_releases_with_known_faults_are_excluded():
    """The releases of JAX named in setup.cfg are refused by pip, and the lock has none of them."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    required = {r.name: r for r in map(Requirement, re.findall(r'^jax.*', config['options']['install_requires'], re.M))}
    assert set(required) == {'jax', 'jaxlib'}
    for requirement in required.values():
        assert not any(bad in requirement.specifier for bad in ('0.9.2', '0.10.2', '0.11.0', '0.11.1'))
    for python_version, version in {'3.11': '0.10.1', '3.12': '0.11.2', '3.13': '0.11.2'}.items():
        pinned = locked(python_version)
        assert pinned['jax'] == pinned['jaxlib'] == version


def test_every_data_file_is_packaged():
    """A wheel holds the files beside the modules, in folders that are no packages too."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    patterns = config['options.package_data']['*'].split(', ')
    package = ROOT / 'kcd_jax'
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')}
    assert data and data <= packaged, sorted(map(str, data - packaged))


def test_metadata():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['metadata']['name'] == 'kcd_jax' and config['options']['python_requires'] == '>=3.11'
    assert {'test', 'prepare', 'gpu', 'tpu', 'torch', 'notebooks', 'docs'} <= set(config['options.extras_require'])
    version = config['metadata']['version']
    assert f'version: {version}' in (ROOT / 'CITATION.cff').read_text()
    assert '## Unreleased' in (ROOT / 'CHANGELOG.md').read_text()
    assert 'Apache License' in (ROOT / 'LICENSE').read_text()
