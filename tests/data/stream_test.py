"""Points that are read by index: the same as in memory, in any order, only those that are asked for."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from kcd_jax import data
from kcd_jax.data import _pictures, _prepared, stream
from kcd_jax.data import _records as records
from tests.data import tiny_tfds
from tests.data.pictures_test import encoded

pytestmark = pytest.mark.fast_compile

STREAMED = data.Loading(stream=True)


class Counted:
    """A source that remembers what was read."""

    def __init__(self, images: np.ndarray):
        self.images, self.read = images, []

    def __getitem__(self, point: int) -> np.ndarray:
        self.read.append(point)
        return self.images[point]


def images_of(number: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, 4, 5, 3), np.uint8)


def steps_of(source, index: np.ndarray, partner: np.ndarray | None = None, **options) -> stream.Steps:
    images = data.Images(source, np.arange(20), (4, 5, 3))
    return stream.Steps(images, index, index if partner is None else partner, **options)


def both(name: str, root: pathlib.Path, **keywords) -> tuple[data.Dataset, data.Dataset]:
    """(in memory, streamed)"""
    options = {'dir': root / 'data', 'cache': root / 'cache', **keywords}
    return data.load(name, **options), data.load(name, **options, loading=STREAMED)


def assert_same(memory: data.Dataset, streamed: data.Dataset) -> None:
    for split in ('train', 'test', 'validation'):
        one, other = getattr(memory, split), getattr(streamed, split)
        if one is None:
            assert other is None
            continue
        assert other.streamed and not one.streamed
        np.testing.assert_array_equal(np.asarray(other.images), one.images)
        np.testing.assert_array_equal(other.labels, one.labels)
        if one.ids is not None:
            assert other.ids.tolist() == one.ids.tolist()
    assert memory.image_shape == streamed.image_shape
    assert memory.normalization == streamed.normalization


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
@pytest.mark.parametrize(('shards', 'ids'), [((12,), True), ((3, 1, 8), True), ((5, 7), False)])
def test_records_by_index_are_those_in_memory(tmp_path: pathlib.Path, file_format: str, shards, ids: bool):
    tiny_tfds.write(tmp_path / 'data', shards=shards, ids=ids, file_format=file_format)
    memory, streamed = both('toy', tmp_path)
    assert_same(memory, streamed)
    assert_same(*both('toy', tmp_path, validation=0.25, seed=3, num_points=7))
    sent = pickle.loads(pickle.dumps(streamed.train.images))  # as worker processes get it
    np.testing.assert_array_equal(sent[3:6], memory.train.images[3:6])


def test_scaled_pictures_by_index_are_those_in_memory(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data', shape=(12, 9, 3))
    memory, streamed = both('toy:8', tmp_path)
    assert memory.image_shape == (8, 8, 3)
    assert_same(memory, streamed)


def test_a_folder_by_index_is_the_one_in_memory(tmp_path: pathlib.Path):
    random = np.random.default_rng(0)
    for split, name, size in [('train', 'a', 20), ('train', 'b', 30), ('test', 'a', 16), ('test', 'b', 40)]:
        folder = tmp_path / 'data' / split / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(random.integers(0, 256, (size, size + i, 3), np.uint8)).save(folder / f'{i}.jpg')
    (tmp_path / 'data' / 'train' / 'a' / '1.jpg').write_text('no image')
    assert_same(*both('folder:16', tmp_path))


def test_data_in_memory_can_be_streamed(tmp_path: pathlib.Path):
    assert_same(*both('digits', tmp_path, num_points=50))


def test_the_second_start_reads_no_shard(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    tiny_tfds.write(tmp_path / 'data')
    both('toy', tmp_path)
    monkeypatch.setattr(_prepared.Prepared, 'records', lambda *arguments: pytest.fail('read again'))
    both('toy', tmp_path)


def test_the_size_decides(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data')
    options = {'dir': tmp_path / 'data', 'cache': tmp_path / 'cache'}
    assert not data.load('toy', **options).train.streamed
    assert not data.load('toy', **options, loading=data.Loading(memory=4 * 16 * 8 * 8 * 3)).train.streamed
    assert data.load('toy', **options, loading=data.Loading(memory=4 * 16 * 8 * 8 * 3 - 1)).train.streamed


def test_each_record_of_any_file(tmp_path: pathlib.Path):
    examples = [bytes([i]) * (3 * i) for i in range(9)]
    for number, part in enumerate((examples[:4], [], examples[4:])):
        tiny_tfds.write_records(tmp_path / str(number), part)
    paths = [str(tmp_path / str(number)) for number in range(3)]
    frames = [len(example) + records.FRAME for example in examples]
    offsets = np.array([sum(frames[:i]) for i in range(4)] + [sum(frames[4:i]) for i in range(4, 9)])
    found = records.by_number(paths, (4, 0, 5), offsets, 'tfrecord')
    assert [found[i] for i in reversed(range(9))] == examples[::-1]


def test_only_the_points_of_the_order_and_their_partners_are_read():
    index = np.array([[3, 7], [1, 0]])
    partner = np.array([[3, 9], [1, 0]])
    source = Counted(images_of())
    [first, second] = list(stream.read(steps_of(source, index, partner)))
    assert sorted(source.read) == [0, 1, 3, 7, 9]
    np.testing.assert_array_equal(first['image'], source.images[[3, 7]])
    np.testing.assert_array_equal(first['partner'], source.images[[3, 9]])
    assert set(second) == {'image'}  # nothing is mixed: nothing more is sent


def test_resuming_in_the_middle_reads_nothing_of_the_finished_steps():
    index = np.arange(20).reshape(5, 4)
    source = Counted(images_of())
    whole = list(stream.read(steps_of(source, index)))
    source.read.clear()
    rest = list(stream.read(steps_of(source, index), first=3))
    assert sorted(source.read) == list(range(12, 20))
    for one, other in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(one['image'], other['image'])


def test_reading_ahead_is_bounded_and_stops_when_it_is_closed():
    index = np.random.default_rng(0).integers(0, 20, (400, 1))
    source = Counted(images_of())
    batches = stream.read(steps_of(source, index))
    next(batches)
    batches.close()
    assert len(source.read) <= 2 * (stream.threads() + 4)


def test_an_error_while_reading_is_raised_as_it_is():
    class Bad:
        def __getitem__(self, point: int) -> np.ndarray:
            raise ValueError(f'point {point} is gone')

    with pytest.raises(ValueError, match='point 5 is gone'):
        list(stream.read(steps_of(Bad(), np.array([[5]]))))


def test_crops_are_a_function_of_seed_epoch_and_point(tmp_path: pathlib.Path):
    for name in ('train/a', 'train/b', 'test/a'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / 'data' / name / '0.png')
    loading = data.Loading(stream=True, area=(0.08, 1.0))
    train = data.load('folder:16', tmp_path / 'data', cache=tmp_path / 'cache', loading=loading).train
    assert train.draws_crops

    def view(point: int = 0, seed: int = 0, epoch: int = 0) -> bytes:
        return train.images.training(point, seed, epoch).tobytes()

    assert view() == view()
    assert len({view(), view(seed=1), view(epoch=1), view(point=1)}) == 4
    fresh = train.images.source.crop(1, np.random.RandomState([7, 3, 1]))  # whatever its thread drew before
    np.testing.assert_array_equal(train.images.training(1, 7, 3), fresh)
    assert np.array_equal(train.images[0], train.images[1])  # the two files are equal, and so are they when evaluated


def test_a_partner_is_seen_through_the_crop_of_its_point():
    ramps = np.zeros((3, 40, 60, 3), np.uint8)
    ramps[..., 0], ramps[..., 1], ramps[..., 2] = np.arange(60), np.arange(40)[:, None], np.arange(3)[:, None, None]
    source = _pictures.CroppedPictures([encoded(ramp) for ramp in ramps], 16, area=(0.1, 0.5))
    images = data.Images(source, np.array([2, 0, 1]), (16, 16, 3))
    [batch] = stream.read(stream.Steps(images, np.array([[0, 1]]), np.array([[1, 1]]), seed=5, epoch=2))
    image, partner = batch['image'], batch['partner']
    # The first two channels say where the crop lies, the third which picture it is of.
    np.testing.assert_array_equal(image[0, ..., :2], partner[0, ..., :2])
    assert image[0, 0, 0, 2] == 2 and partner[0, 0, 0, 2] == 0
    np.testing.assert_array_equal(image[1], partner[1])
    assert not np.array_equal(image[0, ..., :2], image[1, ..., :2])
    fixed = [
        stream.Steps(images, np.array([[0, 1]]), np.array([[1, 1]]), s, e, fixed=np.array([[3, 0]]))
        for s, e in ((5, 2), (8, 9))
    ]
    for batch in (steps[0] for steps in fixed):  # whatever the seed and the epoch
        np.testing.assert_array_equal(batch['image'], [images.training(0, 0, 3), images.training(1, 0, 0)])
        np.testing.assert_array_equal(batch['partner'][0], images.training(0, 0, 3, 1))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    index = np.random.default_rng(0).integers(0, 20, (7, 3))
    steps = steps_of(images_of(), index, np.roll(index, 1, axis=1))
    for one, other in zip(stream.read(steps, first=1), stream.read(steps, first=1, workers=2), strict=True):
        assert one.keys() == other.keys()
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])
    assert not multiprocessing.active_children()


@pytest.mark.parametrize('workers', [-1, 4 * stream.threads() + 1, 999])
def test_the_number_of_workers_has_a_range(workers: int):
    with pytest.raises(ValueError, match=f'data.workers={workers} is out of range') as error:
        next(stream.read(steps_of(images_of(), np.zeros((1, 1), int)), workers=workers))
    assert f'to {4 * stream.threads()}' in str(error.value) and not multiprocessing.active_children()
    stream.check_workers(0)
    stream.check_workers(4 * stream.threads())


# Prints the processes of its workers, then does what its argument says.
READER = """
import multiprocessing, os, signal, sys, time
import numpy as np
from kcd_jax import data

def ignores(pid, number):
    status = dict(line.split(':', 1) for line in open(f'/proc/{pid}/status'))
    return int(status['SigIgn'], 16) >> (number - 1) & 1

if __name__ == '__main__':
    images = data.Images(np.zeros((8, 4, 4, 3), np.uint8), np.arange(8), (4, 4, 3))
    index = np.zeros((1000, 2), int)
    batches = data.stream.read(data.stream.Steps(images, index, index), workers=2)
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[1] == 'wait':
        time.sleep(60)
    elif sys.argv[1] == 'close':
        batches.close()
    elif sys.argv[1] == 'leave':
        pass
    elif sys.argv[1] == 'lose':
        for child in multiprocessing.active_children():
            while not ignores(child.pid, signal.SIGTERM):  # it may still be starting
                time.sleep(0.01)
            os.kill(child.pid, signal.SIGTERM)  # as sent to a whole group
        next(batches)
        os.kill(child.pid, signal.SIGKILL)
        try:
            list(batches)
        except ValueError as error:
            print(error)
"""


def reader(tmp_path: pathlib.Path, what: str) -> subprocess.Popen[str]:
    """Runs READER in a session of its own, so that every process that it starts is known."""
    (tmp_path / 'reader.py').write_text(READER)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / 'reader.py'), what],
        env=os.environ | {'PYTHONPATH': str(pathlib.Path(data.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, of = stat.read_text().rpartition(')')[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if state != 'Z' and int(of) == session:
            found.append(int(stat.parent.name))
    return found


def assert_none_is_left(session: int, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while processes(session) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes(session) == []


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: pathlib.Path):
    with reader(tmp_path, 'wait') as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and {parent.pid, *pids} < set(processes(parent.pid))
        parent.kill()
        assert_none_is_left(parent.pid)


@pytest.mark.slow
@pytest.mark.parametrize('what', ['close', 'leave', 'lose'])
def test_no_process_and_no_warning_is_left_at_the_end(tmp_path: pathlib.Path, what: str):
    with reader(tmp_path, what) as parent:
        out, error = parent.communicate(timeout=60)
    _, *rest = out.splitlines()
    assert parent.returncode == 0 and error == ''
    assert len(rest) == (what == 'lose') and all('a process that reads data died' in line for line in rest)
    assert_none_is_left(parent.pid)


def test_the_cache_of_a_streamed_set_has_no_images(tmp_path: pathlib.Path):
    tiny_tfds.write(tmp_path / 'data')
    data.load('toy', tmp_path / 'data', cache=tmp_path / 'cache', loading=STREAMED)
    [entry] = (tmp_path / 'cache').iterdir()
    arrays = json.loads((entry / 'index.json').read_text())['arrays']
    assert not [name for name in arrays if 'images' in name]


class Cropping(Counted):
    """A source that cuts at random: the first draw is written into the image's corner."""

    def crop(self, point: int, random: np.random.RandomState) -> np.ndarray:
        image = self[point].copy()
        image[0, 0] = random.randint(0, 256)
        return image


def test_a_partner_is_cut_as_the_point_that_it_is_mixed_into():
    index, partner = np.array([[3, 4], [5, 6]]), np.array([[9, 4], [5, 3]])
    steps = steps_of(Cropping(images_of()), index, partner, seed=1, epoch=2)
    for number in (0, 1):
        found = steps[number]
        np.testing.assert_array_equal(found['image'][:, 0, 0], found['partner'][:, 0, 0])
        np.testing.assert_array_equal(found['partner'][:, 1:], images_of()[partner[number]][:, 1:])
    corners = {int(steps_of(Cropping(images_of()), index, seed=s)[0]['image'][0, 0, 0, 0]) for s in (0, 2**32, 2**33)}
    assert len(corners) == 3, 'the high bits of a seed count'
