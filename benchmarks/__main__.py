"""Flags, then the rows; see the package's docstring."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

from absl import flags

import benchmarks as bench
from kcd_jax import main as program

ROWS = flags.DEFINE_list('rows', [], 'Groups of rows; empty: all of them.')
QUICK = flags.DEFINE_bool('quick', False, 'Smaller sizes and fewer repeats: orientation only.')
SHOW = flags.DEFINE_string('show', None, 'Print the figures of such a file as Markdown, and measure nothing.')
JSON = flags.DEFINE_string('json', None, 'Also write the figures to this file.')


def main() -> None:
    try:
        flags.FLAGS(sys.argv)
    except flags.Error as error:
        sys.exit(f'error: {error}')
    if SHOW.value:
        try:
            print(bench.markdown(json.loads(pathlib.Path(SHOW.value).read_text(encoding='utf-8'))), end='')
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f'error: {SHOW.value} is no file of figures ({error}); --json writes one')
        return
    program.prepare_jax(0, False)
    import jax

    from benchmarks import rows
    from kcd_jax import plugins
    from kcd_jax.runtime import environment, files

    wanted = ROWS.value or list(rows.GROUPS)
    for name in wanted:
        if name not in rows.GROUPS:
            sys.exit(f'error: {plugins.unknown("group of rows", name, list(rows.GROUPS))}')
    print(f'{jax.device_count()} x {jax.devices()[0].device_kind}')
    print(bench.HEADER)
    found = []
    with tempfile.TemporaryDirectory(prefix='kcd_jax_bench_') as scratch:
        for name in wanted:
            try:
                for row in rows.GROUPS[name](QUICK.value, pathlib.Path(scratch)):
                    print(row.line(), flush=True)
                    found.append({'name': row.name, 'measured': row.measured, 'target': row.target, 'met': row.met,
                                  'details': row.details})  # fmt: skip
            except ValueError as error:
                sys.exit(f'error: {error}')
    if JSON.value:
        content = {'quick': QUICK.value, **environment.describe(), 'rows': found}
        files.write_text(pathlib.Path(JSON.value), files.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
    main()
