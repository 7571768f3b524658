"""NAME: one line on the data set, its source and its number of points.

Copy this file to `data/NAME.py`, or to `data/NAME.py` in a folder listed by KCD_JAX_PLUGINS; `--config.data.name=NAME`
and `kcd_jax.data.load('NAME')` find it there. Files whose names begin with '_' are not data sets. A worked page:
docs/adding_a_dataset.md.

A module may also have:
  SHAPES = Shapes(...)                   counts and shapes, so that costs are known without the files; a file with
                                         SHAPES and no `load` is a set of TFDS
  shapes(request) -> Shapes              the same, if they depend on what follows the name
  OPTIONS = 'SIZE'                       what may follow the name, as in 'NAME:64'; read it from `request.option`
  needs_tensorflow(request) -> bool      whether `load` would have to prepare the files with TensorFlow
  prepare(request, file_format) -> str   downloads the files; returns a line on them
"""

from __future__ import annotations

import numpy as np

from kcd_jax.data import Dataset, Request, from_arrays


def load(request: Request) -> Dataset:
    """Returns the data set, the points in the same order at every call.

    Args:
      request: the name as given, what follows its colon (`option`), and the folder of the files (`dir`).

    Raises:
      ValueError: missing or damaged files, in one line that says what to do.
    """
    random = np.random.RandomState(0)
    labels = np.arange(120) % 3
    images = random.randint(0, 128, (120, 16, 16, 3)).astype(np.uint8)
    for point, label in enumerate(labels):
        images[point, ..., label] += 100  # red, green or blue
    return from_arrays(
        images[:90],
        labels[:90],
        test=(images[90:], labels[90:]),
        classes=('red', 'green', 'blue'),
    )
