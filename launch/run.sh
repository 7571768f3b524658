#!/usr/bin/env bash
# Runs kcd_jax on a bare machine with Python 3.11 or newer: creates .venv, installs, starts the run.
#
#   ./launch/run.sh --config=configs/digits_long.py
#   KCD_JAX_EXTRAS=gpu ./launch/run.sh --config=configs/cifar100_kd.py --workdir=runs/first
#
# All arguments go to `python -m kcd_jax.main`, which runs in the repository's folder: relative paths start there.
# setup.sh lists the environment variables.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

install_extras ''
if ! up_to_date "prepare${KCD_JAX_EXTRAS:+,$KCD_JAX_EXTRAS}"; then
  # Exit code 10: the config's TFDS data is not prepared yet, which takes TensorFlow. A wrong command line also fails
  # here, silently; the run itself then reports the error.
  code=0
  "$VENV_PYTHON" -m kcd_jax.main --needs_prepare "$@" >/dev/null 2>&1 </dev/null || code=$?
  if [ "$code" -eq 10 ]; then
    install_extras prepare
  fi
fi
exec "$VENV_PYTHON" -m kcd_jax.main "$@"
