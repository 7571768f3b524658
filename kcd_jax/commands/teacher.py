"""`python -m kcd_jax teacher import|export|check|fill`: files of teachers, and the cache of their answers."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcd_jax import data, paths
from kcd_jax.commands import launch, train
from kcd_jax.experiments import experiment, schema
from kcd_jax.networks.layers import NORMALIZATIONS, Normalization
from kcd_jax.runtime import console, exitcodes, sharding
from kcd_jax.teachers import Teacher, outputs, weights_file
from kcd_jax.teachers.teacher import accuracy, refuse_near_chance
from kcd_jax.training import fill

EXAMPLES = """examples:
  python -m kcd_jax teacher import wrn_40_2.pth --network=wrn_40_2 --dataset=cifar100 --out=teacher.safetensors
  python -m kcd_jax teacher export runs/mine --out=student.pth
  python -m kcd_jax teacher check teacher.safetensors --dataset=cifar100
  python -m kcd_jax teacher fill --config=configs/cifar100_kd.py --config.teacher.checkpoint=teacher.safetensors \
    --config.teaching.cache=cache --epochs=20
"""


def import_file(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dataset: data.Dataset,
    network: str = '',
    normalization: Normalization | None = None,
    rename_classes: bool = False,
    allow_weak: bool = False,
    names: str = '',
) -> tuple[dict[str, Any], list[str]]:
    """Writes a file of weights as a .safetensors teacher, evaluated on the test images.

    Args:
      source: the file or a run's folder.
      out: the file to write.
      dataset: what it was trained on.
      network: its name; '' where the file says it.
      normalization: what it was trained with; None where the file says it, or the data is a known public set.
      rename_classes: take the data's class names instead of the file's; their order must be the same.
      allow_weak: accept an accuracy that cannot be told from guessing.
      names: a file that translates the names of the tensors, see `name_maps`; '' knows the usual ones.

    Returns:
      (card with 'accuracy' on the test images, lines for the user).

    Raises:
      ValueError: the file is refused, or its accuracy is near chance; then nothing is written.
    """
    shape = dataset.image_shape
    teacher = Teacher.restore(source, network, dataset.num_classes, shape, normalization, names=names)
    card = {**teacher.card, 'dataset': dataset.name}
    if rename_classes or not card.get('class_names'):
        card['class_names'] = list(dataset.class_names)
    lines = dataclasses.replace(teacher, card=card).fits(dataset)
    card['accuracy'] = accuracy(teacher.network, teacher.variables, dataset.test.images, dataset.test.labels)
    weak = refuse_near_chance(
        card['accuracy'], dataset.num_classes, num_images=len(dataset.test), allow_weak=allow_weak
    )
    passing = ('notes', 'normalization_assumed')  # reported now, and settled by the accuracy
    weights_file.save(out, teacher.variables, {key: value for key, value in card.items() if key not in passing})
    return card, [*lines, *([weak] if weak else [])]


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    result = launch.Parser(
        prog='python -m kcd_jax teacher',
        description='Teachers in from PyTorch, out to it, what a file holds, and the cache of their answers.',
        epilog=EXAMPLES,
    )
    commands = result.add_subparsers(dest='command', required=True, metavar='import|export|check|fill')
    for name, about in (
        ('import', 'a checkpoint becomes a .safetensors teacher, evaluated on the test images'),
        ('export', "a teacher or a run's student becomes a PyTorch state dict"),
        ('check', 'print what a file holds, and whether it fits a data set'),
    ):
        one = commands.add_parser(name, help=about, description=about, epilog=EXAMPLES)
        one.add_argument('file', help="a checkpoint of any format that is read, or a run's folder")
        if name == 'export':
            one.add_argument(
                '--out', required=True, help='file to write; one that ends in .safetensors has that format'
            )
            continue
        one.add_argument(
            '--network', default='', help='name of the network, as wrn_40_2; needed where the file lacks it'
        )
        one.add_argument('--dataset', default='', required=name == 'import', help='data set it was trained on')
        one.add_argument('--data_dir', default='', help='folder of the data; default: its usual place')
        one.add_argument(
            '--normalization',
            default='',
            help=f"what it was trained with: {', '.join(NORMALIZATIONS)}, 'data' (the data's own), or six numbers "
            'M,M,M,S,S,S; needed where the file lacks it and the data has its own',
        )
        if name == 'import':
            one.add_argument('--out', default='', help='file to write; default: FILE as .safetensors')
            one.add_argument('--rename_classes', action='store_true', help="store the data's class names, in its order")
            one.add_argument('--allow_weak', action='store_true', help='accept an accuracy near chance')
            one.add_argument(
                '--map',
                default='',
                metavar='FILE',
                help="lines 'pattern -> name' for names that are not PyTorch's own, timm's or Hugging Face's",
            )
    about = 'compute what the runs of a config will ask their teacher, into the folder teaching.cache; resumable'
    one = commands.add_parser('fill', help=about, description=about, epilog=EXAMPLES)
    one.add_argument('--config', required=True, metavar='FILE[:words]', help='config of the runs, as for train')
    one.add_argument(
        '--epochs', type=int, default=1, help='epochs from the first whose views are computed (default: 1)'
    )
    one.add_argument('--devices', type=int, default=0, help='host devices on a CPU, as the runs will have')
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, after one line on stderr if that is not 0."""

    def body() -> int:
        rest, settings = train.split_settings(sys.argv[1:] if argv is None else argv)
        options = parser().parse_args(rest)
        if options.command == 'fill':
            return _fill(options, settings)
        if settings:
            raise ValueError(f'--config.{settings[0][0]} belongs to the command fill, not to {options.command}')
        {'import': _import, 'export': _export, 'check': _check}[options.command](options)
        return exitcodes.OK

    return launch.run(body)


def _import(options: argparse.Namespace) -> None:
    source = weights_file.locate(options.file)
    out = _output(options.out or source.with_suffix('.safetensors'))
    if out.resolve() == source.resolve():
        raise ValueError(f'{out} is the file to import; name another one by --out')
    dataset = _dataset(options)
    card, lines = import_file(
        source,
        out,
        dataset=dataset,
        network=options.network,
        normalization=_normalization(options.normalization, dataset),
        rename_classes=options.rename_classes,
        allow_weak=options.allow_weak,
        names=options.map,
    )
    origin = f' from {card["source"]}, sha256 {card["sha256"]}' if 'sha256' in card else ''
    print(*lines, f'{card["network"]}{origin}', sep='\n')
    print(f'test accuracy on {card["dataset"]}: {100 * card["accuracy"]:.2f} %')
    print(f'written to {out}; use it with --config.teacher.checkpoint={out}')


def _export(options: argparse.Namespace) -> None:
    out = _output(options.out)
    teacher = Teacher.restore(options.file)
    weights_file.export(out, teacher.variables, teacher.card)
    print(f'{teacher.network.name} written to {out}, with its card (normalization, class names, image size)')
    for part, value in teacher.card['normalization'].items():
        print(f'{part} {value}')


def _check(options: argparse.Namespace) -> None:
    dataset = _dataset(options) if options.dataset else None
    sizes = (dataset.num_classes, dataset.image_shape) if dataset else (None, None)
    normalization = _normalization(options.normalization, dataset)
    if outputs.is_outputs(options.file):
        _check_outputs(options, dataset)
        return
    teacher = Teacher.restore(options.file, options.network, *sizes, normalization)
    _print_card(teacher)
    if dataset is not None:
        for line in teacher.fits(dataset):
            print(line)
        found = accuracy(teacher.network, teacher.variables, dataset.test.images, dataset.test.labels)
        print(f'test accuracy on {dataset.name}: {100 * found:.2f} %')
        refuse_near_chance(found, dataset.num_classes, num_images=len(dataset.test))


def _check_outputs(options: argparse.Namespace, dataset: data.Dataset | None) -> None:
    """Prints what a file of stored outputs holds, and how its rows agree with the labels of the data."""
    if options.network or options.normalization:
        raise ValueError(f'{options.file} holds stored outputs; leave out --network and --normalization')
    teacher = Teacher.from_outputs(options.file)
    print(f'stored outputs of a teacher; use them with --config.teacher.checkpoint={options.file}')
    for key in outputs.SHAPES:
        array = getattr(teacher.host, key)
        if array is not None and array.size:
            print(f'{key}: {array.dtype}{list(array.shape)}')
    _print_card(teacher)
    if dataset is None:
        return
    print(*teacher.fits(dataset), sep='\n')
    train, test = teacher.host.train, teacher.host.test
    rows_of = [('training points', train, dataset.train, dataset.labelled), ('test images', test, dataset.test, True)]
    for what, rows, split, labelled in rows_of:
        if rows is None:
            continue
        if len(rows) != len(split):
            print(f'{len(rows):,} rows of {what}, and {dataset.name} has {len(split):,}: they cannot be compared')
        elif labelled and rows.size:
            means = rows if rows.ndim == 2 else rows.mean(axis=1, dtype=np.float32)
            found = float(np.mean(np.argmax(means, axis=1) == split.labels))
            print(f'accuracy on the {what} of {dataset.name}: {100 * found:.2f} %')
            kind = f'{what}, by its rows in the order of the data'
            refuse_near_chance(found, dataset.num_classes, num_images=len(split), kind=kind)


def _print_card(teacher: Teacher) -> None:
    for key, value in teacher.card.items():
        text = ', '.join(map(str, value)) if isinstance(value, list) else str(value)
        print(f'{key}: {text if len(text) <= 100 else text[:97] + "..."}')
    print(f'identity: {teacher.identity}')


def _fill(options: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> int:
    if options.epochs < 1:
        raise ValueError(f'--epochs is {options.epochs}; use at least 1')
    config = train.read_config(options.config, settings)
    schema.check_config(config.to_dict())
    launch.prepare_jax(options.devices, config.deterministic)
    mesh = sharding.make_mesh()
    found = experiment.of_config(config)
    runs = [cell.run for cell in found.cells if cell.run.uses_teacher] or [found.cells[0].run]
    for run in runs:
        fill.refuse(run, mesh.size)
    asked = fill.streams(runs, found.seeds)
    with console.Progress(sum(fill.images(run, options.epochs) for run in asked)) as progress:
        for run in asked:
            counts = fill.fill(run, options.epochs, mesh, lambda rows: progress.update(rows, {}))
            console.say(
                f'{run.teacher_network.name}, views of seed {run.view_seed}, {options.epochs} epochs: '
                f'{counts["computed"]:,} answers computed, {counts["served"]:,} already cached'
            )
    return exitcodes.OK


def _output(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file to write, '~' expanded; ValueError, before any work, where it cannot be one."""
    out = paths.expand(path)
    if out.is_dir():
        raise ValueError(f'--out={out} is a folder; name a file in it')
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f'--out={out} lies inside {above}, which is a file')
    return out


def _dataset(options: argparse.Namespace) -> data.Dataset:
    folder = paths.expand(options.data_dir) if options.data_dir else None
    loaded = data.load(options.dataset, folder)
    if not loaded.test_labelled:
        raise ValueError(
            f'{loaded.name} has no labelled test images to measure a teacher on; use data with test/CLASS/*.jpg'
        )
    return loaded


def _normalization(text: str, dataset: data.Dataset | None) -> Normalization | None:
    """The choice of a flag: '' is none, 'data' the data's own; anything else is left to the network."""
    if text == 'data':
        if dataset is None:
            raise ValueError("--normalization=data needs --dataset: it is the data's own mean and standard deviation")
        return tuple(dataset.normalization)
    return text or None


if __name__ == '__main__':
    sys.exit(main())
