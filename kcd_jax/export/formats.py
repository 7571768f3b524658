"""The formats of exported students: how a file is written, and how it is read back.

Every format is written as bytes and read from bytes by the program that its users have (onnxruntime, LiteRT, JAX), so
that nothing reaches the disk before it was compared with the student.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax import networks
from kcd_jax.networks.primitives import portable
from kcd_jax.teachers import weights_file
from kcd_jax.teachers.model import Model, load

Predict = Callable[[np.ndarray], np.ndarray]  # u8[N, H, W, 3] -> logits f32[N, K]

INPUT, OUTPUT = 'images', 'logits'


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
      name: of the flag --format.
      suffix: of its files.
      reader: the program that runs them.
      write: Model -> the file's content.
      read: (the file's content, the model) -> the file's logits, computed by `reader`.
      usage: lines of Python that use the file {file}.
    """

    name: str
    suffix: str
    reader: str
    write: Callable[[Model], bytes]
    read: Callable[[bytes, Model], Predict]
    usage: str


def lowered(model: Model, platforms: tuple[str, ...]) -> jax.export.Exported:
    """The program of a model, with its weights, for a batch of any size."""
    (batch,) = jax.export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct((batch, *model.input_shape), jnp.uint8)
    with portable():
        return jax.export.export(jax.jit(model.function), platforms=platforms)(images)


_INSTALL = {
    'onnx': "pip install 'kcd_jax[export]'",
    # Without its dependencies: they are for other uses, and one of them refuses a current typing_extensions.
    'tflite': 'pip install --no-deps litert-converter ai-edge-litert',
}


def needed(format: str, *packages: str) -> list[Any]:
    """The modules of optional packages; ValueError that says how to install them."""
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        raise ValueError(f'the format {format} needs more packages ({error}): {_INSTALL[format]}') from None


# --------------------------------------------------------------------------------------------------------- safetensors


def _read_weights(content: bytes, model: Model) -> Predict:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'model'
        path.write_bytes(content)
        return load(path, None if model.network.name in networks.names() else model.network)


def _written(write: Callable[..., None], suffix: str) -> Callable[[Model], bytes]:
    """A function of `weights_file` that writes a path, as a function that returns bytes."""

    def content(model: Model) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f'model{suffix}'
            write(path, model.variables, model.card)
            return path.read_bytes()

    return content


def _write_torch(path: pathlib.Path, variables: Any, card: dict[str, Any]) -> None:
    name = card.get('network', 'this network')
    if name not in networks.names():
        raise ValueError(f'{name} is no network of kcd_jax, so no PyTorch code has its names; use onnx instead')
    weights_file.export(path, variables, card)


# ----------------------------------------------------------------------------------------------------------- StableHLO


def _write_stablehlo(model: Model) -> bytes:
    return bytes(lowered(model, ('cpu', 'cuda', 'rocm', 'tpu')).serialize())


def _read_stablehlo(content: bytes, model: Model) -> Predict:
    del model
    call = jax.jit(jax.export.deserialize(bytearray(content)).call)
    return lambda images: np.asarray(call(images))


# ---------------------------------------------------------------------------------------------------------------- ONNX


def _write_onnx(model: Model) -> bytes:
    from kcd_jax.export import onnx_file

    return onnx_file.write(model)


def _read_onnx(content: bytes, model: Model) -> Predict:
    del model
    from kcd_jax.export import onnx_file

    return onnx_file.read(content)


# -------------------------------------------------------------------------------------------------------------- LiteRT


def _write_tflite(model: Model) -> bytes:
    """By LiteRT's own converter from StableHLO, which needs no TensorFlow."""
    api, ir, passmanager = needed(
        'tflite', 'litert_converter.converter_api_ext', 'litert_converter.mlir.ir', 'litert_converter.mlir.passmanager'
    )
    text = lowered(model, ('cpu',)).mlir_module()
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(text)
        main = next(op for op in module.body.operations if str(getattr(op, 'name', '')) == '"main"')
        api.set_signature(main.operation, 'serving_default', [INPUT], [OUTPUT])
        try:
            api.run_convert_to_tfl_passes(module, passmanager.PassManager(), api.ConvertToTFLConfig())
            return bytes(api.export_flatbuffer_to_bytes(module.operation))
        except ValueError as error:
            raise ValueError(
                f'LiteRT has no form of an operation of {model.network.name} ({error}); use the format onnx'
            ) from None


def _read_tflite(content: bytes, model: Model) -> Predict:
    del model
    (interpreter,) = needed('tflite', 'ai_edge_litert.interpreter')
    made = interpreter.Interpreter(model_content=content, num_threads=len(os.sched_getaffinity(0)))
    given, returned = made.get_input_details()[0]['index'], made.get_output_details()[0]['index']
    shape: tuple[int, ...] = ()

    def predict(images: np.ndarray) -> np.ndarray:
        nonlocal shape
        if shape != images.shape:
            shape = images.shape
            made.resize_tensor_input(given, shape)
            made.allocate_tensors()
        made.set_tensor(given, images)
        made.invoke()
        return made.get_tensor(returned)

    return predict


# --------------------------------------------------------------------------------------------------------- the formats


FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            'safetensors',
            '.safetensors',
            'JAX',
            _written(weights_file.save, '.safetensors'),
            _read_weights,
            """
import kcd_jax

model = kcd_jax.load('{file}')
names, probabilities = model.predict(images)
""",
        ),
        Format(
            'torch',
            '.pt',
            'JAX',
            _written(_write_torch, '.pt'),
            _read_weights,
            """
import torch

weights = torch.load('{file}', weights_only=True)
card = weights._metadata['kcd_jax']  # the normalization, the class names, ...
network.load_state_dict(weights)  # {network}, as in the public PyTorch code of that name
mean, std = (torch.tensor(card['normalization'][part]) for part in ('mean', 'std'))
x = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
logits = network.eval()(x)
""",
        ),
        Format(
            'stablehlo',
            '.stablehlo',
            'JAX',
            _write_stablehlo,
            _read_stablehlo,
            """
import pathlib
import jax

exported = jax.export.deserialize(bytearray(pathlib.Path('{file}').read_bytes()))
logits = jax.jit(exported.call)(images)
program = exported.mlir_module()  # StableHLO for other compilers
""",
        ),
        Format(
            'onnx',
            '.onnx',
            'onnxruntime',
            _write_onnx,
            _read_onnx,
            """
import onnxruntime

session = onnxruntime.InferenceSession('{file}')
(logits,) = session.run(['logits'], {{'images': images}})
""",
        ),
        Format(
            'tflite',
            '.tflite',
            'LiteRT',
            _write_tflite,
            _read_tflite,
            """
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter('{file}')
index = interpreter.get_input_details()[0]['index']
interpreter.resize_tensor_input(index, images.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(index, images)
interpreter.invoke()
logits = interpreter.get_tensor(interpreter.get_output_details()[0]['index'])
""",
        ),
    )
}
