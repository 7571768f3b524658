"""Takes screenshots of a report in a headless browser: wide and narrow, light and dark.

  python tests/screenshots.py runs/digits_kd-1234abcd/report.html pictures/

Needs Chromium (Debian and Ubuntu: `apt-get install chromium`), or the browser named by $CHROMIUM. The test suite needs
no browser: it checks the report's HTML.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

WIDTHS = {'wide': 1280, 'narrow': 400}
# Height of the window; the empty part below the page is cut off. No browser draws more than 16,384 pixels.
HEIGHT = {'wide': 12_000, 'narrow': 16_000}
MARGIN = 40


def browser() -> str:
    """The command of the browser.

    Raises:
      ValueError: no browser is installed.
    """
    names = (os.environ.get('CHROMIUM', ''), 'chromium', 'chromium-browser', 'google-chrome')
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise ValueError('no Chromium found; install it, or name it: CHROMIUM=/path/to/chromium')
    return found


def shoot(page: pathlib.Path, picture: pathlib.Path, form: str, dark: bool) -> None:
    """Writes a screenshot of the page as a PNG.

    Raises:
      ValueError: the browser drew nothing.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser(), '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
            '--hide-scrollbars', '--disable-background-networking', '--disable-component-update', '--disable-sync',
            f'--user-data-dir={profile}', f'--window-size={WIDTHS[form]},{HEIGHT[form]}',
            *(['--enable-features=WebContentsForceDark', '--force-dark-mode'] if dark else []),
            f'--screenshot={picture.resolve()}', page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if not picture.is_file() or not picture.stat().st_size:
        raise ValueError(f'{command[0]} drew nothing (exit {done.returncode}): {done.stderr.strip()[-300:]}')
    trim(picture)


def trim(picture: pathlib.Path) -> None:
    """Cuts the empty rows off the end of a screenshot, up to a margin."""
    with Image.open(picture) as opened:
        image = opened.convert('RGB')
    pixels = np.asarray(image)
    filled = np.nonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))[0]
    if len(filled):
        image.crop((0, 0, image.width, min(filled[-1] + 1 + MARGIN, image.height))).save(picture)


def main(arguments: list[str] | None = None) -> int:
    """Takes the screenshots and prints their files; bad input prints one line and returns 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('report', type=pathlib.Path)
    parser.add_argument('folder', type=pathlib.Path)
    parsed = parser.parse_args(arguments)
    try:
        if not parsed.report.is_file():
            raise ValueError(f'there is no {parsed.report}; a run leaves report.html in its folder')
        parsed.folder.mkdir(parents=True, exist_ok=True)
        for form in WIDTHS:
            for shade in ('light', 'dark'):
                picture = parsed.folder / f'{form}_{shade}.png'
                shoot(parsed.report, picture, form, dark=shade == 'dark')
                print(picture)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
