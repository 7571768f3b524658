"""Damaged files: checkpoints, the log, the configuration, stage files, exports, the cache of a data set."""

from __future__ import annotations

import functools
import json
import pathlib
import random
import shutil

import numpy as np
from harness import Bench, Injection, expect, records, steps


def cut(path: pathlib.Path, dice: random.Random) -> str:
    """Cuts a file anywhere."""
    content = path.read_bytes()
    length = dice.randrange(len(content))
    path.write_bytes(content[:length])
    return f'{path.name} cut at byte {length:,} of {len(content):,}'


def flip(path: pathlib.Path, dice: random.Random) -> str:
    """Flips one bit anywhere."""
    content = bytearray(path.read_bytes())
    place, bit = dice.randrange(len(content)), dice.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f'bit {bit} of byte {place:,} of {path.name}'


def delete(path: pathlib.Path, dice: random.Random) -> str:
    """Deletes a file."""
    del dice
    path.unlink()
    return f'{path.name} deleted'


def data_file(step: pathlib.Path) -> pathlib.Path:
    """The largest file below a checkpoint's `state`: its arrays."""
    return max((path for path in (step / 'state').rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def needed_file(step: pathlib.Path, dice: random.Random) -> pathlib.Path:
    """A file without which a checkpoint cannot be read."""
    return dice.choice([step / 'meta' / 'metadata', step / 'state' / 'manifest.ocdbt', data_file(step)])


def content_file(step: pathlib.Path, dice: random.Random) -> pathlib.Path:
    """A file whose every byte a digest covers."""
    return dice.choice([step / 'meta' / 'metadata', data_file(step)])


def empty(step: pathlib.Path) -> str:
    for path in step.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return 'empty'


CHECKPOINT = {
    'truncated': lambda step, dice: cut(content_file(step, dice), dice),
    'deleted': lambda step, dice: delete(needed_file(step, dice), dice),
    'flipped': lambda step, dice: flip(content_file(step, dice), dice),
    'empty': lambda step, dice: empty(step),
}


def newest_checkpoint(bench: Bench, dice: random.Random, kind: str) -> Injection:
    workdir = bench.halfway()
    step = steps(workdir / bench.run)[-1]
    what = CHECKPOINT[kind](workdir / bench.run / 'checkpoints' / str(step), dice)
    return bench.go_on(workdir, Injection(f'checkpoint {step}: {what}'), says=f'checkpoint {step} is damaged (')


def every_checkpoint(bench: Bench, dice: random.Random) -> Injection:
    workdir = bench.halfway()
    there = steps(workdir / bench.run)
    for step in there:
        CHECKPOINT[dice.choice(list(CHECKPOINT))](workdir / bench.run / 'checkpoints' / str(step), dice)
    says = f'checkpoint {there[-1]} is damaged ('
    return bench.go_on(workdir, Injection(f'checkpoints {there}, all there are'), says=says)


def log_cut(bench: Bench, dice: random.Random) -> Injection:
    """Also lines from before the checkpoint go: they come back from it."""
    workdir = bench.halfway()
    path = workdir / bench.run / 'metrics.jsonl'
    before = len(records(path))
    what = cut(path, dice)
    return bench.go_on(workdir, Injection(f'{what}: {len(records(path))} of {before} lines left'))


def stage_cut(bench: Bench, dice: random.Random) -> Injection:
    """The newest stage file: what a crash of the machine can tear. The checkpoint before it writes it again."""
    workdir = bench.fresh()
    folder = workdir / bench.run

    def between() -> bool:  # one checkpoint before the third condensation, one after it
        saved = [_condensations(folder, step) for step in steps(folder)]
        return len(saved) >= 2 and saved[-2] < 3 <= saved[-1]

    with bench.start(workdir) as program:
        expect(program.freeze_in(between), f'the third condensation was not caught: {program.output(1)}')
        program.process.kill()
        program.end()
    newest = max((folder / 'knowledge').glob('stage_*.npz'), key=lambda path: int(path.stem.split('_')[1]))
    what = cut(newest, dice)
    return bench.go_on(
        workdir, Injection(what), says=f'{newest.name} is damaged or missing; looking for a checkpoint from before it'
    )


def _condensations(folder: pathlib.Path, step: int) -> int:
    """How many condensations a checkpoint knows of."""
    try:
        saved = json.loads((folder / 'checkpoints' / str(step) / 'meta' / 'metadata').read_text())
        return len(saved['content']['meta']['condensations'])
    except (OSError, ValueError, KeyError):
        return 0


def config_cut(bench: Bench, dice: random.Random) -> Injection:
    """It is written again; and another configuration is refused all the same: the checkpoint knows its own."""
    workdir = bench.halfway()
    what = cut(workdir / bench.run / 'config.json', dice)
    with bench.start(workdir, '--config.optim.lr=0.04') as program:
        bench.refused(program, 2, 'recipe.optim.lr is 0.05 there and 0.04 here')
    (workdir / bench.run / 'config.json').unlink()
    return bench.go_on(workdir, Injection(what))


def finished(bench: Bench, dice: random.Random, name: str, damage) -> Injection:
    """A file of a finished run: the same command writes it again from the last checkpoint."""
    workdir = bench.halfway()
    with bench.start(workdir) as program:
        expect(program.end() == 0, program.output(1))
    what = damage(workdir / bench.run / name, dice)
    return bench.go_on(workdir, Injection(what))


def teacher_flipped(bench: Bench, dice: random.Random) -> Injection:
    workdir = bench.halfway()
    return bench.go_on(workdir, Injection(flip(workdir / 'teacher' / 'student.safetensors', dice)))


def images(bench: Bench) -> pathlib.Path:
    """A folder of small images, made once."""
    from PIL import Image

    folder = bench.scratch / 'images'
    if not folder.exists():
        pixels = np.random.RandomState(0).randint(0, 256, (2, 10, 12, 16, 16, 3), np.uint8)
        for split, name in enumerate(('train', 'test')):
            for label in range(10):
                (folder / name / f'class_{label}').mkdir(parents=True)
                for number, image in enumerate(pixels[split, label]):
                    Image.fromarray(image).save(folder / name / f'class_{label}' / f'{number}.png')
    return folder


def data_cache(bench: Bench, dice: random.Random) -> Injection:
    """The decoded images of a folder of images: made again from the images."""
    other = folder_bench(bench)
    files = [path for path in (bench.scratch / 'cache').rglob('*') if path.is_file()]
    what = dice.choice([cut, flip, delete])(dice.choice(sorted(files)), dice)
    return other.go_on(other.fresh(), Injection(what))


def folder_bench(bench: Bench) -> Bench:
    """A bench whose data are images in a folder."""
    source = f'data.name=folder:16,data.dir={images(bench)},num_points=100'
    words = f'quicktest,tiny_teacher-tiny,method=none,policy=kcd,{source}'
    other = Bench(bench.scratch / 'folder', words, env={'KCD_JAX_CACHE': str(bench.scratch / 'cache')})
    other.scratch.mkdir(exist_ok=True)
    other.prepare(timed=False)
    return other


FAULTS = {
    **{
        f'checkpoint_{kind}': (title, functools.partial(newest_checkpoint, kind=kind), 2)
        for kind, title in (
            ('truncated', 'newest checkpoint truncated'),
            ('deleted', 'a file of the newest checkpoint deleted'),
            ('flipped', 'one bit of the newest checkpoint flipped'),
            ('empty', 'newest checkpoint an empty folder'),
        )
    },
    'checkpoints_all': ('every checkpoint damaged', every_checkpoint, 1),
    'log_cut': ('metrics.jsonl cut in the middle of a line', log_cut, 2),
    'stage_cut': ('newest stage file cut', stage_cut, 1),
    'config_cut': ('config.json cut', config_cut, 1),
    'summary_cut': (
        'summary.json of a finished run cut',
        functools.partial(finished, name='summary.json', damage=cut),
        1,
    ),
    'student_flipped': (
        'one bit of a finished student flipped',
        functools.partial(finished, name='student.safetensors', damage=flip),
        1,
    ),
    'teacher_flipped': ('one bit of the trained teacher flipped', teacher_flipped, 1),
    'cache_damaged': ('the cache of a data set cut, flipped or incomplete', data_cache, 2),
}
