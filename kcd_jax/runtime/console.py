"""Output of the first process: lines and a progress bar, which do not disturb each other."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from kcd_jax.runtime import distributed

PLAIN_SECONDS = 10.0  # without a terminal, shortest time between two lines of progress

_bar: tqdm | None = None
_quiet = False


def say(line: str) -> None:
    """Prints one or several lines, above the progress bar if there is one.

    If standard output is closed, the run continues: one line on stderr reports it, and later lines are dropped.
    """
    if not distributed.is_first():
        return
    try:
        if _bar is None:
            print(line, flush=True)
        else:
            _bar.write(line)
    except BrokenPipeError:
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            print('standard output was closed; the run continues without it', file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the lines of runs inside, but not their progress; the caller prints a summary."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def say_of_run(line: str) -> None:
    """`say` for a line about one run, suppressed inside `quiet`."""
    if not _quiet:
        say(line)


class Progress:
    """Progress of one run, a context manager: a bar on a terminal, else a line every few seconds."""

    def __init__(self, total: int, done: int = 0):
        """Starts to show progress.

        Args:
          total: training images of the whole run.
          done: images that earlier starts trained on.
        """
        global _bar
        self.total, self.done, self.before = total, done, done
        self._start = self._last = time.monotonic()
        self._started = False
        self._bar: tqdm | None = None
        if distributed.is_first() and sys.stderr.isatty():
            self._bar = _bar = tqdm(
                total=total, initial=done, unit=' images', unit_scale=True, mininterval=0.5, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *details: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the bar."""
        global _bar
        if self._bar is not None:
            self._bar.close()
            self._bar = _bar = None

    def update(self, images: int, numbers: Mapping[str, float]) -> None:
        """Adds images to the count and shows numbers next to it.

        The speed is measured from the first call on: before it, the program was compiled.

        Args:
          images: trained on since the last call.
          numbers: by name, such as the loss.
        """
        self.done += images
        if not self._started:
            self._started, self.before, self._start = True, self.done, time.monotonic()
            if self._bar is not None:  # its own clock starts again, too
                self._bar.initial = self.done
                self._bar.unpause()
        if self._bar is not None:
            self._bar.set_postfix({name: f'{value:.3f}' for name, value in numbers.items()}, refresh=False)
            self._bar.update(images)
        elif self.done > self.before and self._due():
            rate = (self.done - self.before) / (self._last - self._start)
            shown = ''.join(f', {name} {value:.3f}' for name, value in numbers.items())
            left = tqdm.format_interval(max(self.total - self.done, 0) / rate)
            say(f'{self.done:,} of {self.total:,} images, {rate:,.0f} images/s, {left} left{shown}')

    def _due(self) -> bool:
        if time.monotonic() - self._last < PLAIN_SECONDS:
            return False
        self._last = time.monotonic()
        return True
