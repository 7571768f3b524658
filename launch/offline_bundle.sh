#!/usr/bin/env bash
# Packs everything that a sweep needs on a machine without a network, into a folder to copy there.
#
#   ./launch/offline_bundle.sh bundle benchmark_hard --seed=100 --trials=10
#   KCD_JAX_EXTRAS=gpu PYTHON=python3.12 DATA=~/tensorflow_datasets/cifar100 FILES=teacher.safetensors \
#     ./launch/offline_bundle.sh bundle kcd_table1 --pairs=wrn_40_2-wrn_16_2 --words=teacher.checkpoint=teacher.safetensors
#
# The folder holds wheels and data in parts below 60 MB, configs/, the files and run.sh (offline_run.sh), which installs
# the wheels without an index and goes on with the sweep. All arguments after the folder go to `python -m kcd_jax sweep`;
# relative paths among them start in the folder. After a failure, the same command starts again.
#
# Environment variables:
#   PYTHON          interpreter of the same version as on the other machine; default as in setup.sh
#   PLATFORMS       wheel tags of the other machine, best first; default: manylinux tags of x86-64
#   KCD_JAX_EXTRAS  extras of setup.cfg, separated by commas, e.g. gpu
#   DATA            folders of prepared data, separated by colons, put under data/ by their last name
#   FILES           further files, separated by colons, copied as they are
#   DRY_RUN         if set, prints the commands and runs none
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

PART=59000000     # bytes, of wheels and data
SOURCES=(promise) # dependencies that are published without a wheel, pure Python

usage() {
  say "usage: $0 FOLDER SWEEP [ARGUMENT...]; the first lines of $0 list the environment variables"
  exit 2
}

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# pack NAME ARGUMENT...: a tar archive with these arguments, in parts, and their checksums. Wheels and prepared data are
# compressed already.
pack() {
  local name="$1"
  shift
  tar -cf - "$@" | split -b "$PART" - "$bundle/$name.tar."
  (cd "$bundle" && cksum "$name".tar.*) >"$bundle/$name.sums"
}

[ $# -ge 2 ] || usage
bundle="$1"
shift
python="$(find_python)"
read -r -a tags <<<"${PLATFORMS:-manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64}"
platforms=()
for tag in "${tags[@]}"; do
  platforms+=(--platform "$tag")
done
extras="${KCD_JAX_EXTRAS:+[$KCD_JAX_EXTRAS]}"

if [ -e "$bundle/run.sh" ] && [ -z "${DRY_RUN:-}" ]; then
  say "$bundle holds a bundle already; remove it, or choose another folder"
  exit 2
fi
if [ -z "${DRY_RUN:-}" ]; then
  if [ -e "$bundle/.packing" ]; then # an earlier attempt failed
    rm -rf "$bundle/wheels" "$bundle/configs" "$bundle"/wheels.* "$bundle"/data.*
  elif [ -n "$(ls -A "$bundle" 2>/dev/null)" ]; then
    say "$bundle is not empty; choose another folder"
    exit 2
  fi
fi
run mkdir -p "$bundle/wheels"
run touch "$bundle/.packing"
run "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$bundle/wheels" \
  --constraint "$root/constraints.txt" "$root" "${SOURCES[@]}"
if [ -n "${DRY_RUN:-}" ]; then
  wheel="$bundle/wheels/kcd_jax-VERSION-py3-none-any.whl"
else
  wheel="$(echo "$bundle"/wheels/kcd_jax-*.whl)"
fi
run "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: "${platforms[@]}" \
  --constraint "$root/constraints.txt" --find-links "$bundle/wheels" --dest "$bundle/wheels" "$wheel$extras"
run pack wheels -C "$bundle/wheels" .
run rm -r "$bundle/wheels"
run cp -R "$root/configs" "$bundle/configs"
if [ -n "${DATA:-}" ]; then
  IFS=: read -r -a folders <<<"$DATA"
  words=()
  for folder in "${folders[@]}"; do
    case "$folder" in
      /*) ;;
      *) folder="$PWD/$folder" ;; # tar's -C is relative to the one before
    esac
    words+=(-C "$(dirname "$folder")" "$(basename "$folder")")
  done
  run pack data "${words[@]}"
fi
if [ -n "${FILES:-}" ]; then
  IFS=: read -r -a files <<<"$FILES"
  run cp "${files[@]}" "$bundle"
fi
if [ -z "${DRY_RUN:-}" ]; then
  "$python" -c 'import sys; print(sys.implementation.name, "%d.%d" % sys.version_info[:2])' >"$bundle/interpreter"
  printf '%s\n' "$extras" >"$bundle/extras"
  printf '%s\n' "$@" >"$bundle/arguments"
fi
run cp "$root/launch/offline_run.sh" "$bundle/run.sh" # last: it tells that the bundle is complete
run rm "$bundle/.packing"
if [ -z "${DRY_RUN:-}" ]; then
  say "packed $(du -sh "$bundle" | cut -f1) into $bundle; on the other machine: $bundle/run.sh --minutes=9"
fi
