"""What collectives and a large value table cost on paper, on links that are named: arithmetic, no measurement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from benchmarks.scaling.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects so many devices.

    Attributes:
      devices: how many. name: of the link that the slowest hop of a ring crosses.
      bytes_per_second: that one device can send over it, one way. hop_seconds: latency of one hop.
    """

    devices: int
    name: str
    bytes_per_second: float
    hop_seconds: float


# A host of 8 GPUs with NVLink 4 (900 GB/s both ways), and hosts of 8 with a 400 Gbit/s InfiniBand port for each GPU.
LINKS = (
    Link(8, 'NVLink 4 within a host, 450 GB/s', 450e9, 2e-6),
    Link(64, 'InfiniBand NDR, 50 GB/s a GPU', 50e9, 5e-6),
    Link(512, 'InfiniBand NDR, 50 GB/s a GPU', 50e9, 5e-6),
)


def seconds(kind: str, size: int, link: Link) -> float:
    """Of one collective, by the usual model: a tree of hops for the latency, a ring for the bytes.

    A ring sends (d - 1) / d of an all-gather's result through each device, twice as much of an all-reduce; the latency
    is log2(d) hops, twice that for an all-reduce.

    Args:
      kind: of `collectives.KINDS`. size: bytes of the result on one device. link: what d devices are connected by.
    """
    ways = 2 if kind == 'all-reduce' else 1
    share = (link.devices - 1) / link.devices
    return ways * (math.ceil(math.log2(link.devices)) * link.hop_seconds + share * size / link.bytes_per_second)


def program_seconds(found: Iterable[Collective], link: Link) -> float:
    """Of a program's collectives one after another, nothing hidden behind computation: an upper bound."""
    return sum(seconds(collective.kind, collective.bytes, link) for collective in found)


def merged_seconds(found: Iterable[Collective], link: Link) -> float:
    """As if those of one kind were one: what merging them, which XLA does on accelerators, can save at most."""
    sizes: dict[str, int] = {}
    for collective in found:
        sizes[collective.kind] = sizes.get(collective.kind, 0) + collective.bytes
    return sum(seconds(kind, size, link) for kind, size in sizes.items())


@dataclasses.dataclass(frozen=True)
class TableCost:
    """A value table of so many points on so many devices, and condensing it.

    Attributes:
      table: bytes of values and visits on one device, where they are split.
      plan: bytes on one device of the plan (order, partner, epsilon, weight) and the epoch's order, whole on each.
      peak: bytes on one device while it condenses.
      moved: bytes that each device receives at a condensation. seconds: of moving them.
    """

    table: int
    plan: int
    peak: int
    moved: int
    seconds: float


def table_cost(num_points: int, link: Link, peak_bytes_a_point: float) -> TableCost:
    """The costs of the program as it is: table split, plan replicated, every device sorting the whole table."""
    table = 8 * num_points
    moved = table * (link.devices - 1) // link.devices
    spent = 2 * seconds('all-gather', table // 2, link)  # values and visits, 4 bytes each
    return TableCost(table // link.devices, 20 * num_points, round(peak_bytes_a_point * num_points), moved, spent)


def selection_cost(link: Link, passes: int = 4, buckets: int = 256) -> tuple[int, float]:
    """(bytes, seconds) of finding the score of the last kept point without sorting, however many points there are.

    Radix selection over the 32 bits of the score: in each pass every device counts its own rows by 8 bits, the counts
    are summed, and the bucket that holds rank `num_keep` is opened in the next. Four more passes over the bits of the
    index settle the ties.
    """
    size = 4 * buckets
    return 2 * passes * size, 2 * passes * seconds('all-reduce', size, link)
