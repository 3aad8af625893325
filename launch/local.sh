#!/usr/bin/env bash
# Runs soda train as N processes on this machine, as one job.
#
#   launch/local.sh --processes=2 [--devices_per_process=4] -- --config=configs/demo.py --workdir=runs/demo
#
# --processes=N            how many
# --devices_per_process=D  simulate D CPU devices in each; without it each takes what JAX finds
# --grace=SECONDS          how long the others may go on when one has failed (10) or saved (six times that)
# --dry_run                print the commands, run none
#
# After -- come the arguments of soda train, or a whole command such as `soda train …`. Each process also gets
# --coordinator, --processes and --process. SIGTERM and SIGINT go to all.
# Exit status: 0 done; 75 preempted with a checkpoint saved; else the first that was not 0.

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
  echo "# PORT: a free one, chosen at the start"
  exit
fi
need python3 "it finds a free port"
for word in "${training[@]}"; do
  # What `env NAME=value…` runs.
  [[ $word == env || $word == *=* ]] || break
done
need "$word" "make test installs soda into .venv; another one is given as -- PATH/TO/soda train …"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')

# A process group each: otherwise bash starts them deaf to SIGINT, and what they start outlives them.
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
  # The prefixers are no part of the groups that are killed, so the last lines are not lost.
  exec {pipe}> >(trap '' INT TERM && prefix "[$i] ")
  prefixers+=($!)
  "${training[@]}" "--coordinator=localhost:$port" "--processes=$count" "--process=$i" \
    </dev/null >&"$pipe" 2>&1 {pipe}>&- &
  left+=($!)
  exec {pipe}>&-
done

# bash would tell of each process that a signal ends, command line and all.
exec {errors}>&2 2>/dev/null

# ended PID: true once it has; its exit status is then in `code`.
ended() {
  ! kill -0 "$1" || return 1
  code=0
  wait "$1" || code=$?
}

first=0 limit=''
while ((${#left[@]})); do
  # A signal, too, ends the sleep: its trap runs and the loop goes on.
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
      # 75 is agreed among the processes, the others are on their way; another status leaves them
      # waiting for one that never comes back.
      limit=$((SECONDS + 1 + option[grace] * (code == PREEMPTED ? 6 : 1)))
      ((code == PREEMPTED)) || {
        say "a process ended with status $code: ending the others" 2>&"$errors"
        signal_all TERM
      }
    fi
  done
  left=("${still[@]}")
  if [[ -n $limit ]] && ((SECONDS >= limit)); then kill_groups; fi
done
for pid in "${prefixers[@]}"; do wait "$pid" || true; done
exit "$first"
