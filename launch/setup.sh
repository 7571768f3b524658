# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with the locked dependencies, created on first use.
#
# Sets VENV_PYTHON and defines install_extras. A stamp in the environment records what it was made from (setup.cfg, the
# lock, the interpreter and its location), so that set-up takes no time while those stay the same.
#
# Environment variables:
#   PYTHON          interpreter for the environment; default: the first of python3, python3.13, python3.12, python3.11
#                   and python3.14 that is new enough
#   KCD_JAX_VENV    folder of the environment; default .venv in the repository
#   KCD_JAX_EXTRAS  further extras of setup.cfg, separated by commas, e.g. gpu

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${KCD_JAX_VENV:-$root/.venv}"
VENV_PYTHON="$venv/bin/python"

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        printf '%s\n' "$candidate"
        return 0
      fi
      say "$candidate cannot create virtual environments; on Debian or Ubuntu: apt-get install python3-venv"
    fi
  done
  say "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3.12 $0"
  return 1
}

# Prints a checksum of what the environment is made from.
venv_key() {
  {
    printf '%s\n' "$root"
    cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt" "$venv/pyvenv.cfg"
  } 2>/dev/null | cksum
}

venv_works() { "$VENV_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# up_to_date EXTRAS: whether these extras are installed; without EXTRAS, whether any set of extras is.
up_to_date() {
  local key stamp
  key="$(venv_key)"
  for stamp in "$venv/kcd_jax."${1:-*}.stamp; do
    if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
      venv_works
      return
    fi
  done
  return 1
}

# install_extras EXTRA[,EXTRA]: installs the package in place, with these extras and those of KCD_JAX_EXTRAS.
install_extras() {
  local extras="$1${1:+${KCD_JAX_EXTRAS:+,}}${KCD_JAX_EXTRAS:-}" python
  if up_to_date "$extras"; then
    return 0
  fi
  # One set-up at a time per checkout; a second one then finds everything done.
  exec 9<"$root/setup.cfg"
  if command -v flock >/dev/null; then
    flock 9
  fi
  if ! up_to_date "$extras"; then
    if ! venv_works || ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
      python="$(find_python)"
      say "creating $venv with $("$python" --version 2>&1)"
      "$python" -m venv --clear "$venv"
    fi
    say "installing kcd_jax${extras:+[$extras]} (a few minutes the first time)"
    "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check --progress-bar off \
      --constraint "$root/constraints.txt" --editable "$root${extras:+[$extras]}"
    venv_key >"$venv/kcd_jax.${extras:-none}.stamp"
  fi
  exec 9<&-
}
