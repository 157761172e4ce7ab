#!/usr/bin/env bash
# Several processes of one command on this machine: for tests, and for machines with several GPUs.
#
#   launch/local.sh --processes=2 --devices=2 sedd train --config=quickstart --workdir=D
#   launch/local.sh --processes=4 --gpus=2 sedd train ...    # 8 GPUs, two for each process
#
# --processes=N  number of processes
# --devices=K    K fake CPU devices per process (JAX_NUM_CPU_DEVICES, JAX_PLATFORMS=cpu)
# --gpus=K       process I takes GPUs I*K to I*K+K-1 (JAX_LOCAL_DEVICE_IDS)
# --port=P       port of the coordinator on 127.0.0.1; a free port by default
# --logs=DIR     process I > 0 writes to DIR/process_I.log; else its lines appear here after "[I] "
# --grace=S      seconds (180) for the others to end after a process has failed
# --dry-run      prints the commands and runs nothing
#
# Process 0 writes to the terminal. SIGTERM and Ctrl-C are forwarded to all. The exit code is that of
# the first process that failed, or 0.
set -u
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

processes='' devices='' gpus='' port='' logs='' grace=180 dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --logs=*) logs=$(local_path --logs "${1#*=}") || exit ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --help) usage && exit ;;
    -*) fail "unknown option $1; --help shows all" ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "the command is missing; --help shows examples"
[ -n "$processes" ] || fail "--processes=N is missing"
whole --grace "$grace"
for option in --processes="$processes" ${devices:+--devices="$devices"} ${gpus:+--gpus="$gpus"} \
  ${port:+--port="$port"}; do
  whole "${option%%=*}" "${option#*=}"
  [ "${option#*=}" -gt 0 ] || fail "$option must be at least 1"
done
[ -z "$devices" ] || [ -z "$gpus" ] || fail "--devices is for CPUs: leave it out, or --gpus"

if [ -z "$port" ]; then
  # A free port below the range of client ports (from 32768).
  port=$((20000 + RANDOM % 10000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done
fi

environment() { # environment I: sets the array `variables` to the environment of process I
  variables=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port")
  variables+=("JAX_NUM_PROCESSES=$processes" "JAX_PROCESS_ID=$1")
  [ -z "$devices" ] || variables+=("JAX_NUM_CPU_DEVICES=$devices" JAX_PLATFORMS=cpu)
  if [ -n "$gpus" ]; then
    variables+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $(($1 * gpus)) $(($1 * gpus + gpus - 1)))")
  fi
}

if [ -n "$dry_run" ]; then
  [ -z "$logs" ] || quote mkdir -p "$logs"
  for ((i = processes - 1; i >= 0; i--)); do # Process 0 last: it stays in the foreground.
    environment "$i"
    line=$(quote env "${variables[@]}" "$@")
    [ "$i" -eq 0 ] || [ -z "$logs" ] || line+=" >$(quote "$logs/process_$i.log") 2>&1"
    [ "$i" -eq 0 ] || line+=' &'
    printf '%s\n' "$line"
  done
  exit
fi

[ -z "$logs" ] || mkdir -p "$logs" || exit
# Job control: each process has its own group, so that a signal reaches it only through us.
set -m
pids=()
# shellcheck disable=SC2317 # The traps call it.
forward() {
  local pid
  for pid in "${pids[@]}"; do kill -"$1" "$pid" 2>/dev/null; done
}
trap 'forward TERM' TERM HUP
trap 'forward INT' INT
prefix() { while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done; }

for ((i = 0; i < processes; i++)); do
  environment "$i"
  if [ "$i" -eq 0 ]; then
    env "${variables[@]}" "$@" </dev/null &
  elif [ -n "$logs" ]; then
    env "${variables[@]}" "$@" </dev/null >"$logs/process_$i.log" 2>&1 &
  else
    env "${variables[@]}" "$@" </dev/null > >(prefix "$i") 2>&1 &
  fi
  pids[i]=$!
done

failed='' deadline=''
while [ ${#pids[@]} -gt 0 ]; do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    wait "${pids[i]}"
    code=$?
    unset "pids[i]"
    if [ $code -ne 0 ] && [ -z "$failed" ]; then
      failed=$code deadline=$((SECONDS + grace))
      [ ${#pids[@]} -eq 0 ] ||
        echo "local: process $i ended with exit code $code; the others have $grace s" >&2
    fi
  done
  if [ -n "$deadline" ] && [ ${#pids[@]} -gt 0 ] && [ $SECONDS -gt "$deadline" ]; then
    echo "local: $grace s are over: killing process ${!pids[*]}" >&2
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null; done
    deadline=''
  fi
  # In the background, so that Ctrl-C reaches this script and not the sleep.
  sleep 0.2 >/dev/null 2>&1 &
  wait $!
done
exit "${failed:-0}"
