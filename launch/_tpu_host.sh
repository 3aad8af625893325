#!/usr/bin/env bash
# Runs on each host of a pod for tpu_pod.sh, from the unpacked source:
#
#   _tpu_host.sh install
#   _tpu_host.sh train ATTEMPT ARGUMENTS…   starts soda train unless this attempt has started, and follows it
#   _tpu_host.sh follow                     follows the active run
#
# gcloud repeats a command if its connection breaks, so each may run twice. The training does not depend on the
# connection: it runs detached in ~/soda-run, and each attempt is started once.

set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$ROOT/launch/_common.sh"
readonly RUN=$HOME/soda-run

# The active run holds the lock, so the lock is also free after a crash or a reboot.
running() {
  ! flock --nonblock "$RUN/lock" true
}

# The images of TPU machines have older versions of Python than soda needs; uv installs a newer one.
install() {
  [[ ! -e $ROOT/.venv/installed ]] || return 0
  cd "$ROOT"
  python3 -m pip install --quiet --user uv
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --clear --python 3.11 .venv
  "$uv" pip install --quiet --python .venv/bin/python -r requirements.lock
  "$uv" pip install --quiet --python .venv/bin/python --constraint requirements.lock -e '.[tpu]'
  touch .venv/installed
}

# stop: sends SIGTERM to an earlier attempt on this host, and SIGKILL if it has not ended after two minutes.
stop() {
  local second
  for second in {1..120}; do
    running || return 0
    ((second > 1)) || kill -TERM "$(cat "$RUN/pid")" 2>/dev/null || true
    sleep 1
  done
  kill -KILL "$(cat "$RUN/pid")" 2>/dev/null || true
  sleep 1
  ! running || fail "an earlier run on ${HOSTNAME} does not end"
}

# detached ARGUMENTS…: runs soda train and writes its exit status to ~/soda-run/code.
detached() {
  local code=0 pid='' terminated=''
  # A machine that shuts down sends SIGTERM to every process. It interrupts `wait`, so the loop waits again.
  trap 'terminated=1; [[ -z $pid ]] || kill -TERM "$pid"' TERM
  cd "$ROOT"
  .venv/bin/soda train "$@" &
  pid=$!
  [[ -z $terminated ]] || kill -TERM "$pid"
  echo "$pid" >"$RUN/pid"
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
  wait "$pid" || code=$?
  echo "$code" >"$RUN/code.partial"
  mv "$RUN/code.partial" "$RUN/code"
}

# follow LINES: prints the log from its last LINES lines (+1: all) until the run ends; exits with the run's status.
follow() {
  local pid
  pid=$(cat "$RUN/runner")
  tail -n "$1" --pid="$pid" -f "$RUN/log" | prefix "[${HOSTNAME##*-}] "
  [[ -e $RUN/code ]] || fail "the run on $HOSTNAME was killed; its log is ~/soda-run/log"
  exit "$(cat "$RUN/code")"
}

mkdir -p "$RUN"
case ${1:-} in
  install) install ;;
  follow) follow 20 ;;
  detached)
    shift
    detached "$@"
    ;;
  train)
    attempt=${2:?} lines=20
    shift 2
    if [[ $(cat "$RUN/attempt" 2>/dev/null) != "$attempt" ]]; then
      stop
      rm -f "$RUN/code"
      # Created here, because the log may be followed before the run writes to it.
      : >"$RUN/log"
      exec 9>"$RUN/lock"
      flock 9
      setsid nohup "$ROOT/launch/_tpu_host.sh" detached "$@" >>"$RUN/log" 2>&1 </dev/null &
      echo $! >"$RUN/runner"
      exec 9>&-
      echo "$ROOT" >"$RUN/source"
      echo "$attempt" >"$RUN/attempt"
      lines=+1
    fi
    follow "$lines"
    ;;
  *) fail "give install, train or follow" ;;
esac
