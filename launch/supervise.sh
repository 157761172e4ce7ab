#!/usr/bin/env bash
# Runs a training command until it is done: restarts it after a kill or a preemption.
#
#   launch/supervise.sh sedd train --config=quickstart --workdir=runs/quickstart
#
# Stops when the command succeeds, on Ctrl-C (exit code 130), on a user error (2), and after RETRIES
# restarts (default 100) with PAUSE seconds (default 5) between them. Ctrl-C and SIGTERM are
# forwarded to the command, which saves, and nothing is restarted. The exit code is that of the last
# run.
set -u
if [ $# -eq 0 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
# Job control: the command has its own process group, so that a signal reaches it only through us.
set -m
ended=
# shellcheck disable=SC2317 # The traps call it.
forward() {
  ended=yes
  kill -"$1" "$child"
}
trap 'forward TERM' TERM
trap 'forward INT' INT
for ((attempt = 0; attempt <= ${RETRIES:-100}; attempt++)); do
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while [ -n "$ended" ] && kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  case $code in
    0 | 2 | 130) exit "$code" ;;
  esac
  [ -z "$ended" ] || exit "$code"
  echo "supervise: exit code $code, restart $((attempt + 1)) of ${RETRIES:-100}" >&2
  sleep "${PAUSE:-5}"
done
exit "$code"
