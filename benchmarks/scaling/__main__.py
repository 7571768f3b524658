"""The command line: compiles for fake devices, prints the tables, and writes them; see the package's docstring."""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import benchmarks.scaling
from benchmarks.scaling.collectives import Collective

BLOCK = re.compile(r'(<!-- scaling: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)
# {name: (pair, points, image shape, classes, batch, resident)}
STEPS = {
    'step, CIFAR-100, wrn_40_2-wrn_16_2': ('wrn_40_2-wrn_16_2', 50_000, (32, 32, 3), 100, 64, True),
    'step, ImageNet, resnet34-resnet18': ('resnet34-resnet18', 1_281_167, (224, 224, 3), 1000, 256, False),
}
POINTS = (50_000, 1_281_167)

Programs = Mapping[str, tuple[list[Collective], dict[str, int]]]


def compile_all(devices: int) -> Programs:
    """{program: (its collectives, its memory on one device)}, compiled for this many fake devices."""
    import jax

    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices)
    from benchmarks.scaling import collectives, programs
    from benchmarks.timed_run import black_data
    from kcd_jax.runtime import sharding

    mesh, compiled = sharding.make_mesh(), {}
    for name, (pair, num_points, image_shape, num_classes, batch, resident) in STEPS.items():
        dataset = black_data(num_points, image_shape, num_classes)
        compiled[name] = programs.training_step(pair, dataset, batch, mesh, resident=resident)
    for num_points in POINTS:
        compiled[f'condensation, {num_points:,} points'] = programs.condensation(num_points, mesh)
    return {name: (collectives.read(p.as_text()), programs.memory(p)) for name, p in compiled.items()}


def amount(size: float) -> str:
    """Bytes as text, e.g. '1.07 MiB'."""
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024 or unit == 'GiB':
            break
        size /= 1024
    return f'{size:,.3g} {unit}' if size < 1000 and unit != 'B' else f'{size:,.0f} {unit}'


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def collectives_table(programs: Programs) -> str:
    """The collectives of each program by purpose and kind."""
    rows = []
    for name, (found, _) in programs.items():
        parts: dict[tuple[str, str], list[int]] = {}
        for collective in found:
            purpose = collective.purpose if name.startswith('step') else 'values and visits'
            parts.setdefault((purpose, collective.kind), []).append(collective.bytes)
        rows += [[name, *part, f'{len(sizes)}', amount(sum(sizes))] for part, sizes in parts.items()]
    return _markdown(['program', 'for', 'collective', 'count', 'bytes'], rows)


def memory_table(programs: Programs) -> str:
    """The memory of each program on one device."""
    rows = [[name, *map(amount, memory.values())] for name, (_, memory) in programs.items()]
    return _markdown(['program', 'arguments', 'results', 'temporaries'], rows)


TABLES: dict[str, Callable[[Programs], str]] = {'collectives': collectives_table, 'memory': memory_table}


def fill(text: str, programs: Programs) -> str:
    """The document with the content of its `<!-- scaling: NAME -->` blocks replaced."""
    return BLOCK.sub(lambda block: f'{block.group(1)}{TABLES[block.group(2)](programs)}\n{block.group(3)}', text)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints, writes; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.scaling',
        description=benchmarks.scaling.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--devices', type=int, default=8, help='fake devices to compile for (default 8)')
    parser.add_argument('--write', metavar='FILE', help='also fill the tables of this document')
    options = parser.parse_args(argv)
    programs = compile_all(options.devices)
    for table in TABLES.values():
        print(table(programs), end='\n\n')
    if options.write:
        path = pathlib.Path(options.write)
        path.write_text(fill(path.read_text(encoding='utf-8'), programs), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
