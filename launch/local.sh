#!/usr/bin/env bash
# Runs soda train as N processes on this machine, as one job.
#
#   launch/local.sh --processes=2 [--devices_per_process=4] -- --config=configs/demo.py --workdir=runs/demo
#
# --processes=N            number of processes
# --devices_per_process=D  simulate D CPU devices in each process; default: the devices that JAX finds
# --grace=SECONDS          time for other processes to exit after one failed (10), six times that after status 75
# --dry_run                print the commands without running them
#
# After --, give the arguments of soda train or a whole command such as `soda train …`. Each process also gets
# --coordinator, --processes and --process. SIGTERM and SIGINT are sent to all.
# Exit status: 0 done; 75 preempted with a checkpoint saved; else the first nonzero status.

set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$ROOT/launch/_common.sh"

option=([grace]=10)
parse_options "processes devices_per_process grace" "dry_run" "$@"
require processes
require_number processes
require_number grace 0
set_training "${rest[@]}"
if [[ -n ${option[devices_per_process]} ]]; then
  require_number devices_per_process
  flag=--xla_force_host_platform_device_count=${option[devices_per_process]}
  training=(env JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag" "${training[@]}")
fi
count=${option[processes]}

if [[ -n ${option[dry_run]} ]]; then
  for ((i = 0; i < count; i++)); do
    quote "${training[@]}" --coordinator=localhost:PORT "--processes=$count" "--process=$i"
  done
  echo "# PORT: a free port, chosen at the start"
  exit
fi
need python3 "it is needed to find a free port"
for word in "${training[@]}"; do
  # Skips `env NAME=value…`.
  [[ $word == env || $word == *=* ]] || break
done
need "$word" "make test installs soda into .venv; to use another one, give -- PATH/TO/soda train …"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')

# One process group per process: otherwise bash starts them with SIGINT ignored, and their children survive.
set -m
left=() prefixers=() # processes that have not ended
signal_all() {
  local pid
  for pid in "${left[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
kill_groups() {
  local pid
  for pid in "${left[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}
trap kill_groups EXIT
trap 'signal_all TERM' TERM
trap 'signal_all INT' INT
for ((i = 0; i < count; i++)); do
  # The prefixers are not in the killed groups, so that the last lines are printed.
  exec {pipe}> >(trap '' INT TERM && prefix "[$i] ")
  prefixers+=($!)
  "${training[@]}" "--coordinator=localhost:$port" "--processes=$count" "--process=$i" \
    </dev/null >&"$pipe" 2>&1 {pipe}>&- &
  left+=($!)
  exec {pipe}>&-
done

# bash would print the command line of each process that a signal ends.
exec {errors}>&2 2>/dev/null

# ended PID: true if the process has exited; sets `code` to its exit status.
ended() {
  ! kill -0 "$1" || return 1
  code=0
  wait "$1" || code=$?
}

first=0 limit=''
while ((${#left[@]})); do
  # A signal also ends the sleep: its trap runs and the loop continues.
  sleep 0.1 &
  wait $! || true
  still=()
  for pid in "${left[@]}"; do
    if ! ended "$pid"; then
      still+=("$pid")
      continue
    fi
    ((code)) || continue
    ((first)) || first=$code
    if [[ -z $limit ]]; then
      # After 75 the other processes are saving the same step. After any other status they would wait
      # for a process that has exited.
      limit=$((SECONDS + 1 + option[grace] * (code == PREEMPTED ? 6 : 1)))
      ((code == PREEMPTED)) || {
        say "a process ended with status $code: stopping the other processes" 2>&"$errors"
        signal_all TERM
      }
    fi
  done
  left=("${still[@]}")
  if [[ -n $limit ]] && ((SECONDS >= limit)); then kill_groups; fi
done
for pid in "${prefixers[@]}"; do wait "$pid" || true; done
exit "$first"
