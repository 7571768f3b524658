"""What a run writes, which runs it refuses, and how it detects lost files."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.runtime import files, runlog

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESCRIPTION = {
    'epochs': 4,
    'drops': (0.5, 0.75),
    'data': {'name': 'digits', 'dir': ''},
    'policy': {'name': 'kcd', 'ratio': 0.7},
}


def records(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_records_are_json_lines_at_once(tmp_path):
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        run.rewind([], -1)
        run.record({'kind': 'train', 'step': 3, 'loss': np.float32(0.5), 'bad': float('nan'), 'time': {'seconds': 1.5}})
        run.record({'kind': 'eval', 'step': 3, 'accuracy': jnp.float32(0.25), 'kept': np.int64(7)})
        assert records(tmp_path) == [
            {'kind': 'train', 'step': 3, 'loss': 0.5, 'bad': None, 'time': {'seconds': 1.5}},
            {'kind': 'eval', 'step': 3, 'accuracy': 0.25, 'kept': 7},
        ]
        assert len(run.lines) == 2
    assert list((tmp_path / 'tensorboard').glob('events.*'))


def write(workdir, steps):
    """Writes one record per step, without a checkpoint between them; returns the lines."""
    with runlog.RunLog(workdir, DESCRIPTION) as run:
        run.rewind([], -1)
        for step in steps:
            run.record({'kind': 'train', 'step': step})
        return list(run.lines)


DAMAGE = {
    'nothing': lambda content: content,
    'half a line more': lambda content: content + b'{"kind": "train", "ste',
    'cut in a line': lambda content: content[: len(content) // 3],
    'empty': lambda content: b'',
    'zeros': lambda content: bytes(len(content)),
    'no json': lambda content: content.replace(b'{', b'\xff'),
    'deleted': None,
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_rewind_restores_the_log_of_the_checkpoint(tmp_path, damage):
    lines = write(tmp_path, [10, 20, 20, 30])
    path = tmp_path / 'metrics.jsonl'
    content = path.read_bytes()
    path.unlink() if DAMAGE[damage] is None else path.write_bytes(DAMAGE[damage](content))
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        run.rewind(lines[:2], 20)
        assert [r['step'] for r in records(tmp_path)] == [10, 20]
        for step in (20, 30):
            run.record({'kind': 'train', 'step': step})
        assert run.lines == lines
    assert path.read_bytes() == content


def events(workdir):
    """(step, tag, value) of the scalars that TensorBoard shows, without those that a later start hides."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = []
    for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # length u64, its checksum u32, the event, its checksum u32
            size = int.from_bytes(content[:8], 'little')
            event, content = Event.FromString(content[12 : 12 + size]), content[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = [entry for entry in shown if entry[0] < event.step]
            shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_hides_steps_that_are_repeated(tmp_path):
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        run.rewind([], -1)
        for step in (10, 20, 30):
            run.record({'kind': 'train', 'step': step, 'loss': step / 10})
        run.sync()
        assert len(events(tmp_path)) == 3  # on the disk, not in a buffer that a kill would lose
        lines = run.lines[:2]
    [first] = (tmp_path / 'tensorboard').iterdir()
    first.rename(first.with_name('events.out.tfevents.1.host'))  # another start, within a second of the first
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        run.rewind(lines, 20)
        run.record({'kind': 'train', 'step': 30, 'loss': 4.0})
    assert events(tmp_path) == [(10, 'train/loss', 1.0), (20, 'train/loss', 2.0), (30, 'train/loss', 4.0)]


def test_config_is_written_once_and_compared(tmp_path):
    with runlog.RunLog(tmp_path, DESCRIPTION):
        content = json.loads((tmp_path / 'config.json').read_text())
    assert content['run']['policy'] == {'name': 'kcd', 'ratio': 0.7}
    assert content['device'] == {'kind': 'cpu', 'backend': 'cpu', 'count': 4, 'processes': 1}
    assert {'jax', 'numpy', 'flax'} <= set(content['versions']) and 'commit' in content
    with runlog.RunLog(tmp_path, {**DESCRIPTION, 'data': {'name': 'digits', 'dir': '/elsewhere'}}):
        pass
    other = {**DESCRIPTION, 'epochs': 5, 'policy': {'name': 'kcd', 'ratio': 0.5}}
    with pytest.raises(ValueError, match=r'another configuration: epochs is 4 there and 5 here, policy.ratio is'):
        runlog.RunLog(tmp_path, other).__enter__()
    with runlog.RunLog(tmp_path, DESCRIPTION):
        pass


def test_a_cut_config_is_written_again(tmp_path):
    (tmp_path / 'config.json').write_text('{"run": {')
    with runlog.RunLog(tmp_path, DESCRIPTION):
        assert json.loads((tmp_path / 'config.json').read_text())['run']['epochs'] == 4


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    with runlog.RunLog(tmp_path, DESCRIPTION):
        with pytest.raises(ValueError, match=rf'another run \(process {os.getpid()}\) is using .*another --workdir'):
            runlog.RunLog(tmp_path, DESCRIPTION).__enter__()
    with runlog.RunLog(tmp_path, DESCRIPTION):
        pass


def test_a_killed_run_releases_its_lock(tmp_path):
    hold = (
        'import sys\nfrom kcd_jax.runtime import runlog\n'
        'with runlog.RunLog(sys.argv[1], {}): print(flush=True); sys.stdin.read()'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    process.stdout.readline()
    with pytest.raises(ValueError, match=f'process {process.pid}'):
        runlog.RunLog(tmp_path, {}).__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with runlog.RunLog(tmp_path, {}):
        pass


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='work directory .* cannot be written .*choose another --workdir'):
        runlog.RunLog(tmp_path / 'file' / 'run', DESCRIPTION).__enter__()

    def refuse(*args, **keywords):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(pathlib.Path, 'mkdir', refuse)
    with pytest.raises(ValueError, match=r'cannot be written \(Read-only file system\)'):
        runlog.RunLog(tmp_path / 'run', DESCRIPTION).__enter__()


def test_a_full_disk_is_reported_in_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        run.rewind([], -1)
        run.record({'step': 1})
        lines = list(run.lines)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            with pytest.raises(OSError, match=r'metrics.jsonl .* cannot be written \(File too large\); .*: make room'):
                run.record({'step': 2, 'text': 'x' * 10000})
            with pytest.raises(OSError, match='cannot be written .*; make room or choose another place'):
                files.write_bytes(tmp_path / 'big', b'x' * 10000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / 'big').exists() and not list(tmp_path.glob('*.partial'))
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        run.rewind(lines, 1)
    assert records(tmp_path) == [{'step': 1}]


def test_a_full_disk_stops_the_events_too(tmp_path):
    """tensorboardX's own writer would wait for its dead thread forever."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r'tensorboard next to it cannot be written \(File too large\)'):
            with runlog.RunLog(tmp_path, DESCRIPTION) as run:
                run.rewind([], -1)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
                for step in range(1000):
                    run.record({'kind': 'train', 'step': step, **{f'loss_{i}': 1.0 for i in range(20)}})
                run.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_summary_says_that_the_run_is_finished(tmp_path):
    with runlog.RunLog(tmp_path, DESCRIPTION) as run:
        assert runlog.read_summary(tmp_path) is None
        run.write_summary({'accuracy': np.float32(0.5), 'loss': float('inf'), 'run': DESCRIPTION})
    assert runlog.read_summary(tmp_path)['accuracy'] == 0.5 and runlog.read_summary(tmp_path)['loss'] is None
    (tmp_path / 'summary.json').write_text('{"accuracy": 0.')
    assert runlog.read_summary(tmp_path) is None


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    with runlog.RunLog(tmp_path / 'run', DESCRIPTION) as run:
        run.rewind([], -1)
        run.record({'step': 1})
        run.say('hello')
        run.start_progress(100)
        run.progress(10, loss=1.0)
        run.write_summary({'accuracy': 1})
        run.write_arrays('x.npz', x=np.ones(1))
    assert not (tmp_path / 'run').exists() and capsys.readouterr().out == ''


@pytest.mark.parametrize('call', ['record', 'sync'])
@pytest.mark.parametrize('how', ['deleted', 'moved', 'made again'])
def test_a_folder_that_disappears_under_a_run_is_an_error(tmp_path, how, call):
    """Writing to a deleted file succeeds, and its content is silently lost."""
    workdir = tmp_path / 'run'
    with pytest.raises(OSError, match='metrics.jsonl was deleted, moved or replaced while the run was using it'):
        with runlog.RunLog(workdir, DESCRIPTION) as run:
            run.rewind([], -1)
            run.record({'step': 1})
            workdir.rename(tmp_path / 'elsewhere') if how == 'moved' else shutil.rmtree(workdir)
            if how == 'made again':
                write(workdir, [5])
            run.record({'step': 2}) if call == 'record' else run.sync()
    if how == 'made again':
        assert records(workdir) == [{'kind': 'train', 'step': 5}]


# ------------------------------------------------------------------------------------------------- finished runs


@pytest.fixture
def done(tmp_path) -> pathlib.Path:
    """A finished run with all its files and a checkpoint."""
    workdir = tmp_path / 'run'
    with runlog.RunLog(workdir, DESCRIPTION) as run:
        run.rewind([], -1)
        run.record({'kind': 'train', 'step': 1})
        for name in ('stage_1', 'points'):
            run.write_arrays(f'knowledge/{name}.npz', value=np.arange(100))
        (workdir / 'student.safetensors').write_bytes(bytes(1000))
        (workdir / 'checkpoints' / '1').mkdir(parents=True)
        run.write_summary({'accuracy': 0.5})
    return workdir


LOSSES = {
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:-3]),
    'changed': lambda path: path.write_bytes(path.read_bytes()[:-3] + b'xyz'),
    'deleted': lambda path: path.unlink(),
    'empty': lambda path: path.write_bytes(b''),
}


def test_a_whole_finished_run_is_read_back(done, capsys):
    assert runlog.finished(done) == {'accuracy': 0.5} and runlog.damaged(done) == []
    assert runlog.finished(done / 'nothing') is None and capsys.readouterr().out == ''


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize(
    'name', ['metrics.jsonl', 'knowledge/points.npz', 'knowledge/stage_1.npz', 'student.safetensors']
)
def test_a_lost_file_of_a_finished_run_is_noticed(done, capsys, name, loss):
    LOSSES[loss](done / name)
    assert runlog.damaged(done) == [name]
    assert runlog.finished(done) is None
    assert capsys.readouterr().out == (
        f'{done}: {name} of the finished run is damaged or missing; continuing from the last checkpoint to write it '
        'again\n'
    )


@pytest.mark.parametrize('loss', ['truncated', 'deleted'])
def test_a_lost_manifest_is_noticed_and_written_again(done, capsys, loss):
    """Without it, nothing could be compared: a lost log would go unnoticed."""
    LOSSES[loss](done / 'manifest.json')
    (done / 'metrics.jsonl').unlink()
    assert runlog.finished(done) is None
    assert 'manifest.json of the finished run is damaged or missing; continuing' in capsys.readouterr().out
    with runlog.RunLog(done, DESCRIPTION) as run:
        run.write_summary({'accuracy': 0.75})
    assert runlog.damaged(done) == []


def test_without_a_checkpoint_the_summary_is_all_there_is(done, capsys):
    shutil.rmtree(done / 'checkpoints')
    shutil.rmtree(done / 'knowledge')
    assert runlog.finished(done) == {'accuracy': 0.5}
    [line] = capsys.readouterr().out.splitlines()
    assert 'knowledge/points.npz, knowledge/stage_1.npz of the finished run are damaged or missing, and no' in line
    assert line.endswith('only the same command in another --workdir writes them again')


def test_an_archive_that_nothing_can_read_is_removed_at_the_end(done, capsys):
    LOSSES['truncated'](done / 'knowledge' / 'stage_1.npz')
    with runlog.RunLog(done, DESCRIPTION) as run:
        run.write_summary({'accuracy': 0.75})
    assert runlog.finished(done) == {'accuracy': 0.75}
    assert not (done / 'knowledge' / 'stage_1.npz').exists() and (done / 'knowledge' / 'points.npz').exists()
    assert 'stage_1.npz cannot be read and was removed; reports omit it' in capsys.readouterr().out
