#!/usr/bin/env bash
# Runs the tests on a bare machine with Python 3.11 or newer: creates .venv, installs, starts pytest.
#
#   ./launch/test.sh                      everything
#   ./launch/test.sh -m 'not slow'        the quick tier
#   ./launch/test.sh tests/training/optim_test.py
#   ./launch/test.sh -n 0 --pdb tests/training/optim_test.py
#
# All arguments go to pytest, which runs in the repository's folder with one process per core, at most four; all tests of
# a file run in the same process, files with slow tests first (tests/conftest.py).
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

install_extras test
exec "$VENV_PYTHON" -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
