"""What TFDS prepares a set from: on disk, or to be downloaded. TensorFlow is not needed to know."""

from __future__ import annotations

import contextlib
import http.server
import pathlib
import threading
import time
from collections.abc import Iterator

import pytest
import tensorflow_datasets
from tensorflow_datasets.core.download import checksums, resource

from kcd_jax.data import _preparing as preparing

NOBODY = 'http://127.0.0.1:9'  # port 9 of this machine: refused at once; TFDS would try ten times


class Builder:
    """What `_require_sources` asks of a TFDS builder."""

    def __init__(self, *urls: str, configs: tuple[str, ...] = ()):
        self.url_infos = {
            url: checksums.UrlInfo(1000, checksums.sha256(url), pathlib.PurePosixPath(url).name) for url in urls
        }
        self.BUILDER_CONFIGS = configs


@contextlib.contextmanager
def server(code: int) -> Iterator[tuple[str, list[str]]]:
    """(address, what was asked) of a web server that answers everything with `code`."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(code)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_address[1]}', asked
        running.shutdown()


def refused(root: pathlib.Path, builder: Builder, name: str = 'toy') -> str:
    with pytest.raises(ValueError) as error:
        preparing._require_sources(name, root, builder)
    assert '\n' not in str(error.value)
    return str(error.value)


def put(root: pathlib.Path, *names: str, size: int = 1000) -> None:
    folder = root / 'downloads' / 'manual'
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(bytes(size))


def test_a_missing_network_is_noticed_in_seconds(tmp_path: pathlib.Path):
    start = time.monotonic()
    message = refused(tmp_path, Builder(f'{NOBODY}/cifar.tar.gz'))
    assert 'there is no connection to 127.0.0.1:9' in message
    assert f'download {NOBODY}/cifar.tar.gz elsewhere and put it into {tmp_path}/downloads/manual' in message
    assert time.monotonic() - start < 7
    assert not list(tmp_path.iterdir())


def test_files_on_disk_need_no_network(tmp_path: pathlib.Path):
    """Under its own name in the folder manual, or as TFDS keeps what it downloaded: both layouts, with its .INFO."""
    urls = [f'{NOBODY}/{name}.gz' for name in 'abc']
    builder = Builder(*urls)
    put(tmp_path, 'a.gz')
    for url, folder in ((urls[1], tmp_path / 'downloads'), (urls[2], tmp_path / 'downloads' / 'toy')):
        path = folder / resource.get_dl_fname(url, builder.url_infos[url].checksum)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        assert 'no connection' in refused(tmp_path, builder)  # TFDS would fetch a file without its .INFO again
        pathlib.Path(f'{path}.INFO').write_text('{}')
    preparing._require_sources('toy', tmp_path, builder)


@pytest.mark.parametrize('code', [200, 404, 405])
def test_a_server_that_answers_is_reachable(tmp_path: pathlib.Path, code: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr('urllib.request.getproxies', dict)
    with server(code) as (address, asked):
        preparing._require_sources('toy', tmp_path / 'new', Builder(f'{address}/a.gz', f'{address}/b.gz'))
    assert asked == ['/a.gz']
    assert not (tmp_path / 'new').exists()


def test_a_refusal_by_a_proxy_is_not_an_answer(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    with server(403) as (address, _):
        monkeypatch.setattr('urllib.request.getproxies', dict)
        preparing._require_sources('toy', tmp_path, Builder(f'{address}/a.gz'))
        monkeypatch.setattr('urllib.request.getproxies', lambda: {'ftp': 'http://127.0.0.1:9'})
        assert 'no connection' in refused(tmp_path, Builder(f'{address}/a.gz'))


def test_one_of_several_configurations_may_need_only_the_files_on_disk(tmp_path: pathlib.Path):
    urls = f'{NOBODY}/small.zip', f'{NOBODY}/large.zip'
    assert 'no connection' in refused(tmp_path, Builder(*urls, configs=('small', 'large')))
    put(tmp_path, 'small.zip')
    preparing._require_sources('toy', tmp_path, Builder(*urls, configs=('small', 'large')))
    assert 'no connection' in refused(tmp_path, Builder(*urls))


def test_archives_that_only_registered_users_can_download(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparing, '_reachable', lambda url: False)
    builder = tensorflow_datasets.builder('imagenet2012', data_dir=tmp_path)
    message = refused(tmp_path, builder, 'imagenet2012')
    for archive in ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'):
        assert f'/{archive}' in message
    assert 'image-net.org; download' in message and f'put it into {tmp_path}/downloads/manual' in message
    put(tmp_path, *(pathlib.PurePosixPath(url).name for url in builder.url_infos))
    preparing._require_sources('imagenet2012', tmp_path, builder)
