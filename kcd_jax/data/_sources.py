"""The files from which TFDS prepares a set: on disk, to be put there by hand, or to be downloaded."""

from __future__ import annotations

import pathlib
import re
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from kcd_jax.data._prepared import missing

_ARCHIVE = re.compile(r'[\w.+-]+\.(?:tar\.gz|tgz|tar|zip|rar|7z|gz)\b')


def describe(name: str, root: pathlib.Path, builder: Any) -> str:
    """One line on what TFDS is about to do, once its sources were found on disk or reachable.

    Args:
      name: of the set.
      root: the data folder.
      builder: of TFDS.

    Raises:
      ValueError: files are missing that only the user can download, or no server answers within seconds, where TFDS
        would try for minutes. The line says which file to put where.
    """
    urls = dict(getattr(builder, 'url_infos', None) or {})
    instructions = ' '.join((getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None) or '').split())
    named = set(_ARCHIVE.findall(instructions))
    # Registered files that the instructions name have to be downloaded by the user.
    by_hand = {url: file for url, info in urls.items() if (file := _file_name(url, info)) in named}
    manual = root / 'downloads' / 'manual'
    absent = [file for file in by_hand.values() if not (manual / file).is_file()]
    if absent or (instructions and not by_hand and not (manual.is_dir() and any(manual.iterdir()))):
        what = ' and '.join(absent) or 'them'
        raise ValueError(
            f'{name} is not prepared in {root}, and its files have to be downloaded by hand: put {what} into {manual}, '
            f'then run "python -m kcd_jax data prepare {name} --dir {root}" (TFDS says: {instructions})'
        )
    downloads = {url: info for url, info in urls.items() if url not in by_hand}
    pending = [url for url, info in downloads.items() if not _is_here(url, info, root)]
    # A configuration may need only some of the files of its set; only its own code knows which.
    needs_all = not getattr(builder, 'BUILDER_CONFIGS', None)
    if pending and (needs_all or len(pending) == len(downloads)) and not _reachable(pending[0]):
        raise missing(
            name,
            root,
            f'there is no connection to {urllib.parse.urlsplit(pending[0]).netloc}; download '
            f'{", ".join(pending[:4])}{", ..." if len(pending) > 4 else ""} elsewhere and put it into {manual}',
        )
    size = sum((manual / file).stat().st_size for file in by_hand.values())
    size += sum(int(getattr(info, 'size', 0) or 0) for info in downloads.values())
    volume = next(folder for folder in (root, *root.parents) if folder.is_dir())
    what = 'downloads and prepares it now' if pending else 'prepares it now'
    sizes = f' from {size / 1e9:,.2f} GB of files' if size else ''
    free = shutil.disk_usage(volume).free
    return f'{name} is not prepared in {root}: TFDS {what}{sizes}; {free / 1e9:,.2f} GB of disk are free'


def _file_name(url: str, info: Any) -> str:
    return getattr(info, 'filename', None) or pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name


def _is_here(url: str, info: Any, root: pathlib.Path) -> bool:
    """Whether TFDS finds the file of `url` on disk: downloaded before, or put into `manual` under its name."""
    from tensorflow_datasets.core.download import resource

    downloads = root / 'downloads'
    if getattr(info, 'filename', None) and (downloads / 'manual' / info.filename).is_file():
        return True
    names = {resource.get_dl_fname(url, getattr(info, 'checksum', None)), resource.get_dl_fname(url)}
    # Some versions of TFDS put files into a folder named like their set.
    return any(resource.is_locally_cached(path) for name in names for path in downloads.glob(f'**/{name}'))


def _reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether the server of `url` answers at all, through the configured proxies."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:
            # The server answered, even if it refuses HEAD; a proxy's refusal is not the server's answer.
            if error.code not in (403, 407, 502, 503, 504) or not urllib.request.getproxies():
                answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)  # because name resolution has no time limit
    thread.start()
    thread.join(seconds + 1.0)
    return answered.is_set()
