"""A trained network for use: from its file alone, images or pictures in, names and probabilities out."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image

import kcd_jax
from kcd_jax import networks
from kcd_jax.teachers import weights_file

NAMES = ('ant', 'bee', 'cat', 'dog', 'eel')
SHAPE = (8, 8, 3)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Loaded from a file in a folder where nothing else is."""
    network = networks.get('resnet8x0_25')(len(NAMES))
    card = {'network': network.name, 'num_classes': len(NAMES), 'class_names': NAMES, 'image_shape': SHAPE}
    path = tmp_path_factory.mktemp('alone') / 'model.safetensors'
    weights_file.save(path, network.init(jax.random.key(0), SHAPE), card)
    return kcd_jax.load(path)


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


def test_it_is_the_network(model, images):
    assert model.classes == NAMES and model.input_shape == SHAPE
    assert repr(model) == 'Model(resnet8x0_25, 5 classes, uint8 images of 8x8 pixels)'
    wanted = model.network.apply(model.variables, images.astype(np.float32) / 255, False)[0].logits
    np.testing.assert_allclose(model(images), wanted, atol=1e-6)
    np.testing.assert_allclose(model(images, batch=2), wanted, atol=1e-6)
    np.testing.assert_allclose(model.function(images), wanted, atol=1e-6)
    assert model(images[:0]).shape == (0, 5)


def test_the_most_probable_classes(model, images):
    logits = model(images).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    names, found = model.predict(images)
    assert names == [NAMES[row.argmax()] for row in logits]
    np.testing.assert_allclose(found, probabilities.max(-1), rtol=1e-5)
    lists, found = model.predict(images, top=3)
    assert [row[0] for row in lists] == names and found.shape == (5, 3) and (np.diff(found) <= 0).all()
    assert lists[1] == [NAMES[index] for index in np.argsort(-logits[1])[:3]]
    with pytest.raises(ValueError, match='top is 6; use 1 to 5'):
        model.predict(images, top=6)


def test_pictures_by_their_paths(model, images, tmp_path):
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f'{number}.png')
    paths = [tmp_path / f'{number}.png' for number in range(5)]
    np.testing.assert_array_equal(model.read(paths), images)
    assert model.predict(paths)[0] == model.predict(images)[0]
    assert model.predict(str(paths[3]))[0] == model.predict(images[3:4])[0]
    Image.fromarray(np.repeat(np.repeat(images[0], 3, 0), 5, 1)).save(tmp_path / 'wide.png')
    assert model.read([tmp_path / 'wide.png']).shape == (1, *SHAPE)
    with pytest.raises(ValueError, match=r'there is no picture .*6\.png'):
        model.predict(tmp_path / '6.png')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.astype(np.float32) / 255, r'float32\[5, 8, 8, 3\]; .* from 0 to 255, and the model normalises'),
        (lambda x: x[0], r'uint8\[8, 8, 3\]; this model takes uint8\[N, 8, 8, 3\]; for one image use images\[None\]'),
        (lambda x: x.transpose(0, 3, 1, 2), 'the channels come last'),
        (lambda x: x[:, :7], r'uint8\[5, 7, 8, 3\]; this model takes uint8\[N, 8, 8, 3\]$'),
    ],
)
def test_other_images_are_refused(model, images, change, message):
    with pytest.raises(ValueError, match=message):
        model(change(images))
