#!/usr/bin/env bash
# Installs a bundle of offline_bundle.sh without an index, goes on with its sweep, and packs what to take back.
#
#   ./run.sh --minutes=9            # as often as needed; the arguments are added to those of the bundle
#
# It leaves results/ (JSON files and tables) and back/, the results, the teachers and the checkpoints of unfinished runs
# in parts below 16 MB. A copy of back/ in another copy of the bundle is unpacked there first, so that it goes on from
# them. Exit codes are those of `python -m kcd_jax sweep`, among them 76: out of time, the same command goes on.
#
# Environment variables:
#   PYTHON          interpreter, with pip; default python3
#   TFDS_DATA_DIR   data elsewhere than in the bundle
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python="${PYTHON:-python3}"

PART=15M # of what is taken back

# The bundle may lie on a disk that another machine writes too, so each step leaves its mark last.
if [ ! -e site/.installed ]; then
  wheel="$(echo "$PWD"/wheels/kcd_jax-*.whl)"
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels --target site --upgrade \
    "$wheel$(cat extras)"
  touch site/.installed
fi
if [ -e data.tar.aa ] && [ ! -e data/.unpacked ]; then
  mkdir -p data
  cat data.tar.* | tar -xf - -C data
  touch data/.unpacked
fi
if [ -e back/part.aa ] && [ ! -e runs ]; then
  cat back/part.* | tar -xzf -
fi

arguments=()
while IFS= read -r line; do
  arguments+=("$line")
done <arguments
export PYTHONPATH="$PWD/site" TFDS_DATA_DIR="${TFDS_DATA_DIR:-$PWD/data}"
code=0
"$python" -m kcd_jax sweep "${arguments[@]}" --results=results --workdir=runs "$@" || code=$?

# Finished runs are in results/; what their checkpoints hold is not needed any more.
mkdir -p results runs back
find runs -name summary.json -exec dirname {} \; | sed 's|$|/checkpoints|' >runs/.finished
rm -f back/part.*
tar -czf - --exclude-from=runs/.finished results runs | split -b "$PART" - back/part.
exit "$code"
