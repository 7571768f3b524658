#!/usr/bin/env bash
# Installs a bundle of offline_bundle.sh without an index, goes on with its sweep, and packs what to take back.
#
#   ./run.sh --minutes=9            # as often as needed; the arguments are added to those of the bundle
#
# It leaves results/ (JSON files and tables) and back/, in parts below 16 MB: the results, the teachers, the checkpoints
# of unfinished runs, and of finished ones the summary, the settings and the last set. A copy of back/ in another copy of
# the bundle is unpacked at its first start, so that it goes on from there. Exit codes are those of `python -m kcd_jax
# sweep`, among them 76: out of time, the same command goes on. SIGTERM and SIGINT are passed on to Python, whose saved
# state is packed before this ends with Python's exit code.
#
# Environment variables:
#   PYTHON          interpreter, with pip; default python3
#   TFDS_DATA_DIR   data elsewhere than in the bundle
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python="${PYTHON:-python3}"

PART=15M # of what is taken back

say() { printf '%s\n' "$*" >&2; }

refuse() {
  say "$@"
  exit 2
}

# unpack NAME: the parts NAME.tar.*, if the bundle has them, into the folder NAME, whose mark is set last.
unpack() {
  if [ ! -e "$1/.unpacked" ] && compgen -G "$1.*" >/dev/null; then
    if [ "$(cksum "$1".tar.* 2>/dev/null)" != "$(cat "$1.sums" 2>/dev/null)" ]; then
      refuse "$1.tar.* is incomplete; copy all of its parts and $1.sums again"
    fi
    mkdir -p "$1"
    cat "$1".tar.* | tar -xf - -C "$1"
    touch "$1/.unpacked"
  fi
}

# excluded: patterns of what is not taken back. Nothing reads it once a run is in results/, except that runs on its last
# set (`Reuse`) read that set and the settings; a teacher keeps all that a finished run's manifest lists.
excluded() {
  local folder stage name last
  find runs -name tags.u32 | sed 's|/[^/]*$||' # caches of teachers' answers
  find runs -name summary.json | sed 's|/[^/]*$||' | while IFS= read -r folder; do
    printf '%s\n' "$folder/checkpoints" "$folder/tensorboard"
    case "$folder" in
      runs/teachers/*) continue ;;
    esac
    printf '%s\n' "$folder/metrics.jsonl" "$folder/manifest.json" "$folder/*.safetensors" "$folder/knowledge/points.npz"
    last=-1
    for stage in "$folder"/knowledge/stage_*.npz; do
      name="${stage##*/stage_}"
      case "${name%.npz}" in
        *[!0-9]*) continue ;;
      esac
      if [ "${name%.npz}" -gt "$last" ]; then
        [ "$last" -lt 0 ] || printf '%s\n' "$folder/knowledge/stage_$last.npz"
        last="${name%.npz}"
      else
        printf '%s\n' "$stage"
      fi
    done
  done
}

# One start at a time in a folder. Python inherits the lock, which is held until both have ended.
if command -v flock >/dev/null; then
  exec 9>.lock
  locked=0
  flock -n 9 || locked=$?
  if [ "$locked" -eq 1 ]; then # other codes: a file system without locks
    refuse "another run.sh is at work in $PWD; wait for it. One run.sh with --jobs=N trains in N processes"
  fi
fi

found="$("$python" -c 'import sys; print(sys.implementation.name, "%d.%d" % sys.version_info[:2])' 2>/dev/null)" ||
  refuse "$python does not start; name another interpreter: PYTHON=/path/to/python ./run.sh"
wanted="$(cat interpreter)"
if [ "$found" != "$wanted" ]; then
  refuse "the bundle is for $wanted, but $python is $found; name another one: PYTHON=python${wanted##* } ./run.sh"
fi

# Each step sets its mark last, so that an interrupted one is repeated.
if [ "$(cat site/.installed 2>/dev/null || :)" != "$found" ]; then
  unpack wheels
  rm -rf site
  wheel="$(echo "$PWD"/wheels/kcd_jax-*.whl)"
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels --target site --upgrade \
    "$wheel$(cat extras)"
  printf '%s\n' "$found" >site/.installed
fi
unpack data
if [ ! -e back ] && [ -e back.old ]; then
  mv back.old back # killed while a new one took its place
fi
if [ ! -e runs ] && compgen -G 'back/part.*' >/dev/null; then
  if ! cat back/part.* | gzip -t 2>/dev/null; then
    refuse "back/ is incomplete; copy all of its parts again"
  fi
  rm -rf back.unpacked
  mkdir back.unpacked
  cat back/part.* | tar -xzf - -C back.unpacked
  mkdir -p results
  cp -R back.unpacked/results/. results
  mv back.unpacked/runs runs # last and at once: runs/ is the mark
  rm -r back.unpacked
fi

arguments=()
while IFS= read -r line; do
  arguments+=("$line")
done <arguments
export PYTHONPATH="$PWD/site" TFDS_DATA_DIR="${TFDS_DATA_DIR:-$PWD/data}"

# In the background, because a shell that waits for a command in the foreground does not react to signals.
child=
received=
pass_on() {
  received="$1"
  if [ -n "$child" ]; then
    kill -s "$1" "$child" 2>/dev/null || :
  fi
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
(
  trap - TERM INT # or the shell starts it with SIGINT ignored
  exec "$python" -m kcd_jax sweep "${arguments[@]}" --results=results --workdir=runs --spent="$SECONDS" "$@"
) &
child=$!
if [ -n "$received" ]; then
  pass_on "$received"
fi
while :; do # a signal ends `wait` before Python has ended
  received=
  code=0
  wait "$child" || code=$?
  [ -n "$received" ] || break
done
trap '' TERM INT # packing takes seconds

mkdir -p results runs
rm -rf back.new
if mkdir back.new && tar -czf - --exclude-from=<(excluded) results runs | split -b "$PART" - back.new/part.; then
  rm -rf back.old
  [ ! -e back ] || mv back back.old
  mv back.new back
  rm -rf back.old
else
  rm -rf back.new
  say "back/ was not renewed (is the disk full?); it holds the state after an earlier start, if any"
  [ "$code" -ne 0 ] || code=74
fi
exit "$code"
