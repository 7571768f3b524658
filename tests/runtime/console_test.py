"""Lines and progress with and without a terminal, and a closed output."""

from __future__ import annotations

import os
import subprocess
import sys

from kcd_jax.runtime import console, runlog


def test_quiet_omits_only_lines_of_runs(capsys):
    with console.quiet():
        console.say_of_run('of a run')
        console.say('of all runs')
    console.say_of_run('of another run')
    assert capsys.readouterr().out == 'of all runs\nof another run\n'


def test_a_run_survives_a_closed_output():
    program = (
        'import sys\nfrom kcd_jax.runtime import console\n'
        "console.say('first')\nsys.stdin.readline()\n"
        "for _ in range(3): console.say('dropped')\n"
        "print('the end', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ,
    )  # fmt: skip
    assert process.stdout.readline() == 'first\n'
    process.stdout.close()
    process.stdin.write('\n')
    process.stdin.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 0, errors
    assert errors == 'standard output was closed; the run continues without it\nthe end\n'


def test_plain_progress_is_rare_and_shows_the_remaining_time(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    with runlog.RunLog(tmp_path, {}) as run:
        run.start_progress(10_000, done=2_000)
        now[0] += 30  # compilation: nothing is known of the speed yet
        run.progress(100, loss=1.25)
        for _ in range(40):
            now[0] += 0.5
            run.progress(100, loss=1.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        '2,200 of 10,000 images, 200 images/s, 00:39 left, loss 1.250',
        '4,200 of 10,000 images, 200 images/s, 00:29 left, loss 1.250',
    ]


def test_the_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    with runlog.RunLog(tmp_path, {}) as run:
        run.start_progress(1000, done=100)
        run.progress(900, loss=0.5)
        run.say('condensation 1/2')
        console.say('another line')
    out, err = capsys.readouterr()
    assert out == 'condensation 1/2\nanother line\n'
    assert '1.00k/1.00k' in err and 'images/s' in err and 'loss=0.500' in err
    console.say('no bar')
    assert capsys.readouterr().out == 'no bar\n'
