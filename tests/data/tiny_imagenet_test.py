"""Tiny ImageNet as it is packed, in miniature: read, missing, damaged; downloaded from this machine alone."""

from __future__ import annotations

import hashlib
import http.server
import io
import pathlib
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data
from kcd_jax.commands import data as program
from kcd_jax.data import tiny_imagenet
from kcd_jax.training.run import Run

ROOT = pathlib.Path(__file__).parents[2]
WNIDS = ('n02', 'n01')  # not in order, as in the original


def write(root: pathlib.Path, number: int = 6) -> pathlib.Path:
    place = root / tiny_imagenet.FOLDER
    random = np.random.default_rng(0)
    for wnid in WNIDS:
        (place / 'train' / wnid / 'images').mkdir(parents=True)
        for i in range(number):
            pixels = random.integers(0, 256, (64, 64) if i == 2 else (64, 64, 3), np.uint8)  # some are grey
            Image.fromarray(pixels).save(place / 'train' / wnid / 'images' / f'{wnid}_{i}.JPEG')
    (place / 'val' / 'images').mkdir(parents=True)
    lines = []
    for i in range(4):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(place / 'val' / 'images' / f'val_{i}.JPEG')
        lines.append(f'val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t62\t62\n')
    (place / 'val' / 'val_annotations.txt').write_text(''.join(reversed(lines)))
    (place / 'wnids.txt').write_text('\n'.join(WNIDS))
    (place / 'words.txt').write_text('n01\tgoldfish, Carassius auratus\nn02\tbullfrog\nn03\tother\n')
    return place


def _prepare(root: pathlib.Path) -> pathlib.Path:
    assert 'MB of JPEG files' in data.prepare('tiny_imagenet', root)
    return tiny_imagenet.find(root)


def test_it_is_read_as_it_is_packed(tmp_path: pathlib.Path):
    place = write(tmp_path / 'data')
    for folder in (tmp_path / 'data', place):
        loaded = data.load('tiny_imagenet', folder, cache=tmp_path / 'cache')
        assert loaded.class_names == ('goldfish', 'bullfrog') and loaded.image_shape == (64, 64, 3)
        assert loaded.train.labels.tolist() == [0] * 6 + [1] * 6
        assert loaded.train.ids[0] == 'train/n01/images/n01_0.JPEG'
        assert loaded.test.ids.tolist() == [f'val/images/val_{i}.JPEG' for i in range(4)]
        assert loaded.test.labels.tolist() == [1, 0, 1, 0]
    streamed = data.load('tiny_imagenet', place, cache=tmp_path / 'cache', loading=data.Loading(stream=True))
    np.testing.assert_array_equal(np.asarray(streamed.train.images), loaded.train.images)
    assert '12 train, 4 test, 2 classes, 64x64' in data.check('tiny_imagenet', place, cache=tmp_path / 'cache')


def test_missing_and_damaged_files_raise_one_line(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match='prepare tiny_imagenet'):
        data.load('tiny_imagenet', tmp_path)
    place = write(tmp_path)
    (place / 'val' / 'images' / 'val_2.JPEG').unlink()
    with pytest.raises(ValueError, match='val_2.JPEG is missing'):
        data.load('tiny_imagenet', tmp_path, cache=tmp_path / 'cache')
    (place / 'val' / 'val_annotations.txt').unlink()
    with pytest.raises(ValueError, match='not tiny_imagenet as it was packed'):
        data.load('tiny_imagenet', tmp_path, cache=tmp_path / 'cache')


def test_prepare_unpacks_the_archive_and_refuses_another(tmp_path: pathlib.Path, monkeypatch):
    archive = tmp_path / 'data' / f'{tiny_imagenet.FOLDER}.zip'
    archive.parent.mkdir()
    archive.write_bytes(packed(tmp_path / 'original'))
    with pytest.raises(ValueError, match='is not the archive'):
        _prepare(tmp_path / 'data')
    digest = tiny_imagenet.hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(tiny_imagenet, 'MD5', digest)
    place = _prepare(tmp_path / 'data')
    assert len(data.load('tiny_imagenet', place, cache=tmp_path / 'cache').train) == 12
    assert not archive.exists() and _prepare(tmp_path / 'data') == place


def test_a_download_without_a_network_raises_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*arguments, **keywords):
        raise OSError('no route')

    monkeypatch.setattr(tiny_imagenet.urllib.request, 'urlopen', refused)
    with pytest.raises(ValueError, match='no route') as error:
        _prepare(tmp_path)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())

    class Answer(io.BytesIO):
        headers: dict = {}  # noqa: RUF012

    monkeypatch.setattr(tiny_imagenet.urllib.request, 'urlopen', lambda *a, **k: Answer(b'a page that says no'))
    with pytest.raises(ValueError, match='is not the archive'):
        _prepare(tmp_path)


def packed(root: pathlib.Path) -> bytes:
    """The archive of a miniature."""
    write(root)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as content:
        for file in sorted(root.rglob('*')):
            content.write(file, file.relative_to(root))
    return stream.getvalue()


def test_an_interrupted_download_can_be_repeated(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    archive = packed(tmp_path / 'original')
    sent = [archive[: len(archive) // 2], archive]  # of the whole length in the header

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header('Content-Length', str(len(archive)))
            self.end_headers()
            self.wfile.write(sent.pop(0))

        def log_message(self, *args: object) -> None:
            pass

    digest = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(tiny_imagenet, 'MD5', digest)
    monkeypatch.setenv('KCD_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('urllib.request.getproxies', dict)
    command = ['prepare', 'tiny_imagenet', '--dir', str(tmp_path / 'data')]
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(tiny_imagenet, 'URL', f'http://127.0.0.1:{server.server_address[1]}/tiny.zip')
        assert program.main(command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f'the connection ended after {len(archive) // 2:,} of {len(archive):,} bytes' in line
        assert not list((tmp_path / 'data').iterdir())
        assert program.main(command) == 0
        server.shutdown()
    printed = capsys.readouterr().out
    assert 'MB of JPEG files' in printed and 'tiny_imagenet: 12 train, 4 test, 2 classes, 64x64' in printed
    assert [path.name for path in (tmp_path / 'data').iterdir()] == [tiny_imagenet.FOLDER]


def test_its_config_is_accepted(tmp_path: pathlib.Path):
    write(tmp_path, number=300)
    run = Run.from_config(f'{ROOT}/configs/tiny_imagenet_kd.py:data.dir={tmp_path}')
    lines = '\n'.join(run.check())
    assert '600 training points, 2 classes' in lines and '0.01 from epoch 41, 0.001 from epoch 71' in lines


def test_the_imagenet_recipe_is_the_papers(tmp_path: pathlib.Path):
    from tests.data import photographs

    photographs.folder(tmp_path, train=400, test=4, classes=2, size=(40, 40))
    words = f'dataset=folder:32,data.dir={tmp_path},stream=true'
    lines = '\n'.join(Run.from_config(f'{ROOT}/configs/imagenet_kd.py:{words}').check())
    assert '0.1 from epoch 1, 0.01 from epoch 31, 0.001 from epoch 61' in lines
    assert 'policy     kcd: 400 from epoch 1, 377 from epoch 2, 355 from epoch 17' in lines
    assert 'streamed by threads' in lines
