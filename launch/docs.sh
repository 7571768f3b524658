#!/usr/bin/env bash
# Builds the documentation into docs/_build/html on a bare machine with Python 3.11 or newer.
#
#   ./launch/docs.sh
#
# All arguments go to sphinx-build. Warnings, such as a broken link, are errors.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

install_extras docs
JAX_PLATFORMS=cpu "$VENV_PYTHON" -m sphinx -W --keep-going -q -b html "$@" docs docs/_build/html
printf '%s\n' "docs/_build/html/index.html"
