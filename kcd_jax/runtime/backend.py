"""XLA flags, which must be set before the first JAX operation."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax

from kcd_jax import paths


def add_xla_flags(flags: Sequence[str]) -> None:
    """Prepends flags to XLA_FLAGS, so that the user's own take precedence.

    XLA_FLAGS holds either flags or, if it does not start with '-', the path of a file with flags. A path after other
    flags would be ignored, so the file's content replaces it.

    Args:
      flags: such as '--xla_gpu_deterministic_ops=true'.

    Raises:
      ValueError: XLA_FLAGS names a file that cannot be read. XLA would ignore it silently.
    """
    theirs = os.environ.get('XLA_FLAGS', '').strip()
    if theirs and not theirs.startswith('-'):
        try:
            theirs = paths.expand(theirs).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise ValueError(
                f'XLA_FLAGS={theirs} names a file of flags that cannot be read ({reason}); give its path, flags that '
                'start with --, or unset it'
            ) from error
    os.environ['XLA_FLAGS'] = ' '.join([*flags, *theirs.splitlines()])


def unavailable() -> str:
    """Why JAX has no device to compute on, in one line; '' if it has one.

    JAX finds its devices at the first operation, and raises a RuntimeError, or a bare AssertionError, when the platform
    that JAX_PLATFORMS names is not there.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get('JAX_PLATFORMS', '')
        reason = f' ({" ".join(str(error).split())[:200]})' if str(error) else ''
        return f'JAX finds no device for JAX_PLATFORMS={asked!r}{reason}; unset it, or install JAX for that platform'
    return ''
