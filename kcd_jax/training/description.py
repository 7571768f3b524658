"""A run as JSON values, and the run that such values describe.

{'student': 'resnet8', 'teacher': None | {'network', 'checkpoint', 'identity'} | {'run': of the run that trains it},
 'student_code', 'method_code', 'policy_code', 'teacher.code': 'ORIGIN:DIGEST' of their files (`code.of_file`), or
 'VERSIONS:DIGEST' of the programs of networks that were built in Python; of a student also 'student_start',
 'data': {'name', 'dir', 'stream', 'validation', 'seed', 'num_points', 'identity', 'digests'},
 'method': {'name', **keywords}, 'policy': {'name', **keywords}, 'weights': {...}, 'recipe': {...}, 'seed': 0}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from kcd_jax import data, methods, networks, policies
from kcd_jax.contracts import Network, Weights
from kcd_jax.runtime import files, sharding
from kcd_jax.teachers.sources import teacher_of
from kcd_jax.teachers.teacher import Teacher
from kcd_jax.training import code
from kcd_jax.training.recipe import Recipe
from kcd_jax.training.run import Run


def describe(run: Run) -> dict[str, Any]:
    """The run, without its name, which changes no number."""
    method, policy, dataset = run.method, run.policy, run.data
    described = {
        'student': run.student if isinstance(run.student, str) else run.student.name,
        'teacher': _describe_teacher(run),
        'data': {**dataset.source, 'identity': dataset.identity, 'digests': dataset.digests},
        'method': {'name': method.name, **method.keywords},
        'policy': {'name': policy.name, **policy.keywords},
        'weights': dataclasses.asdict(run.weights),
        'recipe': run.recipe.to_dict(),
        'seed': run.seed,
    }
    if run.own_network is not None:
        described['student_code'] = code.of_student(run.own_network, dataset.image_shape, run.recipe.batch)
        described['student_start'] = code.of_start(run.own_network, dataset.image_shape)
    else:
        described['student_code'] = code.of_file(networks.file_of(run.student))
    for kind, package, part in (('method', methods, method), ('policy', policies, policy)):
        if part.name in package.names():  # not one that was built in Python
            described[f'{kind}_code'] = code.of_file(package.get(part.name))
    return json.loads(files.dumps(described))  # tuples become lists, as they are when it is read back


def _describe_teacher(run: Run) -> dict[str, Any] | None:
    teacher = run.teacher
    if teacher is None or not run.uses_teacher:
        return None
    if isinstance(teacher, Run):
        return {'run': describe(teacher)}
    described = {'network': teacher.network.name, 'checkpoint': teacher.source, 'identity': teacher.identity}
    if teacher.card.get('source') and not teacher.card.get('normalization_assumed'):
        described['normalization'] = teacher.card['normalization']  # a PyTorch file rarely says it
    if found := code.of_networks(teacher, run.data.image_shape):
        described['code'] = found
    if teacher.host is not None:
        classes = teacher.card.get('class_names') or teacher.card['num_classes']
        described |= {'kind': teacher.host.kind, 'classes': classes}
    return described


def build(description: Mapping[str, Any], teacher: Teacher | Run | None = None, student: Network | None = None) -> Run:
    """The run of a description; arguments and errors as `Run.from_description`."""
    name = description['student']
    if student is None and name not in networks.names():
        raise ValueError(
            f'the student {name} of this run is not an installed network; give the one that was built in '
            'Python (from_description(..., student=...)), or set KCD_JAX_PLUGINS to the folder of its file'
        )
    if student is not None and student.name != name:
        raise ValueError(f'the student of this run is {name}, not {student.name}; give that one')
    for kind in ('method', 'policy'):
        if not description[kind]['name']:
            raise ValueError(f'the {kind} of this run was built in Python and has no name; build the run in Python')
    dataset = _load(description['data'], tuple(description['recipe']['augment']['area']))
    if changes := dataset.changes(description['data'].get('digests', {})):
        raise ValueError(f'the data {dataset.name} changed since the run was described: {", ".join(changes)} differ')
    described = description['teacher']
    if teacher is None and described is not None:
        if 'run' in described:
            teacher = build(described['run'])
        else:
            teacher = _restored(described, dataset, description['recipe']['dtype'])
    return Run(
        student=student or name,
        data=dataset,
        teacher=teacher,
        method=_made(methods, description['method']),
        policy=_made(policies, description['policy']),
        weights=Weights(**description['weights']),
        recipe=Recipe(**description['recipe']),
        seed=description['seed'],
    )


def _load(source: Mapping[str, Any], area: tuple[float, ...]) -> data.Dataset:
    """The data set that `describe` described."""
    if not source.get('name'):
        raise ValueError('the data of this run was built in Python and has no name; build the run in Python')
    loading = data.Loading(source['stream'], sharding.device_memory(), area)
    parts = {key: source[key] for key in ('validation', 'seed', 'num_points')}
    return data.load(source['name'], source['dir'] or None, loading=loading, **parts)


def _restored(described: Mapping[str, Any], dataset: data.Dataset, dtype: str) -> Teacher:
    """The teacher of a description, compared with what it was."""
    path = described['checkpoint']
    if not path:
        raise ValueError('the teacher of this run was built in Python; give it: from_description(..., teacher=...)')
    if described.get('kind') == 'outputs':
        teacher = Teacher.from_outputs(path, classes=described['classes'], name=described['network'])
    else:
        pixels = described.get('normalization')
        teacher = teacher_of(
            path,
            described['network'],
            num_classes=dataset.num_classes or None,
            image_shape=dataset.image_shape,
            normalization=pixels and (tuple(pixels['mean']), tuple(pixels['std'])),
            dtype=dtype,
        )
    if teacher.identity != described['identity']:
        raise ValueError(f'the teacher {path} changed since the run was described; give its former file')
    return teacher


def _made(package: Any, section: Mapping[str, Any]) -> Any:
    keywords = {key: value for key, value in section.items() if key != 'name'}
    return package.get(section['name']).make(**keywords)
