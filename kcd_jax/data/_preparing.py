"""Downloading and preparing by TFDS, after a look at the files that it needs."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from kcd_jax.data._dataset import say
from kcd_jax.data._prepared import data_dir, missing


def registered() -> list[str]:
    """The sets that TFDS has code for, of any kind; imports TFDS, not TensorFlow."""
    import tensorflow_datasets

    return tensorflow_datasets.list_builders(with_community_datasets=False)


def prepare(name: str, dir: str | os.PathLike[str] | None = None, file_format: str = 'tfrecord') -> None:
    """Downloads and prepares a set ('cifar100', 'name/config' or 'name:1.0.0') with TFDS.

    Raises:
      ValueError: no TensorFlow, no such set, its sources are neither on disk nor reachable, or TFDS failed.
    """
    root = data_dir(dir)
    if importlib.util.find_spec('tensorflow') is None:
        raise missing(name, root)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before the import, or TensorFlow prints startup logs
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format=file_format)
    except Exception as error:  # DatasetNotFoundError, and what the code of a builder raises
        raise missing(name, root, f'TFDS: {_first_line(error)}') from error
    _refuse_other_tasks(name, builder)
    _require_sources(name, root, builder)
    say(f'{name} is not prepared in {root}: TFDS prepares it now')
    try:
        builder.download_and_prepare(file_format=file_format)
    except Exception as error:
        raise ValueError(
            f'{name} could not be prepared in {root} (TFDS: {_first_line(error)}); what was downloaded stays in '
            f'{root / "downloads"}, and "python -m kcd_jax data prepare {name} --dir {root}" continues from there'
        ) from error


def _refuse_other_tasks(name: str, builder: Any) -> None:
    """ValueError, before anything is downloaded, for a set that does not have one image and one label per point."""
    features = dict(builder.info.features)
    keys = builder.info.supervised_keys or ()
    image, label = keys if len(keys) == 2 else ('image', 'label')
    if [type(features.get(key)).__name__ for key in (image, label)] != ['Image', 'ClassLabel']:
        raise ValueError(
            f'{name} is not an image classification set (it has {", ".join(sorted(features))}); one image and one '
            'label per point are needed'
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _require_sources(name: str, root: pathlib.Path, builder: Any) -> None:
    """Raises the ValueError of `missing` if no server answers within seconds, where TFDS would try for minutes."""
    urls = dict(getattr(builder, 'url_infos', None) or {})
    pending = [url for url, info in urls.items() if not _is_here(url, info, root)]
    # A configuration may need only some of the files of its set; only its own code knows which.
    needs_all = not getattr(builder, 'BUILDER_CONFIGS', None)
    if pending and (needs_all or len(pending) == len(urls)) and not _reachable(pending[0]):
        raise missing(
            name,
            root,
            f'there is no connection to {urllib.parse.urlsplit(pending[0]).netloc}; download '
            f'{", ".join(pending[:4])}{", ..." if len(pending) > 4 else ""} elsewhere and put it into '
            f'{root / "downloads" / "manual"}',
        )


def _is_here(url: str, info: Any, root: pathlib.Path) -> bool:
    """Whether TFDS finds the file of `url` on disk: downloaded before, or put into `manual` under its name."""
    from tensorflow_datasets.core.download import resource

    downloads = root / 'downloads'
    name = getattr(info, 'filename', None) or pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name
    if (downloads / 'manual' / name).is_file():
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

    threading.Thread(target=ask, daemon=True).start()  # because name resolution has no time limit
    answered.wait(seconds + 1.0)
    return answered.is_set()
