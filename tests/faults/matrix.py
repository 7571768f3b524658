"""Trains every method under every policy for two epochs, cuts each run, resumes it, and compares bit for bit.

    python -m tests.faults.matrix --out=results/matrix.json

Each pair is a run on the digits with the tests' tiny networks, configured as on the command line. It is trained once,
then again with a SIGTERM in the middle of its last epoch, and resumed. Every array of the last checkpoint (parameters,
banks, statistics, optimisers, value table, plan), the stage files, and the log apart from its times must agree bit for
bit. A pair that cannot work must be refused in one line before anything is compiled.

The file is written after every pair; the same command continues with the pairs that it does not hold yet.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Mapping
from unittest import mock

from kcd_jax.runtime import distributed
from kcd_jax.training.run import Run
from kcd_jax.training.trainer import Trainer

ROOT = pathlib.Path(__file__).parents[2]
SAME, DIFFERENT = 'same', 'DIFFERENT'
# FSP needs equal channels, ONE a student with branches.
PAIRS = {'fsp': 'tiny_teacher-tiny_teacher', 'one': 'tiny_teacher-tiny_one'}
# What two epochs need: stages that divide them, a skip before the last one, rows that two devices share.
SETTINGS = {
    'kcd': 'stages=2',
    'random': 'stages=2',
    'rounds': 'stages=2',
    'short': 'cost=1.0',
    'infobatch': 'until=1.0',
    'unix': 'k=12',
}


def markdown(content: Mapping) -> str:
    """The table of a file that this script wrote: methods down, policies across, refusals below."""
    cells, policies = content['cells'], content['policies']
    refusals = sorted({cell for row in cells.values() for cell in row.values() if cell not in (SAME, DIFFERENT)})

    def shown(cell: str) -> str:
        return cell if cell in (SAME, DIFFERENT) else f'refused ({refusals.index(cell) + 1})'

    lines = [' | '.join(['method', *policies]), ' | '.join(['---'] * (len(policies) + 1))]
    lines += [' | '.join([name, *(shown(row[policy]) for policy in policies)]) for name, row in cells.items()]
    table = '\n'.join(f'| {line} |' for line in lines)
    return table + ''.join(f'\n\n({number}) {refusal}' for number, refusal in enumerate(refusals, 1)) + '\n'


def make_run(method: str, policy: str, source: pathlib.Path) -> Run:
    """The run of a pair, through the grammar of the command line.

    Args:
      method: its name.
      policy: its name.
      source: folder of a finished KC-KD run, for the policy `reuse`.
    """
    settings = {**SETTINGS, 'reuse': f'policy.run={source}'}
    words = ['quicktest', PAIRS.get(method, 'tiny_teacher-tiny'), f'method={method}', f'policy={policy}']
    words += [settings[policy]] if policy in settings else []
    # 'short' and 'infobatch' have no stages; quicktest sets them where there are some.
    words += ['epochs=2', 'num_points=120', 'checkpoint.seconds=1e9', 'eval_every=2']
    return Run.from_config(f'{ROOT}/configs/digits_kd.py:{",".join(words)}')


def cut_and_resume(run: Run, folder: pathlib.Path, teacher: pathlib.Path) -> None:
    """Trains up to the second step of the last epoch, sends SIGTERM there, and continues in a new call."""
    original = Trainer.train_epoch

    def cut(self, current, epoch, between, told):
        seen = []

        def counting(state):
            seen.append(1)
            if epoch == len(run.epochs) - 1 and len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            between(state)

        return original(self, current, epoch, counting, told)

    with mock.patch.object(Trainer, 'train_epoch', cut):
        try:
            run.train(folder, teacher_dir=teacher)
        except distributed.Stopped:
            pass
        else:
            raise SystemExit(f'{folder}: the run was not cut')
    run.train(folder, teacher_dir=teacher)


def cell(method: str, policy: str, scratch: pathlib.Path, source: pathlib.Path) -> tuple[str, list[str]]:
    """('same' | 'DIFFERENT' | the line of a refusal, the names of what differs)."""
    from tests.faults.harness import differences

    folder = scratch / f'{method}_{policy}'
    try:
        run = make_run(method, policy, source)
        run.train(folder / 'whole', teacher_dir=scratch / 'teacher')
    except ValueError as refusal:
        return ' '.join(str(refusal).split()), []
    cut_and_resume(run, folder / 'cut', scratch / 'teacher')
    differing = differences(folder / 'whole', folder / 'cut')
    return (DIFFERENT if differing else SAME), differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', default='', help='comma-separated; default: all')
    parser.add_argument('--policies', default='', help='comma-separated; default: all')
    parser.add_argument('--devices', type=int, default=1, help='host devices')
    parser.add_argument('--out', required=True, help='a JSON file')
    options = parser.parse_args()

    from kcd_jax import methods, networks, policies
    from kcd_jax.commands import launch
    from kcd_jax.runtime import environment, files

    launch.prepare_jax(options.devices)
    networks.__path__.append(str(ROOT / 'tests' / 'tiny'))
    chosen = options.methods.split(',') if options.methods else methods.names()
    across = options.policies.split(',') if options.policies else policies.names()
    out = pathlib.Path(options.out)
    content = {'policies': across, 'cells': {}, **environment.describe(), **(files.read_json(out) or {})}
    cells = content['cells']
    with tempfile.TemporaryDirectory(prefix='kcd_jax_matrix_') as name:
        scratch = pathlib.Path(name)
        source = scratch / 'source'
        # Also trains the teacher.
        make_run('kd', 'kcd', source).train(source, teacher_dir=scratch / 'teacher')
        for method in chosen:
            row = cells.setdefault(method, {})
            for policy in across:
                if policy not in row:
                    row[policy], differing = cell(method, policy, scratch, source)
                    print(f'{method} {policy}: {row[policy]} {" ".join(differing)}', flush=True)
                    files.write_text(out, json.dumps(content, indent=2) + '\n')
    print(markdown(content))
    sys.exit(any(DIFFERENT in row.values() for row in cells.values()))


if __name__ == '__main__':
    main()
