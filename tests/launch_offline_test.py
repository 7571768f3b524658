"""A bundle for a machine without a network: what is packed, what a start repeats, and what is taken back."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.launch_test import ROOT, bash, dry_run

VERSION = 'cpython 3.12'
# A Python that notes what it is told. As a sweep it leaves a finished run and an unfinished one.
PYTHON = f"""#!/usr/bin/env bash
case "$1" in
  -c) echo "${{SAYS:-{VERSION}}}"; exit ;;
esac
echo "$@" >>log
if [ "$2" = pip ]; then mkdir -p site; exit; fi
cat data/set/file >>log 2>/dev/null
eval "${{SWEEP:-}}"
exit 76
"""
LEAVES = """
leave() { mkdir -p "${1%/*}"; echo x >"$1"; }
leave results/one.json
leave runs/cut/seed_0/checkpoints/a
for name in summary.json config.json metrics.jsonl manifest.json student.safetensors checkpoints/b tensorboard/events \
  knowledge/points.npz knowledge/stage_2.npz knowledge/stage_10.npz; do
  leave runs/done/seed_0/$name; leave runs/teachers/t/seed_0/$name
done
leave runs/cache/one/tags.u32; leave runs/cache/one/rows.bin
"""


@pytest.fixture
def python(tmp_path) -> str:
    path = tmp_path / 'python'
    path.write_text(PYTHON)
    path.chmod(0o755)
    return str(path)


def bundle_in(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    (folder / 'run.sh').write_text((ROOT / 'launch' / 'offline_run.sh').read_text())
    (folder / 'extras').write_text('[gpu]\n')
    (folder / 'arguments').write_text('benchmark_hard\n--seed=100\n')
    (folder / 'interpreter').write_text(f'{VERSION}\n')
    return folder


@pytest.fixture
def bundle(tmp_path) -> pathlib.Path:
    return bundle_in(tmp_path / 'bundle')


def start(bundle: pathlib.Path, python: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return bash(f'bash {bundle}/run.sh {" ".join(words)}', PYTHON=python, **environment)


def refused(found: subprocess.CompletedProcess, says: str) -> None:
    assert found.returncode == 2 and says in found.stderr and found.stderr.count('\n') == 1, found.stderr


def test_a_dry_run_of_a_bundle_shows_every_command():
    commands = dry_run(
        'offline_bundle.sh', '/tmp/bundle', 'benchmark_hard', '--seed=100',
        KCD_JAX_EXTRAS='gpu', DATA='/data/cifar100:/data/mnist', FILES='teacher.safetensors', PYTHON=sys.executable,
        PLATFORMS='manylinux_2_28_x86_64',
    )  # fmt: skip
    folder, begun, wheel, download, wheels, packed, configs, data, copy, script, done = commands
    assert folder == ['mkdir', '-p', '/tmp/bundle/wheels'] and 'promise' in wheel and '--no-deps' in wheel
    assert download[-1].endswith('.whl[gpu]') and '--only-binary=:all:' in download and '--constraint' in download
    assert download[download.index('--platform') + 1] == 'manylinux_2_28_x86_64'
    assert wheels == ['pack', 'wheels', '-C', '/tmp/bundle/wheels', '.'] and packed == ['rm', '-r', wheels[3]]
    assert configs == ['cp', '-R', f'{ROOT}/configs', '/tmp/bundle/configs']
    assert data == ['pack', 'data', '-C', '/data', 'cifar100', '-C', '/data', 'mnist']
    assert copy == ['cp', 'teacher.safetensors', '/tmp/bundle']
    assert script == ['cp', f'{ROOT}/launch/offline_run.sh', '/tmp/bundle/run.sh']
    assert (begun[0], done[0]) == ('touch', 'rm') and begun[1] == done[1] == '/tmp/bundle/.packing'


def test_wheels_and_data_are_in_parts_and_a_failed_attempt_leaves_nothing(tmp_path):
    """A wheel of 70 MB, as jaxlib's, arrives whole; the first attempt ends in the download."""
    pip = tmp_path / 'pip_python'
    pip.write_text(
        '#!/usr/bin/env bash\ncase "$*" in\n'
        f'  *" pip wheel "*) touch {tmp_path}/bundle/wheels/kcd_jax-1-py3-none-any.whl ;;\n'
        f'  *" pip download "*) truncate -s 70M {tmp_path}/bundle/wheels/jaxlib.whl; [ -z "$FAIL" ] || exit 1 ;;\n'
        '  *" pip install "*) mkdir site ;;\n  *" sweep "*) ;;\n'
        f'  *) exec {sys.executable} "$@" ;;\nesac\n'
    )
    pip.chmod(0o755)
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'file').write_text('the data\n')
    command = f'cd {tmp_path}; {ROOT}/launch/offline_bundle.sh bundle digits_fig4'
    bundle = tmp_path / 'bundle'
    bundle.mkdir()
    (bundle / 'mine').touch()
    refused(bash(command, PYTHON=str(pip)), 'bundle is not empty')
    (bundle / 'mine').unlink()
    assert bash(command, PYTHON=str(pip), FAIL='1').returncode == 1 and not (bundle / 'run.sh').exists()
    (bundle / 'data.tar.ab').touch()  # of more data than now
    found = bash(command, PYTHON=str(pip), FAIL='', DATA='set')
    assert found.returncode == 0, found.stderr
    parts = {'wheels.tar.aa', 'wheels.tar.ab', 'wheels.sums', 'data.tar.aa', 'data.sums'}
    assert {path.name for path in bundle.iterdir()} == {
        *parts, 'configs', 'interpreter', 'extras', 'arguments', 'run.sh'
    }  # fmt: skip
    assert not (bundle / 'configs' / 'configs').exists()
    assert max(path.stat().st_size for path in bundle.rglob('*')) < 60_000_000
    (bundle / 'wheels.tar.ab').rename(tmp_path / 'late')
    refused(start(bundle, str(pip)), 'wheels.tar.* is incomplete; copy all of its parts')
    (tmp_path / 'late').rename(bundle / 'wheels.tar.ab')
    found = start(bundle, str(pip))
    assert found.returncode == 0, found.stderr
    assert (bundle / 'wheels' / 'jaxlib.whl').stat().st_size == 70 * 2**20
    assert (bundle / 'data' / 'set' / 'file').read_text() == 'the data\n'


def test_a_bundle_goes_on_from_what_was_taken_back(tmp_path, bundle, python):
    """Installed once; of finished runs only what others need is taken back."""
    for _ in range(2):
        found = start(bundle, python, '--minutes=9', SWEEP=LEAVES)
        assert found.returncode == 76, found.stderr
    lines = (bundle / 'log').read_text().splitlines()
    assert sum(' --no-index ' in line for line in lines) == 1, 'installed once'
    sweep = '-m kcd_jax sweep benchmark_hard --seed=100 --results=results --workdir=runs --spent=N --minutes=9'
    assert re.sub(r'spent=\d+', 'spent=N', lines[-1]) == sweep

    other = bundle_in(tmp_path / 'other')
    (bundle / 'back').rename(other / 'back')
    assert start(other, python).returncode == 76
    kept = {path.relative_to(other).as_posix() for path in (other / 'runs').rglob('*') if path.is_file()}
    names = {'summary.json', 'config.json', 'knowledge/stage_10.npz'}
    files = {'metrics.jsonl', 'manifest.json', 'student.safetensors', 'knowledge/points.npz', 'knowledge/stage_2.npz'}
    assert kept == {
        'runs/cut/seed_0/checkpoints/a',
        *(f'runs/done/seed_0/{name}' for name in names),
        *(f'runs/teachers/t/seed_0/{name}' for name in names | files),
    }
    assert (other / 'results' / 'one.json').exists() and not (other / 'back.unpacked').exists()


def test_a_part_that_is_missing_is_told_at_every_start(tmp_path, bundle, python):
    """A second start does not take what the first one has unpacked for all of it."""
    (bundle / 'run.sh').write_text((bundle / 'run.sh').read_text().replace('PART=15M', 'PART=200'))
    start(bundle, python, SWEEP=LEAVES)
    parts = sorted((bundle / 'back').iterdir())
    assert len(parts) > 1
    other = bundle_in(tmp_path / 'other')
    (bundle / 'back').rename(other / 'back')
    missing = other / 'back' / parts[-1].name
    missing.rename(tmp_path / 'late')
    for _ in range(2):
        refused(start(other, python), 'back/ is incomplete; copy all of its parts again')
    (tmp_path / 'late').rename(missing)
    (other / 'back.unpacked' / 'runs').mkdir(parents=True)  # of a start that was killed while it unpacked
    assert start(other, python).returncode == 76
    assert (other / 'runs' / 'cut' / 'seed_0' / 'checkpoints' / 'a').exists()


def test_sigterm_packs_what_python_saves(bundle, python):
    saves = f"{LEAVES} trap 'sleep 0.3; leave runs/cut/seed_0/checkpoints/saved; exit 75' TERM; touch started; "
    saves += 'while :; do sleep 0.1; done'
    environment = {**os.environ, 'PYTHON': python, 'SWEEP': saves}
    running = subprocess.Popen(['bash', f'{bundle}/run.sh'], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            if (bundle / 'started').exists():
                break
            time.sleep(0.1)
        if bash('command -v flock').returncode == 0:
            refused(start(bundle, python), 'another run.sh is at work')
        running.send_signal(signal.SIGTERM)
        _, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 75, error
    packed = bash(f'cat {bundle}/back/part.* | tar -tzf -').stdout.splitlines()
    assert 'runs/cut/seed_0/checkpoints/saved' in packed


def test_what_was_packed_before_survives_a_failure(tmp_path, bundle, python):
    """`split` fails as on a full disk; a kill between the two renames is made good."""
    start(bundle, python, SWEEP=LEAVES)
    before = {path.name: path.read_bytes() for path in (bundle / 'back').iterdir()}
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'split').write_text('#!/bin/sh\ncat >/dev/null\nexit 1\n')
    (tmp_path / 'bin' / 'split').chmod(0o755)
    path = f'{tmp_path}/bin:{os.environ["PATH"]}'
    found = start(bundle, python, PATH=path)
    assert found.returncode == 76 and 'back/ was not renewed' in found.stderr
    assert start(bundle, python, PATH=path, SWEEP='exit 0').returncode == 74
    assert {path.name: path.read_bytes() for path in (bundle / 'back').iterdir()} == before
    (bundle / 'back').rename(bundle / 'back.old')
    start(bundle, python, PATH=path)
    assert {path.name: path.read_bytes() for path in (bundle / 'back').iterdir()} == before


def test_another_python_is_refused_and_another_one_installs_again(bundle, python):
    refused(
        start(bundle, python, SAYS='cpython 3.11'), f'the bundle is for {VERSION}, but {python} is cpython 3.11; name'
    )
    refused(start(bundle, '/none/python'), '/none/python does not start')
    assert not (bundle / 'log').exists()
    start(bundle, python)
    (bundle / 'site' / '.installed').write_text('cpython 3.13\n')  # by another bundle
    start(bundle, python)
    assert (bundle / 'log').read_text().count(' pip install ') == 2
