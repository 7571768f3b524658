#!/usr/bin/env bash
# Runs the tests on a bare machine with Python 3.11 or newer: makes .venv, installs, starts pytest.
#
#   ./launch/test.sh                      everything
#   ./launch/test.sh -m 'not slow'        the quick tier
#   ./launch/test.sh tests/optim_test.py
#   ./launch/test.sh -n 0 --pdb tests/optim_test.py
#
# Every argument goes to pytest, which runs in the repository's folder: a file of tests in one process, as many files side
# by side as there are cores, at most four.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

install_extras test
exec "$VENV_PYTHON" -m pytest -n auto --maxprocesses=4 --dist=loadfile "$@"
