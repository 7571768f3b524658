"""Injects every fault, measures what was lost and how long recovery took, and writes the table.

    python tests/faults/run.py                       # everything that has no result yet
    python tests/faults/run.py kill_anywhere --fresh # one of them, again
    python tests/faults/run.py --table               # only update the table in docs/RELIABILITY.md from the results
    python tests/faults/run.py --check               # exit code 1 when that table is stale

Every injection is written to results/faults/<fault>.json at once and not repeated: the script may be interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / 'results' / 'faults'
PAGE = ROOT / 'docs' / 'RELIABILITY.md'
BEGIN, END = '<!-- table of results/faults -->\n', '<!-- end -->'
COLUMNS = '| fault | injected | what the program did | lost | recovery, s |\n|---|---|---|---|---|\n'


def faults() -> dict[str, tuple]:
    """{name: (title, function, how often)} of all modules, in the table's order."""
    sys.path.insert(0, str(ROOT))
    import damage
    import disk
    import kills
    import processes
    import refusals
    import stops

    modules = (kills, processes, stops, damage, disk, refusals)
    return {name: entry for module in modules for name, entry in module.FAULTS.items()}


def inject(name: str, entry: tuple, bench, seed: int, target: pathlib.Path) -> bool:
    """Injects one fault as often as its entry says, less what `target` already holds; True if nothing was lost."""
    from kcd_jax.runtime import environment, files

    title, function, times = entry
    injections = json.loads(target.read_text())['injections'] if target.exists() else []
    for number in range(len(injections), times):
        began = time.monotonic()
        injections.append(dataclasses.asdict(function(bench, random.Random(f'{seed} {name} {number}'))))
        print(f'{name} {number + 1}/{times}, {time.monotonic() - began:.0f} s: {injections[-1]}', flush=True)
        result = {
            'fault': title,
            'injections': injections,
            'seed': seed,
            'command': f'python tests/faults/run.py {name}',
            'run': shlex.join(bench.arguments('WORKDIR')),
            'cores': len(os.sched_getaffinity(0)),
            **environment.describe(),
        }
        files.write_text(target, json.dumps(result, indent=1) + '\n')
    return not any(injection['lost'] for injection in injections)


def row(result: dict) -> str:
    """A line of the table."""
    injections = result['injections']
    lost = sorted({name for injection in injections for name in injection['lost']})
    times = sorted(injection['recovery'] for injection in injections if injection['recovery'] is not None)
    recovery = '-' if not times else f'{statistics.median(times):.1f} (at most {times[-1]:.1f})'
    codes = sorted({injection['code'] for injection in injections if injection['code'] is not None})
    did = [f'ended by signal {-code}' if code < 0 else f'exit code {code}' for code in codes]
    says = next((injection['says'] for injection in injections if injection['says']), '')
    if says:
        did.append(f'"{says.replace("|", "/")}"')
    cells = result['fault'], str(len(injections)), ', '.join(did) or 'went on', ', '.join(lost) or 'nothing', recovery
    return f'| {" | ".join(cells)} |\n'


def table(results: pathlib.Path = RESULTS) -> str:
    """The table of all results, in the order in which `faults` names them."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob('*.json'))}
    order = {name: place for place, name in enumerate(faults())}
    rows = [row(found[name]) for name in sorted(found, key=lambda name: order.get(name, len(order)))]
    everything = [injection for result in found.values() for injection in result['injections']]
    kills = sum(len(result['injections']) for result in found.values() if 'SIGKILL' in result['fault'])
    harmed = sum(bool(injection['lost']) for injection in everything)
    total = f'{len(everything)} injections of {len(found)} kinds, {kills} of them SIGKILL; {harmed} lost anything.'
    return f'{COLUMNS}{"".join(rows)}\n{total}\n'


def page(text: str, content: str) -> str:
    """The page with the table between its markers replaced."""
    head, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        raise SystemExit(f'{PAGE} has no markers {BEGIN.strip()} and {END}')
    return head + BEGIN + content + rest[rest.index(END) :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('faults', nargs='*', help='names; none: all of them')
    parser.add_argument('--fresh', action='store_true', help='do again what has a result')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--scratch', default=os.path.join(tempfile.gettempdir(), 'kcd_jax_faults'))
    parser.add_argument('--table', action='store_true', help='only write the table')
    parser.add_argument('--check', action='store_true', help='only say whether the table is stale')
    options = parser.parse_args()
    known = faults()
    unknown = sorted({*options.faults} - {*known})
    if unknown:
        parser.error(f'no fault {", ".join(unknown)}; known: {", ".join(known)}')

    if options.check:
        fresh = PAGE.read_text() == page(PAGE.read_text(), table())
        stale = 'the table is stale: python tests/faults/run.py --table'
        print('the table is that of results/faults' if fresh else stale)
        return int(not fresh)
    failed = []
    if not options.table:
        import harness

        bench = harness.Bench(pathlib.Path(options.scratch).absolute())
        bench.scratch.mkdir(parents=True, exist_ok=True)
        for left in bench.scratch.glob('**/run_*'):  # by a script that was killed
            shutil.rmtree(left, ignore_errors=True)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # takes the running program along
        bench.prepare()
        for name in options.faults or known:
            target = RESULTS / f'{name}.json'
            if options.fresh:
                target.unlink(missing_ok=True)
            try:
                whole = inject(name, known[name], bench, options.seed, target)
            except Exception:  # the other faults are still worth knowing
                traceback.print_exc()
                whole = False
            failed += [] if whole else [name]
    PAGE.write_text(page(PAGE.read_text(), table()))
    print(table())
    print(f'failed: {", ".join(failed) or "none"}')
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
