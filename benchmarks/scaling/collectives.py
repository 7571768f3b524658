"""The collectives of a compiled program: what each of them moves."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')

# name = SHAPE kind(...): the shape is one array or, where XLA has merged several collectives, a tuple of arrays.
_INSTRUCTION = re.compile(rf'^\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ({"|".join(KINDS)})(-start)?\(', re.MULTILINE)
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
      kind: one of `KINDS`.
      shapes: of its results, e.g. ('f32[64]',).
      bytes: of its results on one device: the reduced arrays of an all-reduce, the whole arrays of an all-gather.
      source: the operation it was made for, by JAX's name, or ''.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    source: str

    @property
    def purpose(self) -> str:
        """What a collective of the training step is for."""
        if self.kind == 'all-gather' or self.source.endswith('/gather'):
            return 'value table'
        # Kernels have at least two axes. The gradients of scale and shift are sums that the statistics need anyway.
        return 'gradients, metrics' if any(',' in shape for shape in self.shapes) else 'batch statistics'


def read(text: str) -> list[Collective]:
    """Every collective in the text of a compiled program (`jax.stages.Compiled.as_text`).

    Those in the body of a loop are listed once, whatever the number of iterations.
    """
    found = []
    for match in _INSTRUCTION.finditer(text):
        arrays = [(array.group(0), _bytes(array.group(1), array.group(2))) for array in _ARRAY.finditer(match.group(1))]
        if match.group(3) and len(arrays) > 1:  # the tuple of an asynchronous collective: operands, then results
            arrays = arrays[len(arrays) // 2 :]
        shapes, sizes = zip(*arrays)
        name = _OP_NAME.search(text[match.start() : text.find('\n', match.end())])
        found.append(Collective(match.group(2), shapes, sum(sizes), name.group(1) if name else ''))
    return found


def total(collectives: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """{kind: (count, bytes)}, in the order of `KINDS`."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for collective in collectives:
        found[collective.kind].append(collective.bytes)
    return {kind: (len(found[kind]), sum(found[kind])) for kind in KINDS if kind in found}


def _bytes(dtype: str, dimensions: str) -> int:
    """Bytes of an array, e.g. of 'f32', '64,3'."""
    bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype).group(0))
    return math.prod(map(int, filter(None, dimensions.split(',')))) * max(bits, 8) // 8
