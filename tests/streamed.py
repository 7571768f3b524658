"""CIFAR-100 streamed and resident: the same points in the same order, the first epoch's value table within 1e-4.

  python tests/streamed.py --dir=$TFDS_DATA_DIR        # writes results/cifar100_streamed.json

KC-KD of resnet20 -> resnet8 on 20,000 points, one epoch of each after a short teacher, by the command line. The suite
does the same on the digits (tests/feed_test.py).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = (
    'resnet20-resnet8,method=kd,policy=kcd,stages=1,epochs=1,num_points=20000,survey=False,'
    'teacher.epochs=1,teacher.num_points=10000'
)
TOLERANCE = 1e-4  # of nats: two programs round sums differently


def run(workdir: pathlib.Path, directory: str, stream: bool, teacher: pathlib.Path | None = None) -> dict:
    """{'value', 'count'} of the table and the record of the epoch that was trained."""
    from tests import digits

    words = f'{WORDS},data.dir={directory},stream={stream}' + (f',teacher.checkpoint={teacher}' if teacher else '')
    command = [sys.executable, '-m', 'kcd_jax.main', f'--config=configs/cifar100_kd.py:{words}', f'--workdir={workdir}']
    subprocess.run(command, cwd=ROOT, check=True)
    folder = workdir / 'kcd' / 'trial_0'
    arrays = digits.final_state(folder)
    record = next(r for r in map(json.loads, (folder / 'metrics.jsonl').open()) if r['kind'] == 'train')
    return {'value': arrays['table/value'], 'count': arrays['table/count'], 'record': record}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dir', default=os.environ.get('TFDS_DATA_DIR', ''), help='where CIFAR-100 is prepared')
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    from kcd_jax.runtime import environment, files

    with tempfile.TemporaryDirectory() as scratch:
        place = pathlib.Path(scratch)
        resident = run(place / 'resident', options.dir, False)
        streamed = run(place / 'streamed', options.dir, True, place / 'resident' / 'teacher')
    apart = np.abs(resident['value'] - streamed['value'])
    result = {
        'same_visits': bool((resident['count'] == streamed['count']).all()),
        'visits': int(resident['count'].sum()),
        'largest_difference_of_values': float(apart.max()),
        'tolerance': TOLERANCE,
        'loss': {name: found['record']['loss'] for name, found in (('resident', resident), ('streamed', streamed))},
        'words': WORDS,
        'command': 'python tests/streamed.py',
        'cores': len(os.sched_getaffinity(0)),
        **environment.describe(),
    }
    files.write_text(ROOT / 'results' / 'cifar100_streamed.json', json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))
    return int(not (result['same_visits'] and apart.max() <= TOLERANCE))


if __name__ == '__main__':
    sys.exit(main())
