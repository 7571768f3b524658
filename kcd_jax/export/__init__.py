"""Trained students as files for other programs: uint8 images in, logits out, any batch (docs/export.md)."""

from kcd_jax.export.formats import FORMATS, Format
from kcd_jax.export.writing import Exported, Images, export, quantize

__all__ = ['FORMATS', 'Exported', 'Format', 'Images', 'export', 'quantize']
