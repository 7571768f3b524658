"""The collectives of a compiled program: what each of them moves."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast')

# name = SHAPE kind(...): the shape is one array or, where XLA has merged several, a tuple of them.
_INSTRUCTION = re.compile(rf'^\s*(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ({"|".join(KINDS)})(-start)?\(', re.MULTILINE)
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
      kind: of `KINDS`. shapes: of its results, e.g. ('f32[64]',).
      bytes: of its results on one device: the reduced arrays of an all-reduce, the whole ones of an all-gather.
      source: the operation that it came from, as JAX names it, or ''.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    source: str


def read(text: str) -> list[Collective]:
    """Every collective in the text of a compiled program (`jax.stages.Compiled.as_text`).

    Those in the body of a loop are listed once, whatever the number of its turns.
    """
    found = []
    for match in _INSTRUCTION.finditer(text):
        arrays = [(array.group(0), _bytes(array.group(1), array.group(2))) for array in _ARRAY.finditer(match.group(1))]
        if match.group(3) and len(arrays) > 1:  # an asynchronous one's tuple: operands, then results of the same number
            arrays = arrays[len(arrays) // 2 :]
        line = text[match.start() : text.find('\n', match.end())]
        name = _OP_NAME.search(line)
        found.append(
            Collective(
                match.group(2),
                tuple(shape for shape, _ in arrays),
                sum(size for _, size in arrays),
                name.group(1) if name else '',
            )
        )
    return found


def total(collectives: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """{kind: (how many, bytes)}, in the order of `KINDS`."""
    count: collections.Counter[str] = collections.Counter()
    size: collections.Counter[str] = collections.Counter()
    for collective in collectives:
        count[collective.kind] += 1
        size[collective.kind] += collective.bytes
    return {kind: (count[kind], size[kind]) for kind in KINDS if count[kind]}


def _bytes(dtype: str, dimensions: str) -> int:
    """Bytes of 'f32', '64,3'."""
    bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype).group(0))
    size = 1
    for dimension in filter(None, dimensions.split(',')):
        size *= int(dimension)
    return size * max(bits, 8) // 8
