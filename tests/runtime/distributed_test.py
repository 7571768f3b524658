"""Several processes: real ones on loopback, the launcher that starts them, and the same plans on any topology."""

from __future__ import annotations

import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from kcd_jax.runtime import distributed, sharding
from tests.tiny import plans

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCHER = [sys.executable, str(ROOT / 'launch' / 'local_processes.py')]


def launch(module: str, *args: str, processes: int = 2, devices: int = 2, options: tuple[str, ...] = ()):
    """The finished launcher; its output is captured."""
    command = [*LAUNCHER, f'--processes={processes}', f'--devices-per-process={devices}', f'--module={module}']
    return subprocess.run([*command, *options, '--', *args], cwd=ROOT, capture_output=True, text=True, timeout=900)


# ---------------------------------------------------------------------------------------------------------- one process


def test_processes_are_not_connected_by_default(monkeypatch):
    """A SLURM environment alone must not make a run wait for other processes."""
    for name, value in {'JOB_ID': '7', 'STEP_NODELIST': 'n[1-4]', 'NTASKS': '4', 'PROCID': '0', 'LOCALID': '0'}.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    distributed.initialize('')
    assert not distributed.is_connected() and jax.process_count() == 1


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('', 2, 0), 'need --coordinator'),
        (('auto', 2, None), 'leave them out'),
        (('somewhere',), 'neither HOST:PORT nor auto'),
        (('host:name', 2, 0), 'neither HOST:PORT nor auto'),
        (('host:80', 2, 2), 'its own index from 0'),
        (('host:80',), 'the number of processes'),
    ],
)
def test_half_an_address_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says) as caught:
        distributed.initialize(*arguments)
    assert '\n' not in str(caught.value)


def test_one_process_keeps_its_errors_and_values():
    with pytest.raises(OSError, match='disk'), distributed.together():
        raise OSError('disk')
    assert distributed.first(lambda: (1, 2)) == (1, 2)
    assert distributed.from_first(b'x') == b'x' and distributed.from_all('x') == ['x']


def test_a_timer_is_due_after_its_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    timer = distributed.Timer(5.0)
    assert not timer.due()
    now[0] += 5.1
    assert timer.due()
    timer.restart()
    assert not timer.due()


def test_the_first_processs_clock_decides_and_is_read_rarely(monkeypatch):
    """Two processes; the other's clock is far ahead, and only the first one's counts."""
    now, asked = [0.0], []

    def first_says(mine):
        asked.append(now[0])
        return mine

    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, '_broadcast', first_says)
    timer, due = distributed.Timer(100.0), []
    for _ in range(1100):
        now[0] += 0.1
        if timer.due():
            due.append(now[0])
            timer.restart()
    assert len(due) == 1 and 100 < due[0] < 101
    assert len(asked) < 20
    monkeypatch.setattr(distributed, '_broadcast', lambda mine: 1)
    assert not distributed.Timer(0.0).due()


@pytest.mark.parametrize(
    ('number', 'code', 'says'),
    [(signal.SIGTERM, 75, 'SIGTERM: saved step 1,234; '), (signal.SIGINT, 130, 'Ctrl-C: saved step 1,234; ')],
)
def test_signals_are_caught_and_handlers_restored(number, code, says):
    before = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with distributed.Notice() as notice:
        assert not notice.came()
        os.kill(os.getpid(), number)
        assert notice.came()
        stopped = notice.stopped(1234)
    assert stopped.exit_code == code and str(stopped) == f'{says}the same command resumes from there'
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == before


def test_a_second_ctrl_c_does_not_wait(capfd):
    with pytest.raises(KeyboardInterrupt), distributed.Notice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == 'Ctrl-C: saving after this step; press it again to stop without saving\n'


# --------------------------------------------------------------------------------------------------------- the launcher


def test_launcher_names_the_dead_process_and_ends_the_others(tmp_path):
    began = time.monotonic()
    found = launch('tests.tiny.dying', '--how=killed', f'--folder={tmp_path}', options=('--grace=0.5',))
    assert found.returncode == 128 + signal.SIGKILL and time.monotonic() - began < 30
    assert found.stderr == 'launcher: process 1 was killed by SIGKILL; the others were ended\n'
    assert 'process 0 begins\n' in found.stdout and '[1] process 1 begins\n' in found.stdout
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / '0.pid').read_text()), 0)


def test_the_launcher_starts_again(tmp_path):
    options = ('--grace=0.1', '--restarts=2')
    found = launch('tests.tiny.dying', '--how=killed', f'--folder={tmp_path}', options=options)
    assert found.returncode == 0, found.stderr
    assert 'starting all 2 again; restarts left: 1' in found.stderr


def test_launcher_prints_lines_of_all_processes_once(tmp_path):
    found = launch('tests.tiny.dying', '--how=mistake', f'--folder={tmp_path}', options=('--restarts=3', '--grace=60'))
    assert found.returncode == 2
    assert found.stderr.removeprefix('[1] ') == 'error: a mistake\n'  # of the process that says it first


@pytest.mark.parametrize('after_one', [True, False])
@pytest.mark.parametrize(
    ('line', 'of_gloo'),
    [
        ('[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1', True),
        ('2 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3', True),
        ('[Gloo] Rank [Gloo] Rank 12 is connected to  is connected to 33 peer ranks. ', True),
        ('process 1 is connected to 3 peer ranks. ', False),
        ('33', None),
        ('', None),
    ],
)
def test_the_launcher_knows_gloos_lines(line, of_gloo, after_one):
    """Two that connect at once cut each other's line; a number or nothing is gloo's behind such a line alone."""
    launcher = runpy.run_path(LAUNCHER[-1])
    assert launcher['is_of_gloo'](f'{line}\n', after_one) is (after_one if of_gloo is None else of_gloo)


def test_processes_agree_when_all_of_their_devices_have():
    """A process that ends while its second device still connects would leave the other one waiting."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'--coordinator=127.0.0.1:{probe.getsockname()[1]}'
    command = [sys.executable, '-m', 'tests.tiny.late', address, '--processes=2', '--devices=2']
    started = [
        subprocess.Popen([*command, f'--process={number}'], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    for process in started:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "['0', '1']" in out
        assert out.count('[Gloo]') == 2, 'one line for each device'


def test_sigterm_reaches_every_process(tmp_path):
    command = [*LAUNCHER, '--restarts=1', '--module=tests.tiny.dying', '--', '--how=asked', f'--folder={tmp_path}']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(list(tmp_path.glob('*.pid'))) < 2:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert 'again' not in errors


@pytest.mark.parametrize(
    ('number', 'code', 'says'), [(signal.SIGINT, 130, 'Ctrl-C: saved'), (signal.SIGTERM, 75, 'SIGTERM: saved')]
)
def test_a_signal_stops_connected_processes_at_the_same_step(tmp_path, number, code, says):
    command = [*LAUNCHER, '--devices-per-process=1', '--module=tests.tiny.stopping', '--', f'--folder={tmp_path}']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(list(tmp_path.glob('*.ready'))) < 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert errors.count(says) == 1
    steps = {path.read_text() for path in tmp_path.glob('*.step')}
    assert len(steps) == 1 and len(list(tmp_path.glob('*.step'))) == 2


def test_no_process_outlives_a_killed_launcher(tmp_path):
    command = [*LAUNCHER, '--module=tests.tiny.dying', '--', '--how=asked', f'--folder={tmp_path}']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while sum(path.stat().st_size > 0 for path in tmp_path.glob('*.pid')) < 2:
            time.sleep(0.02)
        process.kill()
    until = time.monotonic() + 60
    for path in tmp_path.glob('*.pid'):
        while is_alive(int(path.read_text())):
            assert time.monotonic() < until, 'still alive'
            time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected has no command line."""
    try:
        return bool(pathlib.Path(f'/proc/{pid}/cmdline').read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


# ------------------------------------------------------------------------------------------ equal plans on any topology


@pytest.fixture(scope='module')
def here() -> dict[str, str]:
    """The plans on four devices of this process."""
    return plans.digests(sharding.make_mesh())


@pytest.mark.parametrize('devices', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_plans_are_the_same_on_fewer_devices(here, devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    assert plans.digests(mesh) == here


def check_report(found, here, processes: int, devices: int) -> None:
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert (report['processes'], report['devices']) == (processes, devices)
    assert report['plans'] == here
    assert report['first'] == {'number': 0} and report['bytes'] == 'from 0'
    assert report['arrays'] == {'a': [0.0, 0.0, 0.0], 'b': 0}
    assert report['all'] == [f'I am {number}' for number in range(processes)]
    assert report['rows'] == list(range(8 // processes))
    last = processes - 1
    assert report['error'] == (f'process {last}: no such place' if last else 'no such place')
    assert report['on_disk'] and report['due'] == [True] * 3


def test_two_processes_make_the_same_plans_and_agree(here):
    check_report(launch('tests.tiny.plans'), here, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'devices'), [(1, 8), (4, 2)])
def test_more_processes_and_devices_make_the_same_plans(here, processes, devices):
    check_report(launch('tests.tiny.plans', processes=processes, devices=devices), here, processes, processes * devices)
