#!/usr/bin/env bash
# Builds the documentation into docs/_build/html on a bare machine with Python 3.11 or newer.
#
#   ./launch/docs.sh
#
# Every argument goes to sphinx-build. A warning, such as a link to nowhere, is an error.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"

install_extras docs
JAX_PLATFORMS=cpu "$VENV_PYTHON" -m sphinx -W --keep-going -q -b html "$@" docs docs/_build/html
printf '%s\n' "docs/_build/html/index.html"
