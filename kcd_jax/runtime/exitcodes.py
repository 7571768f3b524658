"""The exit codes of every command.

| code | name | meaning |
| --- | --- | --- |
| 0 | `OK` | finished |
| 2 | `BAD_INPUT` | the command, the data or the work directory is not usable; one line says what and the remedy |
| 3 | `DIVERGED` | the loss was not finite; the last good checkpoint is kept |
| 10 | `NEEDS_PREPARATION` | the data must be prepared first, by a step that needs TensorFlow |
| 69 | `PEER_LOST` | another process of the run is gone; start all of them again |
| 74 | `DISK` | the disk is full or failed; earlier checkpoints are intact |
| 75 | `PREEMPTED` | SIGTERM or a notice of preemption; the state is saved |
| 76 | `OUT_OF_TIME` | the time limit of the run was reached; the state is saved |
| 130 | `INTERRUPTED` | Ctrl-C; one line says what was saved |
| 141 | `OUTPUT_CLOSED` | whatever read the output (`head`, a pager) closed it |
"""

from __future__ import annotations

OK = 0
BAD_INPUT = 2
DIVERGED = 3
NEEDS_PREPARATION = 10
PEER_LOST = 69
DISK = 74
PREEMPTED = 75
OUT_OF_TIME = 76
INTERRUPTED = 130
OUTPUT_CLOSED = 141


def of_error(error: BaseException) -> int:
    """The exit code for an error that ends a command in one line.

    Args:
      error: what was raised. An error with an attribute `exit_code` has that code.

    Returns:
      `INTERRUPTED` for Ctrl-C, `BAD_INPUT` for a ValueError and for files that the user named and that are not there,
      `DISK` for every other OSError, `OUTPUT_CLOSED` for a broken pipe.

    Raises:
      TypeError: the error is none of these: a bug, which deserves its traceback.
    """
    if hasattr(error, 'exit_code'):
        return error.exit_code
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return code
    raise TypeError(f'{type(error).__name__} has no exit code') from error


_CODES = (
    (KeyboardInterrupt, INTERRUPTED),
    (BrokenPipeError, OUTPUT_CLOSED),
    ((FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError), BAD_INPUT),
    (OSError, DISK),
    (ValueError, BAD_INPUT),
)
