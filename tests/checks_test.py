"""`kcd_jax.check_plugin` on files as users write them: good ones pass, each fault is one line."""

from __future__ import annotations

import pathlib

import pytest

import kcd_jax
from kcd_jax import data, methods, networks, policies

pytestmark = pytest.mark.fast_compile

PACKAGE = pathlib.Path(kcd_jax.__file__).parent


def checked(path):
    lines = []
    found = kcd_jax.check_plugin(path, say=lines.append)
    assert len(lines) == len(found) + 1 and not any('\n' in line for line in lines)
    return {one.check.partition(': ')[2]: one.error for one in found}, lines


def template(kind, folder, change=('', ''), name='of_a_user'):
    text = (PACKAGE / kind / '_template.py').read_text()
    assert change[0] in text
    text = text.replace(*change) if change[0] else text
    (folder / f'{name}.py').write_text(text.replace("'template'", "'template_of_a_user'"))
    return folder / f'{name}.py'


@pytest.mark.parametrize(('kind', 'least'), [('methods', 13), ('policies', 7), ('networks', 5), ('data', 4)])
def test_every_template_holds_all_checks_of_its_kind(kind, least, tmp_path):
    packages = {'methods': methods, 'policies': policies, 'networks': networks, 'data': data}
    before = list(packages[kind].__path__)
    found, lines = checked(template(kind, tmp_path))
    assert not any(found.values()), lines
    assert len(found) >= least and lines[-1] == f'{len(found)} of {len(found)} checks of of_a_user.py hold'
    assert packages[kind].__path__ == before and 'of_a_user' not in packages[kind].names()


FAULTS = [
    ('methods', ("needs=('embed',)", "needs=('logits',)"), 'reads nothing of the teacher that `needs` does not name'),
    (
        'policies',
        ('return [round(ratio * num_points)] * epochs', 'return [num_points] * epochs'),
        'sizes of the epochs',
    ),
    ('networks', ("tail=('fc/*',)", "tail=('conv1/*',)"), 'patterns of `tail`'),
    ('data', ('np.arange(120) % 3', 'np.arange(120) % 4'), 'can be built'),
    ('data', ('np.random.RandomState(0)', 'np.random.RandomState()'), 'same points in the same order'),
]


@pytest.mark.parametrize(('kind', 'change', 'check'), FAULTS)
def test_a_fault_is_found_and_named(kind, change, check, tmp_path):
    found, lines = checked(template(kind, tmp_path, change))
    (failed,) = [title for title, error in found.items() if error]
    assert check in failed and sum(line.startswith('FAILED') for line in lines) == 1


def test_what_is_no_file_of_the_package_is_refused(tmp_path):
    (tmp_path / 'empty.py').write_text('WIDTH = 3\n')
    with pytest.raises(ValueError, match=r'empty.py is none of the package: a method or policy has make'):
        kcd_jax.check_plugin(tmp_path / 'empty.py')
    (tmp_path / 'needy.py').write_text('def make(width):\n    return width\n')
    with pytest.raises(ValueError, match=r"make.* of .*needy.py raises TypeError: .*'width'; the arguments"):
        kcd_jax.check_plugin(tmp_path / 'needy.py')
    (tmp_path / 'broken.py').write_text('NAMES = {\n')
    with pytest.raises(ValueError, match=r'cannot be loaded from .*broken.py.*SyntaxError'):
        kcd_jax.check_plugin(tmp_path / 'broken.py')
    with pytest.raises(ValueError, match='is no Python file'):
        kcd_jax.check_plugin(tmp_path)
    with pytest.raises(ValueError, match="'kd' is the name of .*kd.py; give your file another name"):
        kcd_jax.check_plugin(template('methods', tmp_path, name='kd'))
