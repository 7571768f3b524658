"""Compiles for fake devices, prints the tables, and writes them where they belong; see the package's docstring."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from absl import flags

ROOT = pathlib.Path(__file__).parent.parent.parent
DEVICES = flags.DEFINE_integer('devices', 8, 'Fake devices to compile for.')
JSON = flags.DEFINE_string('json', '', 'Also write what was read to this file, as results/scaling.json.')
WRITE = flags.DEFINE_string('write', '', 'Also fill the tables of this document, as docs/SCALING.md.')
SHOW = flags.DEFINE_string('show', '', 'Compile nothing: use what an earlier --json wrote.')

# name: (words of configs/cifar100_kd.py, points, image, classes, batch, resident)
STEPS = {
    'step, CIFAR-100, wrn_40_2-wrn_16_2': ('wrn_40_2-wrn_16_2', 50_000, (32, 32, 3), 100, 64, True),
    'step, ImageNet, resnet34-resnet18': ('resnet34-resnet18', 1_281_167, (224, 224, 3), 1000, 256, False),
}


def compile_all(devices: int) -> dict:
    """Everything that the tables are made from."""
    import jax

    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices)
    from benchmarks.scaling import collectives, programs
    from kcd_jax.contracts import table_rows
    from kcd_jax.experiments import experiment
    from kcd_jax.runtime import environment, sharding

    def listed(compiled: jax.stages.Compiled) -> list[dict]:
        return [dataclasses.asdict(entry) for entry in collectives.read(compiled.as_text())]

    mesh = sharding.make_mesh()
    found = []
    for name, (words, num_points, image_shape, num_classes, batch, resident) in STEPS.items():
        config = experiment.load_config(f'{ROOT}/configs/cifar100_kd.py:{words},method=kd,policy=kcd,batch={batch}')
        dataset = programs.points_of(num_points, image_shape, num_classes)
        compiled = programs.training_step(config, dataset, mesh, resident=resident)
        found.append({'name': name, 'num_points': num_points, 'batch': batch, 'collectives': listed(compiled)})
    for num_points in (50_000, 1_281_167):
        compiled = programs.condensation(num_points, mesh)
        name = f'condensation, {num_points:,} points'
        found.append({'name': name, 'num_points': num_points, 'collectives': listed(compiled)})
    peak = programs.bytes_of(compiled) / table_rows(num_points)
    return {**environment.describe(), 'devices': devices, 'programs': found, 'peak_bytes_a_point': peak}


def main() -> None:
    try:
        flags.FLAGS(sys.argv)
    except flags.Error as error:
        sys.exit(f'error: {error}')
    from benchmarks.scaling import report
    from kcd_jax.runtime import files

    found = files.read_json(pathlib.Path(SHOW.value)) if SHOW.value else compile_all(DEVICES.value)
    if found is None:
        sys.exit(f'error: there is no JSON in {SHOW.value}')
    for table in report.TABLES.values():
        print(table(found), end='\n\n')
    if JSON.value:
        files.write_text(pathlib.Path(JSON.value), files.dumps(found, indent=1) + '\n')
    if WRITE.value:
        path = pathlib.Path(WRITE.value)
        files.write_text(path, report.fill(path.read_text(encoding='utf-8'), found))


if __name__ == '__main__':
    main()
