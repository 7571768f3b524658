"""Teachers on the host: what they answer, and what is refused when they are made."""

from __future__ import annotations

import contextlib
import gc
import weakref

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from kcd_jax.teachers import Teacher, host

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


class Tensor:
    """What NumPy cannot read, as a PyTorch tensor with gradients."""

    def detach(self):
        raise NotImplementedError

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def test_the_fixed_images_cover_the_range_of_pixels():
    found = host.probes((8, 8, 3))
    assert found.shape == (8, 8, 8, 3) and found.min() == 0 and found.max() == 1
    np.testing.assert_array_equal(found[:, :, :, 0] * 255, np.round(found[:, :, :, 0] * 255))


@pytest.mark.parametrize('mean', host.MEANS)
def test_an_ensemble_is_the_mean_that_it_says(mean):
    index = np.arange(6)
    one, other = Teacher.from_outputs(LOGITS), Teacher.from_outputs(LOGITS[::-1].copy())
    found = Teacher.ensemble([one, other], [1, 3], mean).host.answer(host.Query(index))
    if mean == 'logits':
        np.testing.assert_allclose(found, 0.25 * LOGITS + 0.75 * LOGITS[::-1], rtol=1e-5)
    else:
        np.testing.assert_allclose(softmax(found), 0.25 * softmax(LOGITS) + 0.75 * softmax(LOGITS[::-1]), rtol=1e-5)


def test_stored_outputs_do_not_share_the_memory_they_were_given_in():
    memory = LOGITS.copy()
    teacher = Teacher.from_outputs(memory)
    memory[:] = 0
    np.testing.assert_array_equal(teacher.host.answer(host.Query(np.arange(6))), LOGITS)


def test_a_teacher_on_the_host_is_let_go():
    teacher = Teacher.from_outputs(LOGITS)
    teacher.network.output_shapes((8, 8, 3))  # kept by network
    found = weakref.ref(teacher.host)
    del teacher
    gc.collect()
    assert found() is None


def test_an_ensemble_takes_any_list_of_teachers():
    found = Teacher.ensemble(Teacher.from_outputs(LOGITS * scale) for scale in (1, 2))
    assert len(found.members) == 2 and not found.members[0].members


def test_the_identity_of_an_ensemble_is_that_of_its_parts():
    one, other = Teacher.from_outputs(LOGITS), Teacher.from_outputs(-LOGITS)
    found = [
        Teacher.ensemble([one, other]),
        Teacher.ensemble([other, one]),
        Teacher.ensemble([one, other], [1, 2]),
        Teacher.ensemble([one, other], mean='logits'),
    ]
    assert len({teacher.identity for teacher in found}) == 4
    assert found[0].identity == Teacher.ensemble([one, other], [2, 2]).identity


@pytest.mark.parametrize(
    ('make', 'told'),
    [
        (lambda t: Teacher.ensemble([t]), 'at least two'),
        (lambda t: Teacher.ensemble([t, t], [1]), 'one positive number for each of the 2'),
        (lambda t: Teacher.ensemble([t, t], [1, -1]), 'one positive number'),
        (lambda t: Teacher.ensemble([t, t], mean='median'), "mean is 'median'"),
        (lambda t: Teacher.ensemble([t, Teacher.from_outputs(LOGITS[:, :3])]), 'know 4, 3 classes'),
        (lambda t: Teacher.from_outputs(LOGITS, classes=['one']), 'at least two different class names'),
        (lambda t: Teacher.from_outputs(LOGITS[0]), r'shape [4]'),
        (lambda t: Teacher.from_outputs(LOGITS.astype(int)), 'is int64'),
        (lambda t: Teacher.from_outputs(np.where(LOGITS > 1, np.inf, LOGITS)), 'not finite, first in row'),
        (lambda t: Teacher.from_outputs(softmax(LOGITS)), 'give logits'),
        (lambda t: Teacher.from_outputs(LOGITS, LOGITS[:, None]), 'use [M, K]'),
        (lambda t: Teacher.from_outputs('nowhere.npz'), 'there are no outputs at nowhere.npz'),
        (lambda t: Teacher.from_outputs('~nobody_here/x.npz'), 'names a home folder that does not exist'),
        (lambda t: Teacher.from_outputs(3.0), 'train of stored outputs has shape []; use [N, K] or [N, V, K]'),
        (lambda t: Teacher.from_outputs([[1.0, 2.0], [3.0]]), 'train of stored outputs is a list that is no array'),
        (lambda t: Teacher.from_outputs(embed=3.0), 'embed of stored outputs has shape []; use [N, D] or [N, V, D]'),
        (lambda t: Teacher.from_outputs(embed=[[1.0], [2.0, 3.0]]), 'embed of stored outputs is a list that is no'),
        (lambda t: Teacher.from_outputs(embed=LOGITS, test_embed=3.0), 'test_embed of stored outputs has shape []'),
        (lambda t: Teacher.from_outputs(embed=LOGITS, test_embed=LOGITS[:, :3]), 'has shape [6, 3]; use [6, 4]'),
        (lambda t: Teacher.from_outputs(embed=LOGITS, test=LOGITS), 'has test, and no train of the training points'),
        (lambda t: Teacher.from_outputs(LOGITS, test_embed=LOGITS), 'has test_embed, and no embed of the training'),
        (lambda t: Teacher.from_outputs(Tensor()), 'no array of numbers; use .detach().cpu().float().numpy() of it'),
        (lambda t: Teacher.from_callable(3, classes=4, version='v'), 'fn is 3'),
        (lambda t: Teacher.from_callable(abs, classes=4, version=' '), 'version is'),
        (lambda t: Teacher.from_callable(abs, classes=1, version='v'), 'classes is 1'),
        (lambda t: Teacher.from_callable(abs, classes=['a', 'a'], version='v'), "classes is ['a', 'a']"),
        (lambda t: Teacher.from_callable(abs, classes=2.5, version='v'), 'classes is 2.5'),
        (lambda t: Teacher.ensemble(['a.npz', 'b.npz']), 'give a list of Teachers'),
        (lambda t: Teacher.ensemble(t), 'at least two'),
        (lambda t: Teacher.ensemble([t, t], 'ab'), "weights is 'ab'; use one positive number for each of the 2"),
        (lambda t: Teacher.ensemble([t, t], {'a': 1}), 'one positive number for each of the 2'),
        (lambda t: t.save('x.safetensors'), 'cannot be saved'),
    ],
)
def test_what_makes_no_teacher_is_refused_in_one_line(make, told):
    with pytest.raises(ValueError) as error:
        make(Teacher.from_outputs(LOGITS))
    assert told in str(error.value) and '\n' not in str(error.value)


def test_a_function_whose_answers_depend_on_the_batch_is_refused():
    def normalised(images):  # as batch normalisation in training mode
        rows = images.reshape(len(images), -1)[:, :4]
        return (rows - rows.mean(0)) / rows.std(0)

    found = Teacher.from_callable(normalised, classes=4, version='v', image_shape=(8, 8, 3)).host
    with pytest.raises(ValueError, match=r'gives answers that depend on the rest of the batch .* model.eval'):
        found.recheck()
    alone = Teacher.from_callable(lambda x: x[:, 0, :4, 0], classes=4, version='v', image_shape=(8, 8, 3)).host
    alone.recheck()


def test_a_function_that_uses_its_memory_again_is_compared_all_the_same():
    buffer = np.empty((8, 4), np.float32)

    def centred(images):
        rows = images.reshape(len(images), -1)[:, :4]
        buffer[:] = rows - rows.mean(0)
        return buffer

    found = Teacher.from_callable(centred, classes=4, version='v', image_shape=(8, 8, 3)).host
    with pytest.raises(ValueError, match='gives answers that depend on the rest of the batch'):
        found.recheck()
    first = found.answer(host.Query(np.arange(8), host.probes((8, 8, 3))))
    kept = first.copy()
    found.answer(host.Query(np.arange(8), 1 - host.probes((8, 8, 3))))
    np.testing.assert_array_equal(first, kept)


def raising(error):
    def answer(images):
        raise error

    return answer


@pytest.mark.parametrize(
    ('answer', 'told'),
    [
        (raising(RuntimeError('first\nsecond')), 'raised RuntimeError: first second'),
        (raising(KeyError()), 'raised KeyError'),
        (raising(OSError(28, 'No space left')), 'raised OSError: [Errno 28] No space left'),
        (lambda x: Tensor(), 'returned Tensor, which is no array of numbers; return model(x).detach().cpu()'),
    ],
)
def test_what_a_function_raises_is_one_line(answer, told):
    with pytest.raises(ValueError) as error:
        Teacher.from_callable(answer, classes=4, version='mine', image_shape=(8, 8, 3))
    assert str(error.value).startswith('the teacher mine, asked about 8 images of (8, 8, 3), r')
    assert told in str(error.value) and '\n' not in str(error.value) and error.value.__cause__ is not None


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
def test_a_function_can_be_interrupted(error):
    with pytest.raises(error):
        Teacher.from_callable(raising(error()), classes=4, version='mine', image_shape=(8, 8, 3))


def test_the_remedy_for_a_model_of_pytorch_with_gradients():
    torch = pytest.importorskip('torch')
    model = torch.nn.Linear(4, 4)
    rows = lambda images: torch.from_numpy(images.reshape(len(images), -1)[:, :4].copy())  # noqa: E731
    make = lambda fn: Teacher.from_callable(fn, classes=4, version='mine', image_shape=(8, 8, 3))  # noqa: E731
    with pytest.raises(
        ValueError, match=r'Tensor, which is no array of numbers; return model\(x\)\.detach\(\)\.cpu\(\)'
    ):
        make(lambda x: model(rows(x)))
    assert make(lambda x: model(rows(x)).detach().cpu().float().numpy()).identity


def test_processes_end_together_where_one_finds_another_answer(monkeypatch):
    answers = [0.0]
    one = Teacher.from_callable(lambda x: x[:, 0, :4, 0] + answers[0], classes=4, version='a', image_shape=(8, 8, 3))
    both = Teacher.ensemble([one, Teacher.from_outputs(LOGITS), one])
    agreed = []

    @contextlib.contextmanager
    def together():
        try:
            yield
            agreed.append('')
        except ValueError as error:
            agreed.append(str(error))
            raise

    monkeypatch.setattr(host.distributed, 'together', together)
    both.host.recheck()
    assert agreed == ['', '']
    answers[0] = 1.0
    with pytest.raises(ValueError, match='the teacher a gives other answers'):
        both.host.recheck()
    assert 'gives other answers' in agreed[-1]


def test_bfloat16_outputs_are_read_from_a_file(tmp_path):
    logits = LOGITS.astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file({'train': logits}, tmp_path / 'x.safetensors')
    found = Teacher.from_outputs(tmp_path / 'x.safetensors')
    assert found.host.train.dtype == ml_dtypes.bfloat16 and found.identity == Teacher.from_outputs(logits).identity
    answers = found.host.answer(host.Query(np.arange(6)))
    np.testing.assert_array_equal(answers, logits.astype(np.float32))


@pytest.mark.parametrize(
    ('content', 'told'), [(b'', 'cannot be read as outputs'), (b'PK\x03\x04broken', 'cannot be read as outputs')]
)
def test_a_damaged_file_of_outputs_is_refused(tmp_path, content, told):
    for suffix in ('npz', 'safetensors'):
        path = tmp_path / f'x.{suffix}'
        path.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            Teacher.from_outputs(path)


def test_a_file_without_training_outputs_names_what_it_holds(tmp_path):
    for name in ('test', 'logits'):
        np.savez(tmp_path / 'x.npz', **{name: LOGITS})
        with pytest.raises(ValueError, match=f"no array 'train'; it holds {name}"):
            Teacher.from_outputs(tmp_path / 'x.npz')
