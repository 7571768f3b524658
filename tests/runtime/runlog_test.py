"""What a run writes and says, and whom it refuses."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kcd_jax.runtime import files, runlog

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = {
    'epochs': 4,
    'drops': (0.5, 0.75),
    'data': {'name': 'digits', 'dir': ''},
    'policy': {'name': 'kcd', 'ratio': 0.7},
}


def records(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_records_are_json_lines_at_once(tmp_path):
    with runlog.RunLog(tmp_path, CONFIG) as run:
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
    """Writes a record a step, without a checkpoint between them; the lines."""
    with runlog.RunLog(workdir, CONFIG) as run:
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
def test_the_log_goes_back_to_what_it_was_at_the_checkpoint(tmp_path, damage):
    lines = write(tmp_path, [10, 20, 20, 30])
    path = tmp_path / 'metrics.jsonl'
    content = path.read_bytes()
    path.unlink() if DAMAGE[damage] is None else path.write_bytes(DAMAGE[damage](content))
    with runlog.RunLog(tmp_path, CONFIG) as run:
        run.rewind(lines[:2], 20)
        assert [r['step'] for r in records(tmp_path)] == [10, 20]
        for step in (20, 30):
            run.record({'kind': 'train', 'step': step})
        assert run.lines == lines
    assert path.read_bytes() == content


def events(workdir):
    """(step, tag, value) of the scalars that TensorBoard shows: what a later start hides is left out."""
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


def test_tensorboard_forgets_what_is_done_again(tmp_path):
    with runlog.RunLog(tmp_path, CONFIG) as run:
        run.rewind([], -1)
        for step in (10, 20, 30):
            run.record({'kind': 'train', 'step': step, 'loss': step / 10})
        run.sync()
        assert len(events(tmp_path)) == 3  # on the disk, not in a buffer that a kill would lose
        lines = run.lines[:2]
    [first] = (tmp_path / 'tensorboard').iterdir()
    first.rename(first.with_name('events.out.tfevents.1.host'))  # another start, within a second of the first
    with runlog.RunLog(tmp_path, CONFIG) as run:
        run.rewind(lines, 20)
        run.record({'kind': 'train', 'step': 30, 'loss': 4.0})
    assert events(tmp_path) == [(10, 'train/loss', 1.0), (20, 'train/loss', 2.0), (30, 'train/loss', 4.0)]


def test_config_is_written_once_and_compared(tmp_path):
    with runlog.RunLog(tmp_path, CONFIG):
        content = json.loads((tmp_path / 'config.json').read_text())
    assert content['config']['policy'] == {'name': 'kcd', 'ratio': 0.7}
    assert content['device'] == {'kind': 'cpu', 'backend': 'cpu', 'count': 4, 'processes': 1}
    assert {'jax', 'numpy', 'flax'} <= set(content['versions']) and 'commit' in content
    with runlog.RunLog(tmp_path, {**CONFIG, 'data': {'name': 'digits', 'dir': '/elsewhere'}}):
        pass
    other = {**CONFIG, 'epochs': 5, 'policy': {'name': 'kcd', 'ratio': 0.5}}
    with pytest.raises(ValueError, match=r'another configuration: epochs is 4 there and 5 here, policy.ratio is'):
        runlog.RunLog(tmp_path, other).__enter__()
    with runlog.RunLog(tmp_path, CONFIG):
        pass


def test_a_cut_config_is_written_again(tmp_path):
    (tmp_path / 'config.json').write_text('{"config": {')
    with runlog.RunLog(tmp_path, CONFIG):
        assert json.loads((tmp_path / 'config.json').read_text())['config']['epochs'] == 4


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    with runlog.RunLog(tmp_path, CONFIG):
        with pytest.raises(ValueError, match=rf'another run \(process {os.getpid()}\) is using .*another --workdir'):
            runlog.RunLog(tmp_path, CONFIG).__enter__()
    with runlog.RunLog(tmp_path, CONFIG):
        pass


def test_a_killed_run_lets_go(tmp_path):
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
        runlog.RunLog(tmp_path / 'file' / 'run', CONFIG).__enter__()

    def refuse(*args, **keywords):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(pathlib.Path, 'mkdir', refuse)
    with pytest.raises(ValueError, match=r'cannot be written \(Read-only file system\)'):
        runlog.RunLog(tmp_path / 'run', CONFIG).__enter__()


def test_a_full_disk_is_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with runlog.RunLog(tmp_path, CONFIG) as run:
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
    with runlog.RunLog(tmp_path, CONFIG) as run:
        run.rewind(lines, 1)
    assert records(tmp_path) == [{'step': 1}]


def test_a_full_disk_stops_the_events_too(tmp_path):
    """tensorboardX's own writer would wait for its dead thread forever."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r'tensorboard beside it cannot be written \(File too large\)'):
            with runlog.RunLog(tmp_path, CONFIG) as run:
                run.rewind([], -1)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
                for step in range(1000):
                    run.record({'kind': 'train', 'step': step, **{f'loss_{i}': 1.0 for i in range(20)}})
                run.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_summary_says_that_the_run_is_finished(tmp_path):
    with runlog.RunLog(tmp_path, CONFIG) as run:
        assert runlog.read_summary(tmp_path) is None
        run.write_summary({'accuracy': np.float32(0.5), 'loss': float('inf'), 'config': CONFIG})
    assert runlog.read_summary(tmp_path)['accuracy'] == 0.5 and runlog.read_summary(tmp_path)['loss'] is None
    (tmp_path / 'summary.json').write_text('{"accuracy": 0.')
    assert runlog.read_summary(tmp_path) is None


def test_archives_are_whole_or_absent(tmp_path):
    files.write_npz(tmp_path / 'knowledge' / 'stage_1.npz', order=np.arange(5), num_keep=jnp.int32(3))
    with np.load(tmp_path / 'knowledge' / 'stage_1.npz') as archive:
        assert archive['order'].tolist() == [0, 1, 2, 3, 4] and archive['num_keep'] == 3
    assert os.listdir(tmp_path / 'knowledge') == ['stage_1.npz']


@pytest.mark.parametrize(('limit', 'compressed'), [(10**6, True), (10**3, False)])
def test_large_archives_are_not_compressed(tmp_path, monkeypatch, limit, compressed):
    monkeypatch.setattr(files, 'PLAIN_BYTES', limit)
    files.write_npz(tmp_path / 'stage.npz', zeros=np.zeros(1000))
    assert ((tmp_path / 'stage.npz').stat().st_size < 2000) == compressed
    with np.load(tmp_path / 'stage.npz') as archive:
        np.testing.assert_array_equal(archive['zeros'], np.zeros(1000))


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    with runlog.RunLog(tmp_path / 'run', CONFIG) as run:
        run.rewind([], -1)
        run.record({'step': 1})
        run.say('hello')
        run.start_progress(100)
        run.progress(10, loss=1.0)
        run.note('epoch 1')
        run.write_summary({'accuracy': 1})
        run.write_arrays('x.npz', x=np.ones(1))
    assert not (tmp_path / 'run').exists() and capsys.readouterr().out == ''


def test_plain_progress_is_seldom_and_says_what_is_left(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(runlog.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    with runlog.RunLog(tmp_path, CONFIG) as run:
        run.start_progress(10_000, done=2_000)
        for _ in range(40):
            now[0] += 0.5
            run.progress(100, loss=1.25)
            run.note('epoch')
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        '4,000 of 10,000 images, 200 images/s, 00:30 left, loss 1.250',
        '6,000 of 10,000 images, 200 images/s, 00:20 left, loss 1.250',
    ]


def test_the_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    with runlog.RunLog(tmp_path, CONFIG) as run:
        run.start_progress(1000, done=100)
        run.progress(900, loss=0.5)
        run.say('condensation 1/2')
        runlog.say('another line')
    out, err = capsys.readouterr()
    assert out == 'condensation 1/2\nanother line\n'
    assert '1.00k/1.00k' in err and 'images/s' in err and 'loss=0.500' in err
    runlog.say('no bar')
    assert capsys.readouterr().out == 'no bar\n'
