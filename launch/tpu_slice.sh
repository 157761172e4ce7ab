# shellcheck shell=bash
# A TPU slice in gcloud: the functions of tpu_vm.sh, which sources this file after it has set name,
# zone, type, project, version, spot, direct, setup, extra, poll and dry_run.
# shellcheck disable=SC2154

place=("--zone=$zone" ${project:+"--project=$project"})
# On a worker, below ~.
worker_script=sedd_jax/launch/tpu_worker.sh

# The software version for a type of slice.
runtime_version() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "no runtime version is known for --type=$1: give --version (tpu7x: only GKE, xpk.sh)" ;;
  esac
}

request() { # Requests the slice.
  local runtime kind=("--accelerator-type=$type")
  [ -n "$type" ] || fail "--type is missing, for example --type=v5litepod-16"
  runtime=${version:-$(runtime_version "$type")} || exit
  if [ -n "$direct" ]; then
    run gcloud compute tpus tpu-vm create "$name" "${place[@]}" "${kind[@]}" \
      "--version=$runtime" ${spot:+--spot}
  else
    run gcloud compute tpus queued-resources create "$name" "${place[@]}" "${kind[@]}" \
      "--runtime-version=$runtime" "--node-id=$name" ${spot:+--spot}
  fi
}

remove() { # Deletes the slice and its queued resource.
  if [ -n "$direct" ]; then
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  else
    run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  fi
}

# describe KIND KEY: prints gcloud's state; GONE if the resource does not exist; UNKNOWN if gcloud
# failed otherwise (no network, expired login): then nothing may be deleted.
describe() {
  local command=(gcloud compute tpus "$1" describe "$name" "${place[@]}" "--format=value($2)") out
  if [ -n "$dry_run" ]; then
    quote "${command[@]}"
  elif out=$("${command[@]}" 2>&1); then
    echo "${out##*$'\n'}"
  elif [[ $out == *NOT_FOUND* ]]; then
    echo GONE
  else
    printf '%s\n' "$out" >&2
    echo UNKNOWN
  fi
}

slice_state() { # ABSENT, WAITING, READY or LOST
  local request=ACTIVE node
  [ -n "$direct" ] || request=$(describe queued-resources state.state)
  case $request in
    ACTIVE) ;;
    GONE) echo ABSENT && return ;;
    FAILED | SUSPENDED) echo LOST && return ;;
    *) echo WAITING && return ;;
  esac
  node=$(describe tpu-vm state)
  case $node in
    READY) echo READY ;;
    PREEMPTED | TERMINATED) echo LOST ;;
    GONE) if [ -n "$direct" ]; then echo ABSENT; else echo LOST; fi ;;
    *) echo WAITING ;;
  esac
}

show_state() { # The same queries, for --dry-run.
  [ -n "$direct" ] || describe queued-resources state.state
  describe tpu-vm state
}

pause() { # In the background, so that a signal is handled at once.
  sleep "$poll" >/dev/null 2>&1 &
  wait $!
  kill $! 2>/dev/null || true
}

create() {
  local state
  request || exit
  if [ -n "$dry_run" ]; then
    echo "# until it is ready:"
    show_state
    return
  fi
  while state=$(slice_state) && [ "$state" != READY ]; do
    if [ "$state" = LOST ]; then
      echo "tpu_vm: $name was not granted; delete it and ask again" >&2
      exit 1
    fi
    pause
  done
}

on() { # on WORKERS COMMAND: runs a line of shell on some workers, or `all`
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$1" "--command=$2"
}

worker() { # worker WORKERS VERB ARG...: runs tpu_worker.sh there
  on "$1" "$(quote bash "$worker_script" "${@:2}")"
}

worker_status() { # prints the status of worker 0; nothing if ssh failed
  local out ask
  ask=$(quote bash "$worker_script" status "$@")
  out=$(on 0 "if [ -f $worker_script ]; then $ask; else echo absent; fi")
  echo "${out##*$'\n'}"
}

set_up() { # Runs --setup; again after a machine's restart, which loses mounts.
  [ -z "$setup" ] || on all "$setup"
}

install() {
  local root archive=${TMPDIR:-/tmp}/sedd_jax-$name.tgz
  root=$(cd "$(dirname "$0")/.." && pwd)
  run tar --create --gzip "--file=$archive" "--directory=$root" --exclude=__pycache__ \
    LICENSE README.md configs launch pyproject.toml sedd_jax setup.py &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:sedd_jax.tgz" "${place[@]}" --worker=all &&
    on all "rm -rf sedd_jax && mkdir sedd_jax && tar -xzf sedd_jax.tgz -C sedd_jax" &&
    set_up &&
    worker all install "$extra"
}
