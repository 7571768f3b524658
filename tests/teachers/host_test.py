"""Teachers on the host: what they answer, and what is refused when they are made."""

from __future__ import annotations

import numpy as np
import pytest

from kcd_jax.teachers import Teacher, host

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


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
        (lambda t: Teacher.from_callable(3, classes=4, version='v'), 'fn is 3'),
        (lambda t: Teacher.from_callable(abs, classes=4, version=' '), 'version is'),
        (lambda t: Teacher.from_callable(abs, classes=1, version='v'), 'classes is 1'),
        (lambda t: Teacher.from_callable(abs, classes=['a', 'a'], version='v'), "classes is ['a', 'a']"),
        (lambda t: Teacher.from_callable(abs, classes=2.5, version='v'), 'classes is 2.5'),
        (lambda t: Teacher.ensemble(['a.npz', 'b.npz']), 'give a list of Teachers'),
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
