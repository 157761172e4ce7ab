#!/usr/bin/env bash
# Runs a training command until it is done: starts it again after a kill or a preemption.
#
#   launch/supervise.sh sedd train --config=configs/quickstart.py --workdir=runs/quickstart
#
# Stops when the command ends well, on Ctrl-C (exit code 130), on an error of the user (2), and
# after RETRIES restarts (default 100) with PAUSE seconds (default 5) between them. The exit code is
# that of the last run.
set -u
if [ $# -eq 0 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
for ((attempt = 0; attempt <= ${RETRIES:-100}; attempt++)); do
  "$@"
  code=$?
  case $code in
    0 | 2 | 130) exit "$code" ;;
  esac
  echo "supervise: exit code $code, restart $((attempt + 1)) of ${RETRIES:-100}" >&2
  sleep "${PAUSE:-5}"
done
exit "$code"
