"""`python -m kcd_jax export RUN --format=FORMAT --out=FILE`: a trained student as a file that other programs run."""

from __future__ import annotations

import argparse
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kcd_jax import paths
from kcd_jax.commands import launch

if TYPE_CHECKING:
    import numpy as np

    from kcd_jax.data import Split
    from kcd_jax.export import Images
    from kcd_jax.teachers.model import Model

FORMATS = ('safetensors', 'torch', 'stablehlo', 'onnx', 'tflite')
CALIBRATION_IMAGES, EVALUATED_IMAGES = 256, 10_000  # of a data set, at most

_EPILOG = """formats:
  safetensors  the weights and what is known about them; kcd_jax.load reads it
  torch        a PyTorch state dict with the public names (torch.load); preprocessing is stated, not inside
  stablehlo    the program and its weights; jax.export reads it, without this package
  onnx         for onnxruntime and others; needs: pip install 'kcd_jax[export]'
  tflite       for LiteRT; needs: pip install --no-deps litert-converter ai-edge-litert
The file is written only if its logits agree with the student's; a model card is written next to it.

examples:
  python -m kcd_jax export runs/mine --format=onnx --out=student.onnx
  python -m kcd_jax export runs/mine --format=onnx --int8 --out=student.onnx
  python -m kcd_jax export student.safetensors --format=stablehlo --out=student --images=photos

exit codes: 0 done, 2 bad input, 74 disk full, 130 by Ctrl-C"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = launch.Parser(prog='python -m kcd_jax export', description=__doc__.partition(': ')[2], epilog=_EPILOG)
    made.add_argument('source', metavar='RUN', help="a run's folder, or a file of weights")
    made.add_argument('--format', required=True, choices=FORMATS, help='of the file')
    made.add_argument('--out', required=True, help='file to write')
    made.add_argument('--int8', action='store_true', help='with --format=onnx: also write the quantised form')
    made.add_argument(
        '--images', default='', metavar='FOLDER', help='pictures to compare on and to calibrate int8 with'
    )
    made.add_argument('--dataset', default='', help='data set to compare on (default: the one it was trained on)')
    made.add_argument('--data_dir', default='', help='folder of the data (default: its usual place)')
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    try:
        arguments = parser().parse_args(argv)
        if arguments.int8 and arguments.format != 'onnx':
            raise ValueError('--int8 is a form of --format=onnx')
    except ValueError as error:
        return launch.complain(error)
    return launch.run(lambda: export(arguments, argv))


def export(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """Runs the command with parsed arguments; returns the exit code."""
    launch.prepare_jax(devices=1)
    from kcd_jax import export as exports
    from kcd_jax.export.writing import output_path
    from kcd_jax.runtime import exitcodes
    from kcd_jax.teachers import weights_file
    from kcd_jax.teachers.model import load

    path = output_path(arguments.out, arguments.format)
    source = paths.expand(arguments.source)
    if path.exists() and any(one.exists() and one.samefile(path) for one in (source, source / weights_file.FILE)):
        raise ValueError(f'--out={arguments.out} is the file that is exported; name another one')
    model = load(arguments.source)
    command = shlex.join(['kcd_jax', 'export', *argv])
    images, calibration = _images(arguments, model)
    if arguments.int8 and calibration is None:
        raise ValueError(
            f'--int8 needs images like those of the training, and there are only {images.source}; name a folder of '
            'pictures by --images, or a data set by --dataset'
        )
    made = [exports.export(model, arguments.format, arguments.out, images, command)]
    if arguments.int8:
        made.append(exports.quantize(model, made[0], calibration, images, command))
    for exported in made:
        for line in exported.lines():
            print(line)
    return exitcodes.OK


def _images(arguments: argparse.Namespace, model: Model) -> tuple[Images, np.ndarray | None]:
    """(what to compare on, what to calibrate with): pictures, the data set, or random pixels and nothing."""
    import numpy as np

    from kcd_jax import data
    from kcd_jax.data import _scan
    from kcd_jax.export import Images

    if arguments.images:
        paths = sorted(_scan.images(arguments.images, _scan.Passed(pathlib.Path(arguments.images))))[
            :CALIBRATION_IMAGES
        ]
        if not paths:
            raise ValueError(f'--images={arguments.images} has no pictures')
        found = model.read(paths)
        return Images(found, None, f'pictures of {arguments.images}'), found
    source = (model.card.get('run') or {}).get('data') or {}
    name = arguments.dataset or source.get('name') or model.card.get('dataset', '')
    if not name:
        return Images.random(model, 'the file names no data set'), None
    try:
        loaded = data.load(name, arguments.data_dir or source.get('dir') or None)
    except (ValueError, OSError) as error:
        if arguments.dataset or arguments.data_dir:
            raise
        return Images.random(model, f'{name} is not here: {error}'), None
    if loaded.image_shape != model.input_shape:
        raise ValueError(
            f'the images of {name} are {loaded.image_shape} and the model takes {model.input_shape}; name the data set '
            'by --dataset, or pictures by --images'
        )
    test, train = _spread(loaded.test, EVALUATED_IMAGES), _spread(loaded.train, CALIBRATION_IMAGES)
    labels = test.labels if loaded.test_labelled else None
    return Images(np.asarray(test.images), labels, f'test images of {name}'), np.asarray(train.images)


def _spread(split: Split, most: int) -> Split:
    """At most this many points of a split, at equal distances."""
    import numpy as np

    return split.take(np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64)))
