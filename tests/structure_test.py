"""Holds the package to its design: which part may import which, what touches the disk, where meshes live."""

from __future__ import annotations

import ast
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'kcd_jax'

# From the bottom up: a part imports its own layer and those below.
LAYERS = (
    {'contracts', 'trees', 'plugins', 'settings', 'paths'},
    {'knowledge', 'objective'},
    {'methods', 'policies', 'networks'},
    {'runtime'},
    {'data', 'teachers'},
    {'training', 'export'},
    {'experiments', 'checks'},
    {'commands', 'main', '__main__'},
)
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
# Reads what runs left and imports nothing of how they ran; experiments and commands may call it.
READER = 'report'
# The one import that points upwards, inside the function of that name.
UPWARDS = ('training/run.py', 'experiments', 'from_config')

WITHOUT_CONFIGS = ('training', 'runtime', 'data', 'teachers')
# Everything that runs in a step of plain distillation, and the file that dispatches it.
STEP = {
    'contracts.py',
    'trees.py',
    'objective.py',
    'knowledge/value.py',
    'methods/kd.py',
    'networks/primitives.py',
    'networks/layers.py',
    'networks/resnet.py',
    'training/augment.py',
    'training/optim.py',
    'training/step.py',
    'training/trainer.py',
}

ON_DISK = {'data', 'training', 'export', 'runtime', 'teachers', 'experiments', 'commands', READER}
ON_DISK_FILES = {'policies/reuse.py'}
DISK_MODULES = {'shutil', 'tempfile', 'fcntl', 'safetensors', 'tarfile', 'pickle', 'sqlite3'}
DISK_METHODS = {
    'open', 'mkdir', 'makedirs', 'unlink', 'rename', 'rmtree', 'read_text', 'read_bytes', 'write_text', 'write_bytes',
    'load', 'save', 'savez', 'savez_compressed', 'memmap', 'fromfile', 'tofile', 'load_file', 'save_file',
}  # fmt: skip
CALLABLE = {
    *ON_DISK,
    'keeper',
    'plugins',
}  # data.load, keeper.save: the parts that may do it, doing it for their callers
MESHES = {'Mesh', 'NamedSharding', 'PartitionSpec', 'make_mesh', 'AxisType', 'PositionalSharding', 'GSPMDSharding'}


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: pathlib.Path) -> str:
    """'methods' of methods/crd.py, 'train' of train.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def files() -> list[pathlib.Path]:
    """Every module but the package's own __init__, which belongs to no layer, and programs (__main__)."""
    found = [path for path in sorted(PACKAGE.rglob('*.py')) if path.name != '__main__.py']
    return [path for path in found if path != PACKAGE / '__init__.py']


def imports(path: pathlib.Path) -> set[str]:
    """The dotted names that a file imports, those inside functions too."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{name_of(path)}: relative imports are not used'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def own_imports(path: pathlib.Path) -> set[tuple[str, ...]]:
    """The package's own modules that a file imports: ('knowledge', 'value', ...)."""
    return {tuple(name.split('.')[1:]) for name in imports(path) if name.startswith('kcd_jax.')}


def test_every_part_has_a_place():
    parts = {part_of(path) for path in files()}
    assert parts <= {*LEVEL, READER}, f'give {sorted(parts - {*LEVEL, READER})} a place in the layers'


def test_imports_point_downwards():
    wrong = []
    for path in files():
        part = part_of(path)
        for target in {target[0] for target in own_imports(path)} - {part}:
            if part == READER:
                allowed = LEVEL.get(target, 99) == 0 or target == 'runtime'
            elif target == READER:
                allowed = LEVEL[part] >= LEVEL['experiments']
            else:
                allowed = LEVEL.get(target, 99) <= LEVEL[part] or (name_of(path), target) == UPWARDS[:2]
            if not allowed:
                wrong.append(f'{name_of(path)} -> {target}')
    assert not wrong


def test_only_from_config_imports_upwards_and_only_when_it_is_called():
    file, part, function = UPWARDS
    found = []
    for node in ast.walk(tree_of(PACKAGE / file)):
        if isinstance(node, ast.FunctionDef):
            inner = [i for i in ast.walk(node) if isinstance(i, ast.ImportFrom) and f'kcd_jax.{part}' in i.module]
            found += [node.name] * len(inner)
    assert set(found) == {function}
    at_import = [n for n in tree_of(PACKAGE / file).body if isinstance(n, ast.ImportFrom)]
    assert not [n.module for n in at_import if n.module.startswith(f'kcd_jax.{part}')]


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that code names; what stands in docstrings, comments and messages is not code."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name('jax'), attr='config'):
                continue
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.alias(name=name, asname=other):
                yield from ((part, node.lineno) for part in (*name.split('.'), other) if part)


def test_nothing_below_the_experiments_knows_a_config():
    wrong = []
    for path in files():
        if part_of(path) in WITHOUT_CONFIGS:
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.FunctionDef) and (name_of(path), node.name) == (UPWARDS[0], UPWARDS[2]):
                    node.body = []
            found = {line for name, line in identifiers(tree_of(path)) if name in ('config', 'ConfigDict', 'cfg')}
            wrong += [f'{name_of(path)}:{line}' for line in sorted(found)]
    tree_of.cache_clear()  # its trees have lost a function
    assert not wrong


def test_a_training_step_is_at_most_a_dozen_files(monkeypatch):
    """The files whose functions run while a step of KD is traced."""
    from kcd_jax import data
    from kcd_jax.training import ledger, step
    from kcd_jax.training.run import Run

    ran: set[str] = set()

    def watch(frame, event, argument):
        del event, argument
        if frame.f_code.co_filename.startswith(f'{PACKAGE}/'):
            ran.add(name_of(pathlib.Path(frame.f_code.co_filename)))

    original = step.train_step

    def watched(*args):
        sys.setprofile(watch)
        try:
            return original(*args)
        finally:
            sys.setprofile(None)

    digits = data.load('digits')
    run = Run('resnet8x0_25', digits, teacher=Run('resnet8', digits))
    monkeypatch.setattr(step, 'train_step', watched)
    spec = run.step_spec()
    monkeypatch.setattr(Run, 'step_spec', lambda self: dataclasses.replace(spec, constrain=lambda tree: tree))
    ledger.trace(run, run.phases[0])
    assert ran == STEP - {'training/trainer.py'} and len(STEP) <= 12
    assert all((PACKAGE / name).is_file() for name in STEP)
    # What step.py imports is among them; `knowledge` offers the names of its modules.
    named = {'/'.join(target) for target in own_imports(PACKAGE / 'training/step.py')}
    allowed = {name.removesuffix('.py') for name in STEP} | {'knowledge'}
    assert not [n for n in named if not any(n == a or n.startswith(f'{a}/') for a in allowed)]


def test_no_method_imports_another():
    wrong = []
    for path in (PACKAGE / 'methods').glob('*.py'):
        others = {t[1] for t in own_imports(path) if t[0] == 'methods' and len(t) > 1 and not t[1].startswith('_')}
        methods = {other for other in others if (PACKAGE / 'methods' / f'{other}.py').exists()} - {path.stem}
        if path.name != '__init__.py':
            wrong += [f'{path.name} -> {other}' for other in methods]
    assert not wrong, 'what methods share stands in a module with a leading underscore'


def disk_calls(path: pathlib.Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == 'open':
            yield 'open'
        if isinstance(node.func, ast.Attribute) and node.func.attr in DISK_METHODS:
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id in CALLABLE):
                yield ast.unparse(node.func)


def test_only_some_touch_the_disk():
    wrong = []
    for path in files():
        if part_of(path) in ON_DISK or name_of(path) in ON_DISK_FILES:
            continue
        wrong += [f'{name_of(path)}: {call}' for call in disk_calls(path)]
        wrong += [f'{name_of(path)}: {m}' for m in {name.split('.')[0] for name in imports(path)} & DISK_MODULES]
    assert not wrong


def test_meshes_and_partition_specs_live_in_sharding():
    wrong = []
    for path in files():
        tree, hints = tree_of(path), set()
        for node in ast.walk(tree):
            for hint in (getattr(node, 'annotation', None), getattr(node, 'returns', None)):
                hints |= {id(inner) for inner in ast.walk(hint)} if isinstance(hint, ast.AST) else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in MESHES and id(node) not in hints:
                wrong.append(f'{name_of(path)}: {node.id}')
            if isinstance(node, ast.Attribute) and node.attr in MESHES and ast.unparse(node.value) != 'sharding':
                wrong.append(f'{name_of(path)}: {ast.unparse(node)}')
    assert not [line for line in wrong if not line.startswith('runtime/sharding.py')]


def test_no_module_is_named_like_one_of_pythons():
    assert not {path.stem for path in PACKAGE.glob('*.py')} & set(sys.stdlib_module_names) - {'__init__', '__main__'}


def test_files_stay_readable():
    large = [name_of(path) for path in files() if path.stat().st_size > 20_000]
    assert not large, 'over 20 kB: split them'
    mute = [name_of(path) for path in files() if path.stat().st_size and not ast.get_docstring(tree_of(path))]
    assert not mute, 'without a docstring'


def test_the_rules_notice(tmp_path):
    """The checks above are not blind: each finds its own offence."""
    path = tmp_path / 'offender.py'
    path.write_text('import numpy as np\nfrom kcd_jax.train import train\nnp.load("x")\nopen("y")\nkeeper.save(1)\n')
    assert own_imports(path) == {('train', 'train')}
    assert list(disk_calls(path)) == ['np.load', 'open']
    tree = ast.parse('def f(config, x): return x.config, jax.config.y, "config"  # config\n')
    assert [name for name, _ in identifiers(tree)].count('config') == 2
