#!/usr/bin/env bash
# A Cloud TPU slice, with gcloud: create it, install this checkout, train, resume after preemptions.
#
#   slice="--name=pod --zone=us-west4-a --type=v5litepod-16"
#   launch/tpu_vm.sh create $slice --spot
#   launch/tpu_vm.sh install $slice --setup='mkdir -p b; mountpoint -q b || gcsfuse my-bucket b'
#   launch/tpu_vm.sh run $slice sedd train --config=text8 --workdir=../b/text8
#   launch/tpu_vm.sh logs $slice --worker=3
#   launch/tpu_vm.sh stop $slice          # SIGTERM on all workers: the run saves and ends
#   launch/tpu_vm.sh delete $slice --yes
#   launch/tpu_vm.sh resume $slice --spot --setup=... sedd train ...
#
# create   creates a queued resource and waits for it (--direct: a slice at once, or fails)
# install  copies this checkout to all workers, runs --setup there, then pip install '.[tpu]'.
#          --setup must be repeatable: resume runs it again
# run      starts the command on all workers, detached, and shows worker 0's log until it ends, with
#          its exit code. Ctrl-C leaves it running (--detach does not wait); SIGTERM stops it
# resume   until the command has succeeded, does the missing steps: creates the slice (again after a
#          preemption), installs, starts. Gives up after exit code 2 or 130, when `stop` stops the
#          command, and after --retries=N crashes (20). Checks every --poll=S seconds (60)
# status   shows the state of the slice and of worker 0's command
#
# Other options: --project=P, --version=RUNTIME (by default that of the type), --extra=tpu,
# --dry-run (prints the commands, runs nothing). Several slices: launch/xpk.sh.
#
# --workdir and data must be on storage that all workers share and that outlives the slice: a bucket
# mounted by --setup, as above (the trainer takes no gs://), or a file share, but not a worker's own
# disk.
# Commands run in ~/sedd_jax, a copy of the checkout that the next install replaces; --setup in ~.
# ssh to many workers needs the key in an agent: ssh-add ~/.ssh/google_compute_engine.
set -u
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

name='' zone='' type='' project='' version='' spot='' direct='' setup='' extra=tpu worker=0 poll=60
retries=20 detach='' yes='' dry_run=''
verb=${1:-}
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --extra=*) extra=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    --spot) spot=yes ;;
    --direct) direct=yes ;;
    --detach) detach=yes ;;
    --yes) yes=yes ;;
    --dry-run) dry_run=yes ;;
    -*) fail "unknown option $1; --help shows all" ;;
    *) break ;;
  esac
  shift
done
case $verb in
  create | install | logs | status | stop | delete) [ $# -eq 0 ] || fail "$verb takes no $1" ;;
  run | resume) [ $# -gt 0 ] || fail "the command is missing: $verb ... sedd train ..." ;;
  --help) usage && exit ;;
  '') usage >&2 && exit 2 ;;
  *) fail "unknown verb $verb; --help shows all" ;;
esac
if [ -z "$name" ] || [ -z "$zone" ]; then fail "--name and --zone are needed"; fi
whole --worker "$worker"
whole --poll "$poll"
whole --retries "$retries"
# shellcheck source=tpu_slice.sh
. "$(dirname "$0")/tpu_slice.sh"

# SIGTERM: the command saves and ends on all workers, and `stopped` tells a `resume` so.
ended=''
on_term() {
  ended=yes
  worker all stop
}

follow() {
  [ -z "$dry_run" ] || { worker 0 follow && return; }
  trap on_term TERM
  trap 'echo "tpu_vm: it runs on; see logs, stop" >&2; kill -- "-$child"; exit 130' INT
  set -m # A process group of its own: the end of gcloud alone would leave its ssh behind.
  worker 0 follow </dev/null &
  child=$!
  set +m
  wait "$child"
  code=$?
  if [ -n "$ended" ]; then # The signal cut that wait short.
    wait "$child"
    code=$?
  fi
  [ "$code" -ne 255 ] || echo "tpu_vm: the connection is lost, the command runs on; see logs" >&2
  return "$code"
}

# One look at the command on a slice that is ready.
crashes=0 before=''
look() {
  local status
  status=$(worker_status "$@")
  case $before$status in
    # That it had been stopped before we came, or had a fault, is a reason to start it.
    "exited 2" | "exited 130" | stopped*) status=none ;;
  esac
  before="then "
  case $status in
    running) return ;;
    absent) install && worker all restart "$@" ;;
    none | "exited 143") set_up && worker all restart "$@" ;;
    "exited 0") echo "tpu_vm: finished" >&2 && exit 0 ;;
    "exited 2" | "exited 130" | stopped*) echo "tpu_vm: $status" >&2 && exit "${status#* }" ;;
    exited*)
      [ $((crashes += 1)) -le "$retries" ] || exit "${status#* }"
      echo "tpu_vm: $status, restart $crashes of $retries" >&2
      worker all restart "$@"
      ;;
    busy) fail "$name runs another command; see status, stop" ;;
    *) echo "tpu_vm: worker 0 does not answer" >&2 ;;
  esac
}

resume() {
  if [ -n "$dry_run" ]; then
    show_state
    echo "# after a preemption both lines, without a slice the second:"
    remove
    request
    echo "# if worker 0 says \`absent\`:"
    worker_status "$@"
    install
    echo "# if it does not run and has not finished:"
    set_up
    worker all restart "$@"
    return
  fi
  trap on_term TERM
  while [ -z "$ended" ]; do
    case $(slice_state) in
      ABSENT) request || echo "tpu_vm: not created; again in $poll s" >&2 ;;
      LOST) echo "tpu_vm: $name was preempted; again" >&2 && remove && request ;;
      READY) look "$@" ;;
    esac
    pause
  done
  exit 143
}

case $verb in
  create | install | resume) "$verb" "$@" ;;
  run)
    worker all start "$@" || exit
    [ -n "$detach" ] || follow
    ;;
  logs) on "$worker" 'tail -n +1 -F sedd_run/log' ;;
  status) show_state && worker "$worker" status ;;
  stop) worker all stop ;;
  delete)
    if [ -z "$yes$dry_run" ]; then
      read -r -p "Delete $name in $zone? [y/N] " answer
      [[ ${answer:-} == [yY]* ]] || { echo "tpu_vm: not deleted" >&2 && exit 1; }
    fi
    remove
    ;;
esac
