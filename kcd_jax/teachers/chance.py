"""Whether a teacher can be told from guessing."""

from __future__ import annotations

import math

import numpy as np

SMOKE_STEPS = 100  # a teacher trained for fewer steps is a test of the program
CHANCE_RISK = 1e-3  # a teacher is admitted where guessing would reach its accuracy with a smaller probability


def refuse_near_chance(
    accuracy: float,
    num_classes: int,
    steps: int | None = None,
    *,
    num_images: int | None = None,
    allow_weak: bool = False,
    kind: str = 'test images',
) -> str:
    """ValueError for a teacher that cannot be told from guessing: a student would learn that.

    Twice chance is enough, and half way from chance to perfect where there are few classes. So is less, where guessing
    would be right so often on `num_images` with a probability below `CHANCE_RISK`.

    Args:
      accuracy: the fraction of the test images that it classifies correctly.
      num_classes: K; chance is 1 / K.
      steps: how many it was trained for by the run itself; fewer than SMOKE_STEPS are a test of the program.
      num_images: how many test images there are; None: not known.
      allow_weak: the user's decision to use it all the same.
      kind: what the images are, in words.

    Returns:
      A line where a weak teacher is admitted for one of the last two reasons, else ''.
    """
    chance = 1 / num_classes
    if accuracy >= min(2 * chance, 0.5 * (1 + chance)):
        return ''
    if num_images and accuracy > chance and _guessing(round(accuracy * num_images), num_images, chance) < CHANCE_RISK:
        return ''
    images = f'{num_images:,} {kind}' if num_images else kind
    found = f'the teacher is right on {100 * accuracy:.2f} % of the {images}, and chance is {100 * chance:.2f} %'
    if steps is not None and steps < SMOKE_STEPS:
        return f'{found}, after {steps} steps: this run tests the program, and its numbers mean nothing'
    if allow_weak:
        return f'{found}: accepted, because teaching.allow_weak is True'
    raise ValueError(
        f'{found}; check its normalization, the order of its labels and its data set, train it longer, or set '
        'teaching.allow_weak=True'
    )


def _guessing(hits: int, count: int, chance: float) -> float:
    """The probability of at least `hits` right guesses out of `count`: the upper tail of a binomial distribution."""
    k = np.arange(hits, count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    log_choices = log_factorial[count] - log_factorial[k] - log_factorial[count - k]
    return float(np.sum(np.exp(log_choices + k * math.log(chance) + (count - k) * math.log1p(-chance))))
