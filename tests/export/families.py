"""Exports one network of every family to every program format; writes results/export_families.json.

    python -m tests.export.families               # minutes; needs the extra `export`, and LiteRT if its rows are wanted
    python -m tests.export.families --only=vgg8   # prints, and writes nothing

`export` itself compares the file's logits with the network's. A format whose packages are not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

from kcd_jax import export as exports
from kcd_jax import networks
from kcd_jax.export import writing
from kcd_jax.runtime import environment
from kcd_jax.teachers.model import Model

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE, CLASSES = (16, 16, 3), 5
PACKAGES = {'onnx': ('jax2onnx', 'onnxruntime'), 'tflite': ('litert_converter', 'ai_edge_litert'), 'stablehlo': ()}
# Those of the first row convert in seconds, and the tests convert them.
QUICK = ('resnet20_a', 'wrn_16_1', 'mobilenetv2', 'resnet8_one', 'vit_mini_4')
FAMILIES = (*QUICK, 'vgg8', 'shufflev1', 'shufflev2', 'resnet50_cifar', 'convnext_atto_2')


def images(seed: int = 0, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def model_of(name: str) -> Model:
    """A network whose logits differ between images: its statistics are those of a batch."""
    network = networks.get(name)(CLASSES)
    variables = network.init(jax.random.key(0), SHAPE)
    seen = images(1, 16).astype(np.float32) / 255
    update = jax.jit(network.apply, static_argnums=2)
    for _ in range(30 if variables.get('batch_stats') else 0):  # a tenth of the way each time
        variables = {**variables, **update(variables, seen, True)[1]}
    card = {'network': name, 'num_classes': CLASSES, 'image_shape': list(SHAPE), 'class_names': list('abcde')}
    return Model(network, variables, card)


def convert(name: str, folder: pathlib.Path) -> dict[str, float | str]:
    """{format: largest difference of a logit on eight images, or the line that refuses it}."""
    model, some = model_of(name), exports.Images(images(count=8), None, 'made by a test')
    found: dict[str, float | str] = {}
    for format, packages in PACKAGES.items():
        if not all(map(importlib.util.find_spec, packages)):
            continue
        try:
            found[format] = float(exports.export(model, format, folder / name, some).difference)
        except ValueError as error:
            found[format] = str(error)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=FAMILIES)
    options = parser.parse_args()
    writing.LATENCY_BATCHES = (1,)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES if options.only is None else (options.only,):
            found[name] = convert(name, pathlib.Path(folder))
            print(name, found[name], flush=True)
    if options.only is None:
        result = {
            'what': 'largest difference of a logit between the file and the network, eight images of 16x16 pixels',
            'families': found,
            'command': 'python -m tests.export.families',
            **environment.describe(),
        }
        path = ROOT / 'results' / 'export_families.json'
        path.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
