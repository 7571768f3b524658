"""A figure with its words: what files of runs are drawn into."""

from __future__ import annotations

import dataclasses

from matplotlib.figure import Figure


@dataclasses.dataclass
class Drawing:
    """A figure with its words.

    Attributes:
      name: for a file or an anchor.
      title: a few words.
      alt: what the figure shows, with its numbers, for those who do not see it.
      figure: the figure.
    """

    name: str
    title: str
    alt: str
    figure: Figure
