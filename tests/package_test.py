"""The package's own surface."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pydoc
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest

import kcd_jax
import kcd_jax.__main__ as program

pytestmark = pytest.mark.fast_compile


def test_importing_the_package_is_cheap():
    code = 'import sys, kcd_jax; assert not {"jax", "flax", "numpy"} & set(sys.modules), "kcd_jax imports its parts"'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_public_names():
    assert kcd_jax.Condenser is kcd_jax.knowledge.Condenser
    assert 'kcd' in kcd_jax.policies.names() and {'Condenser', 'knowledge'} <= set(dir(kcd_jax))
    assert all(hasattr(kcd_jax, name) for name in kcd_jax.__all__) and set(kcd_jax.__all__) <= set(dir(kcd_jax))
    assert all(hasattr(kcd_jax.knowledge, name) for name in kcd_jax.knowledge.__all__)
    with pytest.raises(AttributeError, match='no attribute'):
        kcd_jax.condense  # noqa: B018


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown policy 'kdc' \\(did you mean 'kcd'\\?\\); known: .*random"):
        kcd_jax.policies.get('kdc')


def test_help_shows_the_way_in():
    text = pydoc.render_doc(kcd_jax, renderer=pydoc.plaintext)
    assert "run = kcd_jax.Run(student='resnet8'" in text and 'importlib' not in dir(kcd_jax)
    assert [name for name in dir(kcd_jax) if not name.startswith('_')] == sorted(kcd_jax.__all__[1:])


@pytest.mark.parametrize('error', [KeyboardInterrupt, RecursionError, ImportError])
def test_control_c_while_modules_are_imported_is_one_line(monkeypatch, capsys, error):
    """Whatever the interrupted import raises."""
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(name):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise error

    monkeypatch.setattr(program.importlib, 'import_module', interrupted)
    assert program.main(['train']) == 130
    assert capsys.readouterr().err.startswith('Ctrl-C: nothing was saved now')
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr(program.importlib, 'import_module', lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.main(['train'])


@pytest.mark.slow
def test_the_wheel_alone_trains_and_exports(tmp_path):
    """What pip builds, unpacked in an empty folder far from the checkout; the dependencies are those that are here."""
    root = pathlib.Path(__file__).parent.parent
    source = tmp_path / 'source'
    tracked = subprocess.run(['git', '-C', root, 'ls-files', '-z'], capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split('\0')):
        if name.startswith(('kcd_jax/', 'configs/')) or '/' not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, source / name)
    build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob('*.whl')
    installed, empty = tmp_path / 'installed', tmp_path / 'empty'
    zipfile.ZipFile(wheel).extractall(installed)
    empty.mkdir()
    assert {path.name for path in installed.iterdir()} == {'kcd_jax', f'kcd_jax-{kcd_jax.__version__}.dist-info'}
    shipped = {path.name for path in (root / 'configs').glob('*.py')}
    assert {path.name for path in (installed / 'kcd_jax' / 'configs').glob('*.py')} == shipped
    points = (installed / f'kcd_jax-{kcd_jax.__version__}.dist-info' / 'entry_points.txt').read_text()
    assert 'kcd_jax = kcd_jax.__main__:main' in points

    def kcd(*words):
        environment = {**os.environ, 'PYTHONPATH': str(installed), 'KCD_JAX_CACHE': str(tmp_path / 'cache')}
        code = 'import sys; from kcd_jax.__main__ import main; sys.exit(main())'
        done = subprocess.run(
            [sys.executable, '-c', code, *words], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kcd(
        'train',
        '--config=digits_kd:quicktest,resnet8-resnet8x0_25,method=kd,epochs=1,teacher.epochs=1,teaching.allow_weak=True',
        '--workdir=mine',
    )
    said = kcd('export', 'mine/kd/trial_0', '--format=stablehlo', '--out=student')
    assert '100 images (test images of digits)' in said and (empty / 'student.stablehlo.md').is_file()
    assert 'digits_equal_compute' in kcd('sweep')
