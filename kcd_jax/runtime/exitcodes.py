"""The exit codes of every command.

| code | name | meaning |
| --- | --- | --- |
| 0 | `OK` | finished |
| 2 | `BAD_INPUT` | the command, the data or the work directory is unusable; one line gives the reason and the remedy |
| 3 | `DIVERGED` | the loss was not finite; the last good checkpoint is kept |
| 10 | `NEEDS_PREPARATION` | the data must be prepared first, by a step that needs TensorFlow |
| 69 | `PEER_LOST` | another process of the run ended; start all of them again |
| 74 | `DISK` | the disk is full or failed; earlier checkpoints are intact |
| 75 | `PREEMPTED` | SIGTERM or a notice of preemption; the state is saved |
| 76 | `OUT_OF_TIME` | the time limit of the run was reached; the state is saved |
| 130 | `INTERRUPTED` | Ctrl-C; one line reports what was saved |
| 141 | `OUTPUT_CLOSED` | the reader of the output (`head`, a pager) closed it |
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
    """The exit code for an error that a command reports in one line.

    Args:
      error: what was raised. Its attribute `exit_code`, if it has one, is the code.

    Returns:
      `INTERRUPTED` for Ctrl-C, `BAD_INPUT` for a ValueError and for missing or inaccessible files, `DISK` for other
      OSErrors, `OUTPUT_CLOSED` for a broken pipe.

    Raises:
      TypeError: the error is none of these, so it is a bug and should keep its traceback.
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
    ((FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError), BAD_INPUT),
    (OSError, DISK),
    (ValueError, BAD_INPUT),
)
