"""How many points are kept in each epoch, and the resulting cost (KCD Sec. 3.5, Eq. 16), in plain Python."""

from __future__ import annotations

from collections.abc import Sequence

SCHEDULES = ('exponential', 'linear')
FIRSTS = ('epoch', 'stage', 'none')


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError with the known values unless `value` is one of them."""
    if value not in known:
        raise ValueError(f'{name} is {value!r}; known: {", ".join(known)}')


def keep_counts(num_points: int, ratio: float, stages: int, schedule: str = 'exponential') -> list[int]:
    """Points kept after condensations 1 ... stages.

    exponential (the paper): round(N * tau^t) with tau = ratio^(1 / stages), the last one round(ratio * N). linear (the
    authors' code, with its truncations): n <- max(n - int(N * (1 - ratio) / stages), int(ratio * N)), starting from N;
    the last size may exceed ratio * N by a few points.

    Args:
      num_points: N.
      ratio: fraction kept at the end, in (0, 1].
      stages: at least 1.
      schedule: 'exponential' | 'linear'.

    Raises:
      ValueError: a value is out of range, or no point would be kept.

    >>> keep_counts(50_000, ratio=0.7, stages=6)
    [47114, 44395, 41833, 39419, 37144, 35000]
    """
    if not 0 < ratio <= 1:
        raise ValueError(f'ratio is {ratio}; use a fraction of the points, above 0 and at most 1')
    if stages < 1:
        raise ValueError(f'stages is {stages}; use at least 1')
    _check_choice('schedule', schedule, SCHEDULES)
    if schedule == 'exponential':
        counts = [round(num_points * ratio ** ((t + 1) / stages)) for t in range(stages - 1)]
        counts.append(round(ratio * num_points))
    else:
        counts, kept = [], num_points
        for _ in range(stages):
            kept = max(kept - int(num_points * (1 - ratio) / stages), int(ratio * num_points))
            counts.append(kept)
    if counts[-1] < 1:
        raise ValueError(f'ratio {ratio} keeps none of {num_points} points; use at least {1 / num_points:.3g}')
    return counts


def stage_length(epochs: int, stages: int) -> int:
    """Epochs per stage; ValueError with the nearest valid values if `stages` does not divide `epochs`."""
    if 1 <= stages <= epochs and epochs % stages == 0:
        return epochs // stages
    divisors = [d for d in range(1, epochs + 1) if epochs % d == 0]
    below = max((d for d in divisors if d < stages), default=None)
    above = min((d for d in divisors if d > stages), default=None)
    near = ' or '.join(str(d) for d in (below, above) if d is not None)
    lengths = [n for n in (epochs // stages * stages, -(-epochs // stages) * stages) if n > 0] if stages > 0 else []
    other = f', or {" or ".join(str(n) for n in dict.fromkeys(lengths))} epochs' if lengths else ''
    raise ValueError(f'{stages} stages do not divide {epochs} epochs; use {near} stages{other}')


def replan_index(epoch: int, epochs: int, stages: int, first: str) -> int | None:
    """Index of the condensation that follows `epoch` finished epochs; None if there is none.

    first = 'epoch': after epoch 1, 1 + T, 1 + 2T, ... (the paper's Algorithm 1, whose E-step runs at i % T = 0);
    'stage': after T, 2T, ... (the authors' code); 'none': before the first epoch, then after T, 2T, ... (as Eq. 16
    counts). Never after the last epoch.
    """
    _check_choice('first', first, FIRSTS)
    length = stage_length(epochs, stages)
    since = epoch - {'epoch': 1, 'stage': length, 'none': 0}[first]
    if epoch >= epochs or since < 0 or since % length:
        return None
    return since // length


def replans(epochs: int, stages: int, first: str) -> list[int]:
    """The numbers of finished epochs after which a condensation happens."""
    return [epoch for epoch in range(epochs) if replan_index(epoch, epochs, stages, first) is not None]


def stage_of(epoch: int, epochs: int, stages: int, first: str) -> int | None:
    """Index of the latest condensation after `epoch` finished epochs; None before the first."""
    return next(
        (stage for e in range(epoch, -1, -1) if (stage := replan_index(e, epochs, stages, first)) is not None), None
    )


def epoch_sizes(
    num_points: int, ratio: float, stages: int, epochs: int, schedule: str = 'exponential', first: str = 'epoch'
) -> list[int]:
    """Points of each epoch. Arguments and errors are those of `keep_counts`, `stage_length` and `replan_index`.

    >>> epoch_sizes(1000, ratio=0.5, stages=2, epochs=6)
    [1000, 707, 707, 707, 500, 500]
    """
    counts = keep_counts(num_points, ratio, stages, schedule)
    sizes, size = [], num_points
    for epoch in range(epochs):
        stage = replan_index(epoch, epochs, stages, first)
        size = size if stage is None else counts[stage]
        sizes.append(size)
    return sizes


def processed(sizes: Sequence[int], batch: int) -> tuple[int, int]:
    """(samples, steps) of epochs of these sizes if the last partial batch is dropped."""
    steps = sum(size // batch for size in sizes)
    return steps * batch, steps


def relative_cost(keep_counts: Sequence[int], epochs_per_stage: int, num_points: int, first: str = 'epoch') -> float:
    """C: samples of the run relative to training on all points in every epoch (KCD Eq. 16).

    The paper's sum has one term too many and counts a reduction before the first epoch (first = 'none': 0.8163 at ratio
    0.7); its Algorithm 1 gives 0.8176 (first = 'epoch'), the authors' code, linear and first = 'stage', 0.875.

    Args:
      keep_counts: sizes after each condensation.
      epochs_per_stage: T.
      num_points: N.
      first: as for `replan_index`.

    >>> counts = keep_counts(50_000, ratio=0.7, stages=6)
    >>> round(relative_cost(counts, 40, 50_000), 5), round(relative_cost(counts, 40, 50_000, first='none'), 5)
    (0.8176, 0.81635)
    """
    _check_choice('first', first, FIRSTS)
    counts, length = list(keep_counts), epochs_per_stage
    total = length * sum(counts)
    if first == 'epoch':
        total += num_points - counts[-1]
    elif first == 'stage':
        total += length * (num_points - counts[-1])
    return total / (num_points * length * len(counts))
