"""Which files of a folder are images, and which are passed over, and why."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable, Iterator

from kcd_jax.data._dataset import printable

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
# Other suffixes are judged by content, as one of these: none of them is told by chance from a few bytes of text.
_FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP')
# What operating systems, archives and storage servers leave in folders, besides names that begin with a dot.
_SYSTEM = {
    '@eadir', '__macosx', '#recycle', '#snapshot', '$recycle.bin', 'system volume information', 'lost+found',
    'thumbs.db', 'ehthumbs.db', 'desktop.ini', 'icon\r',
}  # fmt: skip
HIDDEN = 'hidden or system entries'


class Passed:
    """What was passed over: how many of each kind, and the first of them."""

    def __init__(self, root: pathlib.Path):
        self.root, self.count, self.first = root, collections.Counter(), {}

    def add(self, kind: str, path: str | os.PathLike[str], number: int = 1) -> None:
        """Counts entries of a kind; `path` is the first of them."""
        self.count[kind] += number
        self.first.setdefault(kind, path)

    def include(self, other: Passed) -> None:
        """Adds what was passed over in a folder below."""
        for kind, number in other.count.items():
            self.add(kind, other.first[kind], number)

    def words(self) -> str:
        """'dangling links: 30 (train/cat/000.png, ...)', or '' if there was nothing."""
        shown = {kind: printable(os.path.relpath(path, self.root)) for kind, path in self.first.items()}
        return '; '.join(
            f'{kind}: {number:,} ({shown[kind]}{", ..." if number > 1 else ""})' for kind, number in self.count.items()
        )


def classes(folder: pathlib.Path, passed: Passed) -> list[str]:
    """The names of the class folders in a split's folder, sorted."""
    found = []
    for entry in _entries(folder, passed):
        if _is(entry.is_dir):
            found.append(entry.name)
        else:
            passed.add('files outside of class folders', entry.path)
    return found


def images(folder: str, passed: Passed, above: tuple[str, ...] = ()) -> Iterator[pathlib.Path]:
    """The images in a folder and those below it, links followed.

    Raises:
      ValueError: a link leads to a folder that contains it.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f'{printable(folder)} is a link to {printable(real)}, which contains it; remove the link')
    for entry in _entries(folder, passed):
        if _is(entry.is_dir):
            yield from images(entry.path, passed, (*above, real))
        elif not _is(entry.is_file):
            passed.add('dangling links' if entry.is_symlink() else 'special files', entry.path)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES or _is_image(entry.path):
            yield pathlib.Path(entry.path)
        else:
            passed.add('files that are no images', entry.path)


def _entries(folder: str | os.PathLike[str], passed: Passed) -> Iterator[os.DirEntry]:
    """The entries of a folder by name; those that are never part of the data are passed over."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f'{printable(str(folder))} cannot be read ({error.strerror or error})') from error
    for entry in found:
        if entry.name.startswith('.') or entry.name.lower() in _SYSTEM:
            passed.add(HIDDEN, entry.path)
        else:
            yield entry


def _is(question: Callable[[], bool]) -> bool:
    """The answer of `entry.is_dir` or `entry.is_file`, which raise for a link to itself."""
    try:
        return question()
    except OSError:
        return False


def _is_image(path: str) -> bool:
    """Whether a file whose suffix says nothing is an image, by its first bytes."""
    from PIL import Image

    Image.init()
    try:
        with Image.open(path, formats=[kind for kind in _FORMATS if kind in Image.OPEN]):
            return True
    except Exception:  # Pillow's formats raise many kinds
        return False
