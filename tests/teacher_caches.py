"""A run with every kind of cache for its teacher's answers leaves the same bytes; writes results/teacher_caches.json.

  python tests/teacher_caches.py --dir=$TFDS_DATA_DIR --teacher=resnet20_cifar100.pth

CIFAR-100, resnet20 -> resnet8 on 2,560 points for 6 epochs, and the digits by their config, both KC-KD: without a
cache, with an empty and a full one in memory and on disk. The suite does the same with tiny networks
(tests/training/teacher_pass_test.py).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ('off', 'memory, empty', 'memory, full', 'disk, empty', 'disk, full')
DIGITS = 'digits_kd.py:method=kd,policy=kcd,trials=1'
CIFAR = 'cifar100_kd.py:resnet20-resnet8,method=kd,policy=kcd,stages=3,epochs=6,eval_every=6,num_points=2560'


def compare(words: str, place: pathlib.Path) -> dict[str, Any]:
    """{kind: {'teacher_rows', 'seconds', 'accuracy', 'differs': what is not the same as without a cache}}."""
    from kcd_jax.experiments import config as grammar
    from kcd_jax.training import teacher_cache
    from tests.faults import harness

    run, found = grammar.run_of(grammar.load(f'{ROOT}/configs/{words}')), {}
    left: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        if kind != 'memory, full':
            teacher_cache._SHARED.clear()  # as in another process
        cache = {'o': 'off', 'm': 'memory', 'd': str(place / 'cache')}[kind[0]]
        folder, start = place / kind.replace(', ', '_'), time.perf_counter()
        teaching = {**run.recipe.to_dict()['teaching'], 'cache': cache}
        one = run.replace(recipe=run.recipe.replace(teaching=teaching))
        result = one.train(folder, teacher_dir=place / 'teacher')
        left[kind] = contents = harness.contents(folder)
        for part in ('card', 'summary.json'):  # the description names the cache
            del contents[part]['run']
        found[kind] = {
            'teacher_rows': result.summary['computed']['teacher_rows'],
            'seconds': round(time.perf_counter() - start, 1),
            'accuracy': result.accuracy,
            'differs': [name for name in contents if contents[name] != left['off'].get(name)],
        }
        print(kind, found[kind], flush=True)
    return {'words': words, 'runs': found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dir', default=os.environ.get('TFDS_DATA_DIR', ''), help='where CIFAR-100 is prepared')
    parser.add_argument('--teacher', required=True, help='file of a resnet20 for CIFAR-100')
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    from kcd_jax.commands import launch

    launch.prepare_jax()
    from kcd_jax.runtime import environment, files

    found, same = {}, True
    for name, words, own in (
        ('digits', DIGITS, ''),
        ('cifar100', CIFAR, f',data.dir={options.dir},teacher.checkpoint={options.teacher}'),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = {**compare(words + own, pathlib.Path(scratch)), 'words': words}
        same &= not any(run['differs'] for run in found[name]['runs'].values())
        result = {
            'same': same,
            **found,
            'command': 'python tests/teacher_caches.py --dir=DIR --teacher=resnet20_cifar100.pth',
            'cores': len(os.sched_getaffinity(0)),
            **environment.describe(),
        }
        files.write_text(ROOT / 'results' / 'teacher_caches.json', json.dumps(result, indent=1) + '\n')
    return int(not same)


if __name__ == '__main__':
    sys.exit(main())
