"""ONNX files: written by jax2onnx, tidied by onnxruntime, and their int8 form."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kcd_jax.export.formats import INPUT, OUTPUT, Predict, needed
from kcd_jax.networks.primitives import portable
from kcd_jax.teachers.model import Model

OPSET = 20  # the oldest that has every operation of our networks (Gelu)
_PROVIDERS = ['CPUExecutionProvider']
_CALIBRATION_BATCH = 32
# What has fast integer kernels; the normalisation of the pixels stays in float32.
_QUANTIZED = ['Conv', 'Gemm', 'MatMul', 'Add', 'Concat']


def write(model: Model) -> bytes:
    """The file of a model.

    onnxruntime's basic optimisation computes what depends on the weights alone, so that batch norms disappear into the
    convolutions; the result has standard operators only.
    """
    jax2onnx, onnx, ort = needed('onnx', 'jax2onnx', 'onnx', 'onnxruntime')
    images = jax.ShapeDtypeStruct(('batch', *model.input_shape), jnp.uint8)
    with _quiet(), portable():
        made = jax2onnx.to_onnx(
            model.function,
            inputs=[images],
            model_name=model.network.name,
            opset=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    _without_zero_terms(made)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'optimised.onnx'
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(made.SerializeToString(), options, providers=_PROVIDERS)
        tidy = onnx.load(path)
    used = {node.domain for node in tidy.graph.node}
    for entry in [entry for entry in tidy.opset_import if entry.domain not in used]:
        tidy.opset_import.remove(entry)
    onnx.checker.check_model(tidy)
    return tidy.SerializeToString()


def _without_zero_terms(made: Any) -> None:
    """Removes the scalar zeros that jax2onnx adds in Gemm: the quantiser refuses them, and they hide the real bias."""
    (numpy_helper,) = needed('onnx', 'onnx.numpy_helper')
    constants = {entry.name: entry for entry in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == 'Gemm' and len(node.input) == 3 and node.input[2] in constants:
            term = numpy_helper.to_array(constants[node.input[2]])
            if term.ndim == 0 and term == 0:
                node.input.pop()


def read(content: bytes) -> Predict:
    """The logits of a file, by onnxruntime on the CPU."""
    (ort,) = needed('onnx', 'onnxruntime')
    session = ort.InferenceSession(content, providers=_PROVIDERS)
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def quantize(content: bytes, images: np.ndarray) -> bytes:
    """The int8 form of a file: weights per channel, activations by the ranges that they have on some images.

    Args:
      content: of a float32 file.
      images: u8[N, H, W, 3], a few hundred training images.
    """
    onnx, quantization = needed('onnx', 'onnx', 'onnxruntime.quantization')

    class Images(quantization.CalibrationDataReader):
        """The images in small batches, as the quantiser asks for them."""

        def __init__(self) -> None:
            parts = (images[start : start + _CALIBRATION_BATCH] for start in range(0, len(images), _CALIBRATION_BATCH))
            self.parts = iter(list(parts))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {INPUT: part}

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'int8.onnx'
        quantization.quantize_static(
            onnx.load_from_string(content),
            path,
            Images(),
            op_types_to_quantize=_QUANTIZED,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return path.read_bytes()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the remarks of the converters about their own inner values from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
