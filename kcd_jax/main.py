"""`python -m kcd_jax.main --config=configs/cifar100_kd.py`: flags, then experiment.run; nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

# Read before the first JAX import: TensorFlow and the compiler would else greet the user with their own lines.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_NEEDS_PREPARE, EXIT_ALONE, EXIT_PREEMPTED = 2, 3, 10, 69, 75
EXIT_DISK, EXIT_INTERRUPTED = 74, 130
INTERRUPTED = (
    'Ctrl-C: nothing was saved now; the same command goes on from the last checkpoint, or starts again without one'
)


def define_flags(argv: list[str] | None = None) -> None:
    """`argv`: where `--config.KEY=VALUE` is looked for; default what the interpreter was started with."""
    from absl import flags
    from ml_collections import config_flags

    about = 'Experiment: FILE[:words], e.g. configs/cifar100_kd.py:method=crd.'
    config_flags.DEFINE_config_file('config', None, about, sys_argv=argv)
    flags.DEFINE_string('workdir', None, 'Folder of the runs; default runs/<config file>-<hash of the config>.')
    flags.DEFINE_string('results', None, 'Also copy the finished runs there, one JSON each.')
    flags.DEFINE_bool('check', False, 'Check everything that can be known before the first step, print it, and stop.')
    flags.DEFINE_bool(
        'needs_prepare', False, 'Exit 10 when the data needs TensorFlow to be prepared; for launch/run.sh.'
    )
    flags.DEFINE_integer('devices', 0, 'Host devices of this process on a CPU; 0: one a core.')
    flags.DEFINE_string(
        'coordinator', '', 'Several processes: HOST:PORT of the first; auto: ask SLURM, Open MPI or the TPU.'
    )
    flags.DEFINE_integer('processes', None, 'With --coordinator=HOST:PORT: how many processes there are.')
    flags.DEFINE_integer('process', None, 'With --coordinator=HOST:PORT: the number of this one, from 0.')


def prepare_jax(devices: int, deterministic: bool) -> None:
    """Settings that must stand before the first JAX call."""
    from kcd_jax.runtime import backend

    # Host devices wait for each other; on a machine that is busy with other work one may be late by more than the
    # usual 40 seconds, after which XLA ends the process. A user's own flags come last and win.
    ours = ['--xla_cpu_collective_call_terminate_timeout_seconds=600']
    if deterministic:
        ours.append('--xla_gpu_deterministic_ops=true')
    backend.add_xla_flags(ours)
    keep_memory()
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    # As many host devices as cores, rounded down to a power of two: the rows of the tables divide by it.
    jax.config.update('jax_num_cpu_devices', devices or 1 << (min(cores, 512).bit_length() - 1))
    cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.expanduser('~/.cache/kcd_jax/xla')
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def keep_memory() -> None:
    """Lets glibc keep the memory that a step frees, instead of mapping it afresh at every step.

    On the CPU a step whose buffers exceed 32 MB otherwise spends much of its time in page faults. Elsewhere nothing is
    done. The numbers are M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-8, 1)):
        mallopt(option, value)


_REUSE = '--config.policy.reuse='


def joined(argv: list[str]) -> list[str]:
    """The arguments as the flags' parser takes them.

    `--config FILE` becomes `--config=FILE`, so that the file is known before the flags are parsed, and
    `--config.policy.reuse=RUN` the word `policy=reuse` of that file and `--config.policy.run=RUN`.
    """
    result: list[str] = []
    for arg in argv:
        if result and result[-1] in ('--config', '-config'):
            result[-1] = f'--config={arg}'
        else:
            result.append(arg)
    if any(arg.startswith(_REUSE) for arg in result):
        result = [
            f'{arg}{"," if ":" in arg else ":"}policy=reuse' if arg.startswith('--config=') else arg for arg in result
        ]
        result = [arg.replace(_REUSE, '--config.policy.run=', 1) for arg in result]
    return result


def read_config(argv: list[str]) -> str:
    """The value of --config, found to be loadable, and the keys of --config.KEY=VALUE, found to exist.

    The flags' own parser does both again, but says what is wrong with a traceback.
    """
    from ml_collections import ConfigDict

    from kcd_jax import plugins
    from kcd_jax.experiments import experiment

    values = [arg.removeprefix('--config=') for arg in argv if arg.startswith('--config=')]
    if not values:
        raise ValueError('no --config; try --config=configs/digits_kd.py')
    config = experiment.load_config(values[-1])
    for arg in argv:
        if arg.startswith('--config.'):
            key = arg.removeprefix('--config.').partition('=')[0]
            node = config
            for part in key.split('.'):
                if not isinstance(node, ConfigDict) or part not in node:
                    known = sorted(node) if isinstance(node, ConfigDict) else []
                    raise ValueError(plugins.unknown('config key', key, known))
                node = node[part]
    return values[-1]


def run(argv: list[str]) -> int:
    """The whole program; returns the exit code. Errors of the user are one line on stderr."""
    with contextlib.suppress(ValueError):  # only the main thread may listen
        signal.signal(signal.SIGTERM, stop)
    try:
        return run_flags(argv)
    except KeyboardInterrupt:  # while the modules are imported
        print(INTERRUPTED, file=sys.stderr)
        return EXIT_INTERRUPTED


def stop(number: int, frame: Any) -> None:
    """Ends the program on SIGTERM where there is nothing to save: before, between and after the trainings."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    os.write(2, b'SIGTERM: nothing was to be saved; the same command goes on\n')
    raise SystemExit(EXIT_PREEMPTED)


def run_flags(argv: list[str]) -> int:
    """`run`, without the signals."""
    from absl import flags

    argv = joined(argv)
    define_flags(argv)
    try:
        path = read_config(argv) if not {'--help', '--helpfull', '-h'} & set(argv) else ''
        flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, OSError) as error:
        return complain(error)
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir

    import jax

    from kcd_jax import data
    from kcd_jax.experiments import experiment
    from kcd_jax.runtime import distributed
    from kcd_jax.training import loop

    try:
        if flags.FLAGS.needs_prepare:
            return EXIT_NEEDS_PREPARE if data.needs_tensorflow(config.data.name, config.data.dir or None) else 0
        prepare_jax(flags.FLAGS.devices, config.deterministic)
        distributed.initialize(flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process)
        workdir = workdir or experiment.default_workdir(path, config)
        experiment.run(config, workdir, only_check=flags.FLAGS.check)
        if flags.FLAGS.results and not flags.FLAGS.check:
            experiment.publish(workdir, flags.FLAGS.results)
    except loop.Preempted as notice:
        return distributed.leave(notice.exit_code, str(notice))
    except loop.Diverged as error:
        return distributed.leave(EXIT_DIVERGED, as_line(error))
    except distributed.Agreed as error:
        return distributed.leave(EXIT_DISK if error.on_disk else EXIT_BAD_INPUT, as_line(error))
    except (ValueError, OSError) as error:
        if os.environ.get('KCD_JAX_TRACEBACK'):
            raise
        code = EXIT_DISK if isinstance(error, OSError) else EXIT_BAD_INPUT
        return distributed.leave_alone(code, as_line(error))
    except jax.errors.JaxRuntimeError as error:
        if not distributed.is_connected():
            raise
        return distributed.leave_alone(EXIT_ALONE, f'error: {distributed.lost(error)}')
    except KeyboardInterrupt:
        return distributed.leave_alone(EXIT_INTERRUPTED, INTERRUPTED)
    return distributed.leave(0)


def as_line(error: Exception) -> str:
    """What was found and what to do, on one line."""
    return f'error: {" ".join(str(error).split()) or type(error).__name__}'


def complain(error: Exception) -> int:
    """Says a mistake on the command line."""
    print(as_line(error), file=sys.stderr)
    return EXIT_BAD_INPUT


if __name__ == '__main__':
    sys.exit(run(sys.argv))
