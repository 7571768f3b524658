"""Exports: a file is written only after its outputs were compared with the student's."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np

from kcd_jax import paths
from kcd_jax.export import model_card, onnx_file
from kcd_jax.export.formats import FORMATS, Predict
from kcd_jax.runtime import files
from kcd_jax.teachers.model import Model

COMPARED = 100  # images
TOLERANCE = 1e-4  # of a logit, where all are below 1; of the largest one otherwise
LATENCY_BATCHES = (1, 32)
_SECONDS = 0.5  # of measuring per batch size, after the first call


@dataclasses.dataclass(frozen=True)
class Images:
    """What files are compared on.

    Attributes:
      images: u8[N, H, W, 3].
      labels: i32[N]; None: not known, so there is no accuracy.
      source: where they come from, in words.
    """

    images: np.ndarray
    labels: np.ndarray | None
    source: str

    @classmethod
    def random(cls, model: Model, why: str = '') -> Images:
        """100 images of uniform noise, which are enough to compare outputs."""
        images = np.random.default_rng(0).integers(0, 256, (COMPARED, *model.input_shape), np.uint8)
        return cls(images, None, 'random pixels' + (f' ({why})' if why else ''))


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
      path: of the file.
      format: its name in `FORMATS`; 'onnx, int8' for the quantised form.
      difference: the largest difference of a logit from the student's.
      agreement: share of the compared images with the same most probable class.
      compared: how many images these two are from.
      source: where the images come from.
      accuracy: (the student's, the file's) on the labelled images; None without labels.
      latency: {batch: (the student's, the file's)}, median seconds per call on this machine.
    """

    path: pathlib.Path
    format: str
    difference: float
    agreement: float
    compared: int
    source: str
    accuracy: tuple[float, float] | None
    latency: dict[int, tuple[float, float]]

    def lines(self) -> Iterator[str]:
        """For the user."""
        reader = FORMATS[self.format.partition(',')[0]].reader
        yield f'{self.path}: {self.format}, {self.path.stat().st_size:,} bytes'
        yield (
            f'logits differ by at most {self.difference:.1e} on {self.compared} images ({self.source}); '
            f'{100 * self.agreement:.1f} % have the same most probable class'
        )
        if self.accuracy:
            yield f'accuracy: {100 * self.accuracy[0]:.2f} % the student, {100 * self.accuracy[1]:.2f} % the file'
        for batch, (ours, theirs) in self.latency.items():
            yield (
                f'latency of {batch} image{"s" if batch > 1 else ""}: {1e3 * ours:.2f} ms the student in JAX, '
                f'{1e3 * theirs:.2f} ms the file in {reader}'
            )


def output_path(out: str | os.PathLike[str], format: str) -> pathlib.Path:
    """The file to write, '~' expanded and with the format's suffix if it has none.

    Raises:
      ValueError: it cannot be a file, its suffix is that of another format, or the format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f'unknown format {format!r}; use {", ".join(FORMATS)}')
    path = paths.expand(out)
    if path.is_dir():
        raise ValueError(f'--out={out} is a folder; name a file in it')
    for other in FORMATS.values():
        if path.suffix == other.suffix and other.name != format:
            raise ValueError(f'--out={out} has the suffix of format {other.name}, and --format is {format}')
    paths.output_folder(path.parent, '--out')
    return path if path.suffix else path.with_suffix(FORMATS[format].suffix)


def export(
    model: Model,
    format: str,
    out: str | os.PathLike[str],
    images: Images | None = None,
    command: str = '',
) -> Exported:
    """Writes a model as one file, with a model card next to it (its name with '.md' appended).

    The preprocessing is inside: the file takes u8[N, H, W, 3], any N, and gives logits f32[N, K]. (Files of weights,
    safetensors and torch, state the normalization instead.)

    Args:
      model: of `kcd_jax.load`, or built from any network.
      format: a name in `FORMATS`.
      out: the file.
      images: to compare on; None: random ones.
      command: that made it, for the model card.

    Raises:
      ValueError: the network cannot be written in this format, a package is missing, or the file's logits differ by
        more than 1e-4; then nothing is written.
    """
    path = output_path(out, format)
    images = images or Images.random(model)
    content = FORMATS[format].write(model)
    read = FORMATS[format].read(content, model)
    found = _compared(model, read, path, format, images)
    if not found.difference <= TOLERANCE * max(1.0, float(np.abs(model(images.images[:COMPARED])).max())):
        raise ValueError(
            f'the {format} file is not written: its logits differ by {found.difference:.1e} from those of '
            f'{model.network.name} on {found.compared} images; please report it'
        )
    _write(model, found, content, command)
    return found


def quantize(model: Model, exported: Exported, calibration: np.ndarray, images: Images, command: str = '') -> Exported:
    """Writes the int8 form of an exported ONNX file next to it, NAME.int8.onnx, with a model card.

    Args:
      model: the same.
      exported: its ONNX file.
      calibration: u8[N, H, W, 3], a few hundred training images.
      images: to compare on.
      command: that made it, for the model card.
    """
    path = exported.path.with_suffix(f'.int8{exported.path.suffix}')
    content = onnx_file.quantize(exported.path.read_bytes(), calibration)
    found = _compared(model, onnx_file.read(content), path, 'onnx, int8', images)
    _write(model, found, content, command)
    return found


def _write(model: Model, found: Exported, content: bytes, command: str) -> None:
    files.write_bytes(found.path, content)
    text = model_card.text(model, found, FORMATS[found.format.partition(',')[0]].usage, command)
    files.write_text(found.path.with_name(f'{found.path.name}.md'), text)


def _compared(model: Model, read: Predict, path: pathlib.Path, format: str, images: Images) -> Exported:
    compared = images.images[:COMPARED]
    ours, theirs = model(compared), _in_batches(read, compared)
    accuracy = None
    if images.labels is not None:
        both = model(images.images), _in_batches(read, images.images)
        accuracy = tuple(float(np.mean(logits.argmax(-1) == images.labels)) for logits in both)
    student = jax.jit(model.function)
    latency = {}
    for batch in LATENCY_BATCHES:
        some = np.resize(compared, (batch, *model.input_shape))
        latency[batch] = (_median_seconds(lambda x: np.asarray(student(x)), some), _median_seconds(read, some))
    return Exported(
        path,
        format,
        float(np.abs(ours - theirs).max()),
        float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
        len(compared),
        images.source,
        accuracy,
        latency,
    )


def _in_batches(read: Predict, images: np.ndarray) -> np.ndarray:
    """The logits of all images; one image is read alone, so that a file with a fixed batch is found out."""
    parts = [images[:1], *(images[start : start + COMPARED] for start in range(1, len(images), COMPARED))]
    return np.concatenate([read(part) for part in parts if len(part)])


def _median_seconds(call: Predict, images: np.ndarray) -> float:
    call(images)
    taken, start = [], time.perf_counter()
    while not taken or (time.perf_counter() - start < _SECONDS and len(taken) < 50):
        before = time.perf_counter()
        call(images)
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))
