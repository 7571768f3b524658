"""Kills a run with SIGKILL at random instants, resumes it each time, and compares it with one that was never cut.

    python tests/faults/kill.py --kills=10 --seed=0 --out=results/faults/kill.json

It drives the command line, as a user would. What must agree to the bit: every array of the last checkpoint
(parameters, running statistics, optimiser, value table, plan), the exported student, every stage file, and the log
apart from its times. The table is printed and written to --out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = pathlib.Path('kcd', 'trial_0')


def start(args: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'kcd_jax.main', *args, f'--workdir={workdir}']
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(args: list[str], workdir: pathlib.Path) -> float:
    """Runs to the end; seconds."""
    began = time.monotonic()
    process = start(args, workdir)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f'the run failed: {errors}')
    return time.monotonic() - began


def records(folder: pathlib.Path) -> list[dict]:
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != 'time'} for line in lines]


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint and of the stage files."""
    from kcd_jax import checkpoint

    with checkpoint.Checkpointer(folder / 'checkpoints') as keeper:
        found = dict(keeper._read(keeper.steps()[-1])[0])
    for path in sorted((folder / 'knowledge').glob('stage_*.npz')):
        with np.load(path) as stage:
            found.update({f'{path.stem}/{name}': stage[name] for name in stage})
    return found


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Names of what is not the same to the bit."""
    a, b = arrays(one), arrays(other)
    names = sorted({*a} ^ {*b})
    names += [name for name in sorted({*a} & {*b}) if a[name].tobytes() != b[name].tobytes()]
    return names + ([] if records(one) == records(other) else ['metrics.jsonl'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--config', default='configs/digits_kd.py:quicktest,method=kd,policy=kcd,epochs=240,stages=6')
    parser.add_argument('--preset', default='paper')
    parser.add_argument('--out', default='')
    options = parser.parse_args()
    dice = random.Random(options.seed)
    args = [f'--config={options.config},preset={options.preset},checkpoint.seconds=0.5,eval_every=20']

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole, cut = folder / 'whole', folder / 'cut'
        finish(args, whole)  # trains the teacher and fills the compilation cache
        seconds = finish(args, folder / 'timed')
        rows = []
        while len(rows) < options.kills:
            # Anywhere in the run's life: its start, its checkpoints, its condensations, its end.
            wait = dice.uniform(0.3, 1.0) * seconds
            process = start(args, cut)
            began = time.monotonic()
            try:
                process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == 0:  # it had finished: cut it once more from the beginning
                finished = differences(whole / RUN, cut / RUN)
                rows[-1]['then finished, differing'] = finished
                cut = folder / f'cut_{len(rows)}'
                continue
            log = cut / RUN / 'metrics.jsonl'
            step = max((record.get('step', 0) for record in _whole_lines(log)), default=0)
            rows.append({'kill': len(rows) + 1, 'after s': round(time.monotonic() - began, 2), 'logged step': step})
            print(rows[-1], flush=True)
        finish(args, cut)
        differing = differences(whole / RUN, cut / RUN)
    report = {'args': args, 'seed': options.seed, 'kills': rows, 'differing': differing}
    print(f'{len(rows)} kills; not the same to the bit: {differing or "nothing"}')
    if options.out:
        out = pathlib.Path(options.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + '\n')
    sys.exit(bool(differing or any(row.get('then finished, differing') for row in rows)))


def _whole_lines(path: pathlib.Path) -> list[dict]:
    if not path.exists():
        return []
    result = []
    for line in path.read_text().splitlines():
        try:
            result.append(json.loads(line))
        except ValueError:
            continue
    return result


if __name__ == '__main__':
    main()
