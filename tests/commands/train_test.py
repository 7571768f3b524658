"""The command line as a user types it: exit codes, and one line on stderr for bad input."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from kcd_jax.__main__ import main as kcd_jax_main
from kcd_jax.commands import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIGITS = 'configs/digits_kd.py'
QUICK = f'{DIGITS}:quicktest,method=kd,policy=kcd'


def main(*args, **options):
    """Runs the program; its output is captured."""
    command = [sys.executable, '-m', 'kcd_jax.main', *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def one_line(process, code, says):
    """The program ended with this code and one line on stderr that says this."""
    assert process.returncode == code, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and says in lines[0], process.stderr


@pytest.mark.parametrize(
    ('args', 'says'),
    [
        ((f'--config={DIGITS}:method=kdd',), "did you mean 'kd'?"),
        ((f'--config={DIGITS}', '--config.optim.lrr=1'), "unknown config key 'optim.lrr'"),
        ((f'--config={DIGITS}', '--config.epochs=many'), 'epochs'),
        (('--config', 'configs/nothing.py'), 'there is no config file'),
        ((), 'no --config'),
        ((f'--config={DIGITS}:policy=kcd,alpha=0.9',), 'alpha could mean policy.alpha or weights.alpha'),
        ((f'--config={DIGITS}', '--config.method.name=crd'), '--config=FILE:method=crd'),
        ((f'--config={DIGITS}', '--config.epochs'), '--config.epochs needs a value'),
        ((f'--config={DIGITS}:temperature=0',), 'weights.temperature is 0'),
        ((f'--config={DIGITS}', '--wrkdir=x'), 'wrkdir'),
        ((f'--config={DIGITS}', '--devices=-1'), '--devices=-1 is out of range'),
        ((f'--config={DIGITS}', '--devices=100000'), '--devices=100000 is out of range'),
    ],
)
def test_bad_words_are_one_line(args, says, capsys):
    assert train.main(args) == 2
    out, err = capsys.readouterr()
    assert out == '' and len(err.splitlines()) == 1 and says in err


@pytest.mark.parametrize('flag', ['--workdir', '--results'])
def test_a_folder_that_cannot_be_one_is_refused_before_the_training(tmp_path, flag, capsys):
    (tmp_path / 'file').write_text('mine')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'below', '~no_such_user_here/x'):
        assert train.main([f'--config={QUICK}', '--check', f'{flag}={place}']) == 2
        out, err = capsys.readouterr()
        assert out == '' and len(err.splitlines()) == 1 and ('is a file' in err or 'no_such_user_here' in err)
    assert (tmp_path / 'file').read_text() == 'mine'


def test_reports_take_a_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert kcd_jax_main(['report', 'table', '~/nothing']) == 2
    assert str(tmp_path / 'nothing') in capsys.readouterr().err


@pytest.mark.parametrize('platform', ['cuda', 'no_such_platform'])
def test_a_platform_that_is_not_there_is_one_line(platform):
    environment = {**os.environ, 'JAX_PLATFORMS': platform}
    one_line(main(f'--config={QUICK}', '--check', env=environment), 2, f"no device for JAX_PLATFORMS='{platform}'")


@pytest.mark.parametrize(
    'words', ['data chek digits', 'report tabel x', 'networks --size=3', 'teacher imprt x', 'sweep --x', 'bench --x']
)
def test_every_command_refuses_bad_flags_in_one_line(words, capsys):
    assert kcd_jax_main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and len(err.splitlines()) == 1


def test_settings_are_split_from_the_flags():
    rest, settings = train.split_settings(['--config=a.py', '--config.optim.lr=1', '--config.seed', '2', '--check'])
    assert rest == ['--config=a.py', '--check'] and settings == [('optim.lr', '1'), ('seed', '2')]


def test_reuse_is_short_for_the_words_of_its_policy():
    for words in ('', ':quicktest', ':'):
        config = train.read_config(f'{DIGITS}{words}', [('policy.reuse', 'runs/a,b')])
        assert (config.policy.name, config.policy.run) == ('reuse', 'runs/a,b')


def test_the_folder_does_not_depend_on_what_is_compared():
    one, five = (train.read_config(f'{DIGITS}:trials={n}', []) for n in (1, 5))
    other = train.read_config(f'{DIGITS}:trials=1,ratio=0.5', [])
    folders = [train.default_workdir(f'{DIGITS}:x', config) for config in (one, five, other)]
    assert folders[0] == folders[1] != folders[2] and folders[0].parts[0] == 'runs'
    assert folders[0].name.startswith('digits_kd-')


@pytest.mark.parametrize('command', ['train', 'sweep', 'teacher', 'data', 'networks', 'cost', 'report', 'bench'])
def test_every_command_has_help_with_an_example(command):
    """One line for each flag, exit code 0, and no other output."""
    done = subprocess.run(
        [sys.executable, '-m', 'kcd_jax', command, '--help'], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert 'usage: ' in done.stdout and 'example' in done.stdout.lower()
    assert re.search(r'python -m (kcd_jax|benchmarks)', done.stdout.partition('xample')[2])


def test_the_list_of_commands():
    def run(*args):
        command = [sys.executable, '-m', 'kcd_jax', *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    listed = run('--help')
    assert listed.returncode == 0 and all(name in listed.stdout for name in ('train', 'sweep', 'bench'))
    assert run().returncode == 2
    one_line(run('trian'), 2, "unknown command 'trian' (did you mean train?)")
    one_line(run('train', '--config=configs/nothing.py'), 2, 'there is no config file')


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (f'{DIGITS}:ratio=1.5', 'ratio is 1.5'),
        (f'{DIGITS}:stages=7', 'use 6 or 10 stages'),
        (f'{DIGITS}:batch=22', 'use 20 or 24'),
        (f'{DIGITS}:ratio=0.01', 'fewer than one batch of 20'),
        ('configs/cifar100_kd.py:data.dir=EMPTY', 'cifar100'),
        (f'{DIGITS}:data.name=digit', "unknown data set 'digit'"),
        (f'{DIGITS} --config.policy.reuse=nowhere', 'nowhere holds no knowledge/stage_*.npz'),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, says):
    """On the four devices of this process."""
    monkeypatch.setattr('kcd_jax.commands.launch.prepare_jax', lambda devices=0, deterministic=False: None)
    args = words.replace('EMPTY', str(tmp_path / 'empty')).split()
    assert train.main([f'--config={args[0]}', *args[1:], f'--workdir={tmp_path}/run']) == 2
    out, err = capsys.readouterr()
    assert out == '' and len(err.splitlines()) == 1 and says in err
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_program_with_bad_input_leaves_nothing(tmp_path):
    one_line(main(f'--config={DIGITS}', '--devices=3', f'--workdir={tmp_path}/run'), 2, '3 devices do not divide 512')
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_check_prints_what_will_be_done_and_does_nothing(tmp_path):
    process = main(f'--config={DIGITS}', '--check', f'--workdir={tmp_path}/run')
    assert process.returncode == 0, process.stderr
    for word in ('--- student: method none', '--- kcd: method kd, policy kcd, resnet14 -> resnet8x0_25 on digits',
                 '300 training points', 'scheduled 14,790 of 18,000'):  # fmt: skip
        assert word in process.stdout, word
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_alone_that_diverges(tmp_path):
    """Nothing has finished, so there is no table and no page, and that is no second mistake."""
    words = 'quicktest,resnet8-resnet8x0_25,method=none,policy=none,lr=1000,gamma=1e6'
    one_line(main(f'--config={DIGITS}:{words}', f'--workdir={tmp_path}/run'), 3, 'is not finite')
