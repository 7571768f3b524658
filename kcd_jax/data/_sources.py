"""The files from which TFDS prepares a set: which are there, which are put there by hand, which can be downloaded."""

from __future__ import annotations

import logging
import pathlib
import re
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from kcd_jax.data._prepared import missing

_log = logging.getLogger(__name__)

_ARCHIVE = re.compile(r'[\w.+-]+\.(?:tar\.gz|tgz|tar|zip|rar|7z|gz)\b')


def describe(name: str, root: pathlib.Path, builder: Any) -> str:
    """A line on what TFDS is about to do, once its sources were found to be there, or to be reachable.

    Raises:
      ValueError: files are missing that have to be fetched by hand; or no server answers, within seconds, where TFDS
        would try for minutes. The line says which file to put where.
    """
    urls = dict(getattr(builder, 'url_infos', None) or {})
    manual = root / 'downloads' / 'manual'
    by_hand = _by_hand(builder, urls)
    absent = [file for url, file in by_hand.items() if not (manual / file).is_file()]
    instructions = ' '.join((getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None) or '').split())
    if absent or (instructions and not by_hand and not _has_any(manual)):
        put = f'put {" and ".join(absent)} into {manual}' if absent else f'put them into {manual}'
        raise ValueError(
            f'{name} is not prepared in {root}, and its files have to be fetched by hand: {put}, then run "python -m '
            f'kcd_jax data prepare {name} --dir {root}" (TFDS says: {instructions})'
        )
    for url, file in by_hand.items():
        found, known = (manual / file).stat().st_size, int(getattr(urls[url], 'size', 0) or 0)
        if known and found != known:
            _log.warning(
                '%s has %s, TFDS knows it with %s: is it whole?', manual / file, *map(gigabytes, (found, known))
            )
    downloads = {url: info for url, info in urls.items() if url not in by_hand}
    pending = [url for url, info in downloads.items() if not _is_here(url, info, root)]
    # Of a set with several configurations each one needs some of the files: which, only its own code knows.
    needs_all = not getattr(builder, 'BUILDER_CONFIGS', None)
    if pending and (needs_all or len(pending) == len(downloads)) and not _reachable(pending[0]):
        raise missing(
            name,
            root,
            f'there is no connection to {urllib.parse.urlsplit(pending[0]).netloc}; with a connection elsewhere, '
            f'put {", ".join(pending[:4])}{", ..." if len(pending) > 4 else ""} into {manual}',
        )
    for left in sorted((root / name.partition(':')[0]).glob('incomplete.*')):
        held = sum(file.stat().st_size for file in left.rglob('*') if file.is_file())
        _log.warning('%s holds %s of a preparation that did not end; delete it unless one runs', left, gigabytes(held))
    there = sum((manual / file).stat().st_size for file in by_hand.values())
    size = there + sum(int(getattr(info, 'size', 0) or 0) for info in downloads.values())
    volume = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(volume).free
    what = 'downloads and prepares it now' if pending else 'prepares it now'
    sizes = f' from {gigabytes(size)} of files' if size else ''
    return f'{name} is not prepared in {root}: TFDS {what}{sizes}; {gigabytes(free)} of disk are free'


def gigabytes(size: int) -> str:
    """Bytes for people: '0.16 GB'."""
    return f'{size / 1e9:,.2f} GB'


def _by_hand(builder: Any, urls: dict[str, Any]) -> dict[str, str]:
    """{url: file} of the registered files that the user has to fetch: those that the set's instructions name."""
    named = set(_ARCHIVE.findall(getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None) or ''))
    return {url: file for url, info in urls.items() if (file := _file_name(url, info)) in named}


def _file_name(url: str, info: Any) -> str:
    return getattr(info, 'filename', None) or pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name


def _has_any(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_here(url: str, info: Any, root: pathlib.Path) -> bool:
    """Whether TFDS finds the file of `url` on disk: downloaded before, or put into `manual` under its name."""
    from tensorflow_datasets.core.download import resource

    downloads = root / 'downloads'
    if getattr(info, 'filename', None) and (downloads / 'manual' / info.filename).is_file():
        return True
    names = {resource.get_dl_fname(url, getattr(info, 'checksum', None)), resource.get_dl_fname(url)}
    # Since some version the files lie in a folder of their set's name.
    return any(resource.is_locally_cached(path) for name in names for path in downloads.glob(f'**/{name}'))


def _reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether the server of `url` answers at all, by whatever proxies are set."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:
            # A server that dislikes HEAD is there; a proxy's refusal is not the server.
            if error.code not in (403, 407, 502, 503, 504) or not urllib.request.getproxies():
                answered.set()
        except OSError:
            pass

    # In a thread, for looking up a name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1.0)
    return answered.is_set()
