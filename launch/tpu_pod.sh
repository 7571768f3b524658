#!/usr/bin/env bash
# Runs kcd_jax on all hosts of a Cloud TPU slice, from your own machine with the gcloud command.
#
#   export TPU_NAME=kcd ZONE=us-west4-a TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite
#   ./launch/tpu_pod.sh create
#   ./launch/tpu_pod.sh install
#   ./launch/tpu_pod.sh run --config=configs/cifar100_kd.py --workdir=runs/first
#   ./launch/tpu_pod.sh fetch runs/first
#   ./launch/tpu_pod.sh delete
#
# or all of it; the slice is deleted at the end, also after an error, once the work directory is fetched:
#
#   ./launch/tpu_pod.sh all --config=configs/cifar100_kd.py --workdir=runs/first
#
# DRY_RUN=1 prints the commands, quoted for a shell, and runs none.
#
#   create    creates the slice; SPOT=1 asks for a spot slice, which is cheaper and may be taken away
#   install   installs Python 3.11, the current commit (uncommitted changes stay here) and the package on every host
#   run       runs python -m kcd_jax.main --coordinator=auto ARGUMENTS on all hosts; the first host's output is shown
#   fetch     copies a work directory from the first host, the only one that writes, to the same place here
#   delete    deletes the slice
#
# An interrupted run resumes with the same command: `run` exits with 75 when the slice was about to be taken away and
# every host has saved the same step. A new slice has new disks: put --workdir on a file system that outlives it
# (Filestore, or a bucket mounted with gcsfuse), or fetch it and copy it to the first host of the next slice. Only the
# first host needs the work directory. Every host reads the data: --config.data.dir must name a place that all can read.
#
# Queued resources are not supported: `create` asks for the slice directly and fails where none is free. A slice that
# you requested with `gcloud compute tpus queued-resources create` works with install, run and fetch; delete its queued
# resource yourself.
#
# Connecting to all hosts at once needs an ssh agent that holds gcloud's key: one is started where there is none.
#
# Environment variables: TPU_NAME and ZONE, always; TYPE and VERSION, for create; PROJECT, default gcloud's own; SPOT.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
remote=kcd_jax # the folder on the hosts, in the home directory

fail() {
  printf '%s\n' "$*" >&2
  exit 2
}

# Runs a command; in a dry run prints it instead.
do_it() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

tpu() {
  local verb="$1"
  shift
  do_it gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

# What has to be undone when the script ends.
agent='' slice=''
clean_up() {
  [ -z "$slice" ] || delete
  [ -z "$agent" ] || ssh-agent -k >/dev/null
}
trap clean_up EXIT

# Makes sure that an ssh agent holds gcloud's key, which is created as gcloud creates it.
use_agent() {
  local key="$HOME/.ssh/google_compute_engine" code=0
  if [ -z "${DRY_RUN:-}" ]; then
    if [ ! -f "$key" ]; then
      mkdir -p "$HOME/.ssh"
      ssh-keygen -q -t rsa -b 3072 -N '' -f "$key"
    fi
    ssh-add -l >/dev/null 2>&1 || code=$?
    if [ "$code" -eq 2 ]; then # no agent is running
      eval "$(ssh-agent -s)" >/dev/null
      agent=own
    fi
  fi
  do_it ssh-add -q "$key"
}

# on WORKERS COMMAND: runs a line of shell on these hosts ('all' or a number).
on() { tpu ssh "$TPU_NAME" --worker="$1" --command="$2"; }

create() {
  : "${TYPE:?set TYPE, e.g. v5litepod-16}" "${VERSION:?set VERSION, e.g. v2-alpha-tpuv5-lite}"
  tpu create "$TPU_NAME" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}
}

install() {
  local bundle
  use_agent
  bundle="$(mktemp -d)/kcd_jax.bundle"
  # A bundle carries the commit itself, so that every result says which one it came from.
  do_it git -C "$root" bundle create "$bundle" HEAD
  tpu scp "$bundle" "$TPU_NAME:kcd_jax.bundle" --worker=all
  on all "set -e
    apt() { # a fresh host updates itself in its first minutes and holds apt's locks
      local attempt
      for attempt in \$(seq 30); do
        sudo apt-get -o DPkg::Lock::Timeout=600 \"\$@\" && return 0
        sleep 10
      done
      echo \"apt-get \$* failed \$attempt times\" >&2
      return 1
    }
    if ! command -v python3.11 >/dev/null; then
      apt update -q
      apt install -qy python3.11 python3.11-venv
    fi
    rm -rf $remote.new && git clone -q kcd_jax.bundle $remote.new
    if [ -d $remote/runs ]; then mv $remote/runs $remote.new/runs; fi
    if [ -d $remote/.venv ]; then mv $remote/.venv $remote.new/.venv; fi
    rm -rf $remote && mv $remote.new $remote
    cd $remote
    PYTHON=python3.11 KCD_JAX_EXTRAS=tpu bash -c 'source launch/setup.sh && install_extras \"\"'"
  rm -rf "$(dirname "$bundle")"
}

run() {
  [ "$#" -gt 0 ] || fail 'run what? ./launch/tpu_pod.sh run --config=configs/cifar100_kd.py'
  local arguments
  arguments="$(printf ' %q' "$@")"
  use_agent
  # With the extras of install, run.sh finds everything up to date; it prepares TFDS data where that is missing.
  on all "cd $remote && PYTHON=python3.11 KCD_JAX_EXTRAS=tpu ./launch/run.sh --coordinator=auto$arguments"
}

fetch() {
  [ "$#" -eq 1 ] || fail 'fetch what? ./launch/tpu_pod.sh fetch runs/first'
  do_it mkdir -p "$root/$(dirname "$1")"
  tpu scp --recurse "$TPU_NAME:$remote/$1" "$root/$(dirname "$1")/" --worker=0
}

delete() { tpu delete "$TPU_NAME" --quiet; }

# Prints the value of --workdir among the arguments.
workdir_of() {
  local argument
  for argument in "$@"; do
    case "$argument" in --workdir=*) printf '%s\n' "${argument#--workdir=}" ;; esac
  done
}

all() {
  local workdir code=0
  workdir="$(workdir_of "$@")"
  case "$workdir" in
    '') fail 'all needs --workdir=runs/NAME among the arguments, which is fetched at the end' ;;
    /*) fail "all fetches a folder below the repository, and --workdir=$workdir is elsewhere; use runs/NAME" ;;
  esac
  create
  slice=created # deleted at the end, whatever happens: an idle slice costs as much as a busy one
  install
  run "$@" || code=$?
  if ! fetch "$workdir"; then
    slice=''
    fail "$workdir could not be fetched, so $TPU_NAME is kept: try fetch again, then delete"
  fi
  return "$code"
}

: "${TPU_NAME:?set TPU_NAME, the name of the slice}" "${ZONE:?set ZONE, e.g. us-west4-a}"
verb="${1:-}"
[ "$#" -eq 0 ] || shift
case "$verb" in
  create | install | run | fetch | delete | all) "$verb" "$@" ;;
  *) fail "usage: $0 create | install | run ARGUMENTS | fetch WORKDIR | delete | all ARGUMENTS" ;;
esac
