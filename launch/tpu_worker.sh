#!/usr/bin/env bash
# One worker of a TPU slice: tpu_vm.sh runs this there over ssh. Not meant to be called by hand.
#
#   tpu_worker.sh install tpu                      # ~/sedd_venv with this checkout and extra [tpu]
#   tpu_worker.sh start sedd train --config=...    # detached; does nothing if it runs already
#   tpu_worker.sh restart sedd train --config=...  # the same, after stopping a running command
#   tpu_worker.sh follow                           # its log until it ends, and its exit code
#   tpu_worker.sh status [sedd train ...]          # one line, see below
#   tpu_worker.sh stop                             # SIGTERM, so that it saves, and waits for it
#
# Status: `absent` (not installed), `none` (nothing started since boot), `running`, `exited N`,
# `stopped N` (by stop). Given a command, the state of a different command is `busy` or `none`.
# State is in ~/sedd_run: command, process, code and one log for each start (log is the last).
set -u
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$HOME/sedd_venv
state=$HOME/sedd_run
# This boot's id: after a reboot a stored process number is meaningless.
boot=$(cat /proc/sys/kernel/random/boot_id)

pid=''
# Whether a command was started since boot; sets pid.
started() {
  local its_boot
  [ -s "$state/process" ] && read -r pid its_boot <"$state/process" && [ "$its_boot" = "$boot" ]
}

alive() { started && kill -0 "$pid" 2>/dev/null; }

# Waits up to 5 s for the exit code, which is written just after the command has ended.
noted() {
  for _ in {1..50}; do
    [ ! -f "$state/code" ] || return 0
    sleep 0.1
  done
  return 1
}

install() { # The image's Python may be too old; uv installs its own.
  rm -rf "$venv" "$state/installed"
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user --upgrade uv &&
    python3 -m uv venv --quiet --python "${PYTHON:-3.13}" "$venv" &&
    python3 -m uv pip install --quiet --python "$venv/bin/python" "${root}[$1]" &&
    mkdir -p "$state" && touch "$state/installed"
}

start() {
  local log
  if alive; then
    [ "$(cat "$state/command")" = "$(quote "$@")" ] ||
      fail "$(hostname) still runs another command: $(cat "$state/command")"
    echo "$(hostname): runs already"
    return
  fi
  mkdir -p "$state"
  log=$state/$(date +%Y%m%d-%H%M%S).log
  rm -f "$state"/{code,stopped,process}
  quote "$@" | tee "$state/command" >>"$log"
  ln -sfn "$log" "$state/log"
  cd "$root" || exit
  # The inner shell waits to write the exit code; `process` is the command itself, which gets
  # SIGTERM.
  # shellcheck disable=SC2016 # Expanded by that shell.
  PATH=$venv/bin:$PATH setsid bash -c '
    state=$1 boot=$2
    shift 2
    "$@" &
    echo "$! $boot" >"$state/process"
    wait $!
    echo $? >"$state/code.new" && mv "$state/code.new" "$state/code"
  ' _ "$state" "$boot" "$@" >>"$log" 2>&1 </dev/null &
  while [ ! -s "$state/process" ]; do sleep 0.1; done
  echo "$(hostname): started"
}

follow() {
  started || fail "$(hostname): nothing was started"
  tail -n +1 --pid="$pid" -F "$state/log" 2>/dev/null
  noted || fail "$(hostname): the command is gone and left no exit code"
  exit "$(cat "$state/code")"
}

status() {
  local word=exited
  if [ -f "$state/stopped" ]; then word=stopped; fi
  if [ ! -f "$state/installed" ]; then
    echo absent
  elif [ $# -gt 0 ] && [ "$(cat "$state/command" 2>/dev/null)" != "$(quote "$@")" ]; then
    if alive; then echo busy; else echo none; fi
  elif alive; then
    echo running
  elif started && noted; then
    echo "$word $(cat "$state/code")"
  else
    echo none
  fi
}

stop() {
  local end=$((SECONDS + ${GRACE:-300}))
  alive || return 0
  touch "$state/stopped"
  kill -TERM "$pid"
  while alive; do
    [ "$SECONDS" -le "$end" ] || kill -KILL "$pid"
    sleep 0.2
  done
  noted
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  install) [ $# -eq 1 ] || fail "install EXTRA" ;;
  start | restart) [ $# -gt 0 ] || fail "$verb COMMAND..." ;;
  follow | status | stop) ;;
  *) usage >&2 && exit 2 ;;
esac
case $verb in
  restart) stop && start "$@" ;;
  *) "$verb" "$@" ;;
esac
