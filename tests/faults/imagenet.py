"""Kills a streamed run in ImageNet's shape within an epoch; it must end bit for bit like an undisturbed one.

    python tests/faults/imagenet.py --size=224       # once by hand; writes results/imagenet_killed_224.json
    python tests/faults/imagenet.py --size=64 --kills=3

configs/imagenet_kd.py (resnet34 -> resnet18, random resized crops, KC-KD in six condensations) on made-up JPEGs: a
thousand class folders, of which a few are used. The teacher is trained first. Then one run is left alone, and another
one is killed whenever its newest checkpoint lies within an epoch, and started again by the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import random
import shlex
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
if __name__ == '__main__':
    sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]

try:
    from harness import Bench, Injection, expect, records, stages, steps
except ImportError:  # by pytest, from the root
    from tests.faults.harness import Bench, Injection, expect, records, stages, steps

CLASSES, USED, TRAIN, TEST = 1000, 8, 256, 64
# Six epochs with a condensation before each of them (first=none), so that no step is taken more often than it must be.
WORDS = (
    'method=kd,policy=kcd,stages=6,ratio=0.5,first=none,epochs=6,batch=32,lr=0.02,stream=true,eval_every=6,eval_batch=64,'
    'survey=False,teacher.epochs=1,teacher.num_points=128,teacher.batch=16,teacher.lr=0.02'
)


class ImageNet(Bench):
    """The bench for faults, with ImageNet's configuration in place of the digits'."""

    def __init__(self, scratch: pathlib.Path, size: int, words: str = '', env: dict[str, str] | None = None):
        """The pictures are made under `scratch`, a quarter wider than needed, as photographs are.

        Args:
          scratch: a folder.
          size: pixels.
          words: more of the configuration.
          env: of the programs.
        """
        from tests.data import photographs

        self.images = scratch / f'images_{size}'
        if not self.images.exists():
            shape = (size * 5 // 3, size * 5 // 4)
            counts = {'train': TRAIN, 'test': TEST, 'classes': CLASSES, 'used': USED}
            # Large patches: what is left of them in a crop still has the colour of the class.
            photographs.folder(self.images, **counts, size=shape, detail=max(4, size // 16))
        seconds = size / 64  # several in an epoch of seven steps, on a fast machine too
        given = f'dataset=folder:{size},data.dir={self.images},{WORDS},checkpoint.seconds={seconds}'
        super().__init__(scratch, f'{given},{words}' if words else given, env=env)

    def arguments(self, workdir: pathlib.Path, *more: str) -> list[str]:
        return [f'--config=configs/imagenet_kd.py:{self.words}', '--devices=2', f'--workdir={workdir}', *more]

    def ends(self) -> list[int]:
        """The steps after which the epochs of the undisturbed run ended, from 0."""
        return [0, *(record['step'] for record in records(self.whole / self.run / 'metrics.jsonl') if is_epoch(record))]

    def within(self, folder: pathlib.Path, epoch: int) -> bool:
        """Whether `epoch` epochs or more are done, and the newest checkpoint lies within the one that is under way."""
        ends, done = self.ends(), sum(map(is_epoch, records(folder / 'metrics.jsonl')))
        newest = (steps(folder) or [0])[-1]
        return epoch <= done < len(ends) - 1 and ends[done] < newest < ends[done + 1]

    def killed(self, kills: int, dice: random.Random) -> Injection:
        """One run, killed so often and gone on; what was lost."""
        workdir, ends, said, code = self.fresh(), self.ends(), [], None
        folder = workdir / self.run
        for epoch in sorted(dice.sample(range(1, len(ends) - 2), kills)):
            with self.start(workdir) as program:
                caught = program.freeze_in(functools.partial(self.within, folder, epoch))
                expect(caught, f'no checkpoint within an epoch from {epoch + 1} on was caught: {program.output(1)}')
                code, newest, condensed = program.send(signal.SIGKILL), steps(folder)[-1], stages(folder)
            place = sum(end < newest for end in ends)
            done, size = newest - ends[place - 1], ends[place] - ends[place - 1]
            said.append(f'step {newest} ({done} of {size} of epoch {place}, condensed {condensed} times)')
        injection = Injection(f'last checkpoints at {", ".join(said)}', code)
        return self.go_on(workdir, injection, says=f'going on from step {newest:,}, ')


def is_epoch(record: dict) -> bool:
    """Whether a record of the log says that an epoch was trained."""
    return record['kind'] == 'train'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--kills', type=int, default=2, help='of the one run')
    parser.add_argument('--seed', type=int, default=0, help='of the instants')
    parser.add_argument('--scratch', default=os.path.join(tempfile.gettempdir(), 'kcd_jax_imagenet'))
    options = parser.parse_args()

    from kcd_jax.runtime import environment, files

    scratch = pathlib.Path(options.scratch).absolute() / str(options.size)
    scratch.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # takes the running program along
    bench = ImageNet(scratch, options.size)
    began = time.monotonic()
    bench.prepare(timed=False)
    print(f'teacher and undisturbed run: {time.monotonic() - began:.0f} s', flush=True)
    injection = bench.killed(options.kills, random.Random(options.seed))
    summary = json.loads((bench.whole / bench.run / 'summary.json').read_text())
    given = f'--size={options.size} --kills={options.kills} --seed={options.seed}'
    result = {
        'fault': 'SIGKILL in the middle of an epoch of an ImageNet-shaped run, streamed',
        'images': {'train': TRAIN, 'test': TEST, 'classes': CLASSES, 'used': USED, 'pixels': options.size},
        'injections': [dataclasses.asdict(injection)],
        'condensations': len(summary['condensations']),
        'epoch_ends': bench.ends(),
        'train_images_per_second': round(summary['cost']['processed_samples'] / summary['seconds']['train'], 2),
        'seconds': {key: round(value, 1) for key, value in summary['seconds'].items() if math.isfinite(value)},
        'seed': options.seed,
        'command': f'python tests/faults/imagenet.py {given}',
        'run': bench.private(shlex.join(bench.arguments(pathlib.Path('WORKDIR'))), pathlib.Path('WORKDIR')),
        'cores': len(os.sched_getaffinity(0)),
        **environment.describe(),
    }
    files.write_text(ROOT / 'results' / f'imagenet_killed_{options.size}.json', json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))
    return int(bool(injection.lost))


if __name__ == '__main__':
    sys.exit(main())
