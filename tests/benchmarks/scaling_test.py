"""What crosses between eight devices, read from the compiled training step and condensation; docs/SCALING.md."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import collectives
from benchmarks.scaling.collectives import Collective

pytestmark = pytest.mark.fast_compile

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import dataclasses, json, jax, jax.numpy as jnp
jax.config.update('jax_num_cpu_devices', 8)
from benchmarks.scaling import collectives, programs
from benchmarks.timed_run import black_data
from kcd_jax import knowledge, networks
from kcd_jax.runtime import sharding
from kcd_jax.training import ledger, state
networks.__path__.append('tests/tiny')
mesh = sharding.make_mesh()
points = black_data(50_000, (8, 8, 3), 10)
rows = sharding.batch(mesh)
index, value = (jax.ShapeDtypeStruct((64,), dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32))
record = jax.jit(knowledge.record, donate_argnums=0, out_shardings=rows)
compiled = {
    'step': programs.training_step('tiny_teacher-tiny', points, 64, mesh),
    'recording': record.lower(programs.table_shapes(50_000, mesh), index, value).compile(),
    'condensation': programs.condensation(50_000, mesh),
}
found = {name: collectives.read(program.as_text()) for name, program in compiled.items()}
found = {name: [dataclasses.asdict(entry) for entry in entries] for name, entries in found.items()}
student = networks.get('tiny')(10).variable_shapes(points.image_shape)
print(json.dumps({'parameters': state.parameter_count(student), 'found': found}))
"""


@pytest.fixture(scope='module')
def found():
    """{program: its collectives}, and the parameters of the student, on eight fake devices."""
    process = subprocess.run([sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    return report['parameters'], {
        name: [Collective(**{**entry, 'shapes': tuple(entry['shapes'])}) for entry in entries]
        for name, entries in report['found'].items()
    }


def test_recording_moves_only_the_indices_and_values_of_the_batch(found):
    moved = found[1]['recording']
    assert {shape for collective in moved for shape in collective.shapes} <= {'s32[64,1]', 's32[64]', 'f32[64]'}
    # Four gathers of the indices and one of the values; the old values and visits of the batch come back.
    assert collectives.total(moved) == {'all-reduce': (2, 2 * 4 * 64), 'all-gather': (5, 5 * 4 * 64)}


def test_the_step_moves_gradients_statistics_and_the_batch(found):
    parameters, programs = found
    moved = programs['step']
    table = [c for c in moved if c.kind == 'all-gather']
    assert len(table) == 5 and sum(c.bytes for c in table) == 5 * 4 * 64
    assert {c.kind for c in moved} == {'all-gather', 'all-reduce'}
    size = sum(c.bytes for c in moved)
    # Every gradient once; beside it two sums a layer forward and backward, the metrics, and the batch's rows.
    assert 4 * parameters <= size <= 4 * parameters + 8 * 4 * 64 + 64 * len(moved) + 512
    assert max(c.bytes for c in moved) < 4 * 50_000 / 8, 'not even a part of the table moves'


def test_condensation_gathers_the_table_once_and_nothing_else(found):
    moved = found[1]['condensation']
    assert sorted(c.shapes for c in moved) == [('f32[50176]',), ('s32[50176]',)]
    assert collectives.total(moved) == {'all-gather': (2, 8 * 50_176)}


TEXT = """
  %all-reduce.5 = f32[16]{0} all-reduce(%x), channel_id=1, metadata={op_name="jit(f)/reduce_sum"}
  ROOT %merged = (f32[3,3]{1,0}, s32[], bf16[4]{0}) all-reduce(%a, %b, %c), channel_id=2
  %started = (u8[8]{0}, u8[64]{0}) all-gather-start(%y), dimensions={0}
  %done = u8[64]{0} all-gather-done(%started)
  %moved = pred[5]{0} collective-permute(%z), source_target_pairs={{0,1}}
  %fused = f32[16]{0} fusion(%all-reduce.5), kind=kLoop
"""


def test_the_text_of_a_program_is_read():
    assert collectives.read(TEXT) == [
        Collective('all-reduce', ('f32[16]',), 64, 'jit(f)/reduce_sum'),
        Collective('all-reduce', ('f32[3,3]', 's32[]', 'bf16[4]'), 48, ''),
        Collective('all-gather', ('u8[64]',), 64, ''),
        Collective('collective-permute', ('pred[5]',), 5, ''),
    ]


@pytest.mark.parametrize(
    ('collective', 'purpose'),
    [
        (Collective('all-reduce', ('f32[16]', 'f32[3,3,16,16]'), 9280, 'jit(f)/(conv:gather)'), 'gradients, metrics'),
        (Collective('all-gather', ('s32[64,1]',), 256, 'jit(f)/scatter-add'), 'value table'),
        (Collective('all-reduce', ('s32[64]',), 256, 'jit(f)/gather'), 'value table'),
        (Collective('all-reduce', ('f32[16]', 'f32[16]'), 128, 'jit(f)/bn/reduce_sum'), 'batch statistics'),
    ],
)
def test_the_purpose_of_a_collective(collective, purpose):
    assert collective.purpose == purpose


@pytest.mark.parametrize(
    ('size', 'text'), [(800, '800 B'), (1536, '1.5 KiB'), (45 << 20, '45 MiB'), (3 << 40, '3,072 GiB')]
)
def test_amounts(size, text):
    assert scaling.amount(size) == text


def test_the_tables_of_a_document_are_filled():
    moved = [Collective('all-reduce', ('f32[3,3]',), 36, ''), Collective('all-reduce', ('f32[3,4]',), 48, '')]
    programs = {'step, mine': (moved, {'argument_bytes': 2048, 'output_bytes': 0, 'temporary_bytes': 10})}
    text = scaling.fill('a\n<!-- scaling: collectives -->\nold\n<!-- end -->\nb', programs)
    assert text.startswith('a\n<!--') and text.endswith('<!-- end -->\nb') and 'old' not in text
    assert '| step, mine | gradients, metrics | all-reduce | 2 | 84 B |' in text
    assert '| step, mine | 2 KiB | 0 B | 10 B |' in scaling.memory_table(programs)


def test_the_document_has_every_table():
    names = [name for _, name, _ in scaling.BLOCK.findall((ROOT / 'docs' / 'SCALING.md').read_text())]
    assert sorted(names) == sorted(scaling.TABLES)
