"""The exit code of every error, and that the codes are documented."""

from __future__ import annotations

import errno
import pathlib
import re
import signal

import pytest

from kcd_jax.runtime import distributed, exitcodes

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODES = {name: value for name, value in vars(exitcodes).items() if name.isupper() and isinstance(value, int)}


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (ValueError('batch 3'), 2),
        (FileNotFoundError(errno.ENOENT, 'No such file', 'images'), 2),
        (PermissionError(errno.EACCES, 'Permission denied'), 2),
        (OSError('a checkpoint could not be written'), 74),
        (OSError(errno.ENOSPC, 'No space left on device'), 74),
        (BrokenPipeError(errno.EPIPE, 'Broken pipe'), 141),
        (distributed.Agreed('process 1: batch 3', on_disk=False), 2),
        (distributed.Agreed('process 1: no space', on_disk=True), 74),
        (distributed.Stopped(signal.SIGTERM, 7), 75),
        (distributed.Stopped(signal.SIGINT, 7), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_have_codes(error, code):
    assert exitcodes.of_error(error) == code


def test_a_bug_has_no_exit_code():
    with pytest.raises(TypeError, match='KeyError has no exit code'):
        exitcodes.of_error(KeyError('x'))


def table(text: str) -> dict[int, str]:
    return {int(code): meaning for code, meaning in re.findall(r'^\| (\d+) \| (?:`\w+` \| )?(.*?) \|', text, re.M)}


def test_every_code_is_in_both_tables():
    assert len(set(CODES.values())) == len(CODES)
    assert table(exitcodes.__doc__).keys() == set(CODES.values())
    for name, value in CODES.items():
        assert f'| {value} | `{name}` |' in exitcodes.__doc__
    page = (ROOT / 'docs' / 'RELIABILITY.md').read_text()
    assert set(CODES.values()) <= table(page).keys()
