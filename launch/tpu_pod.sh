#!/usr/bin/env bash
# Trains on a Cloud TPU pod until the run is done, restarting after preemptions.
#
#   launch/tpu_pod.sh --name=soda-4b --zone=us-east5-a --type=v5p-256 --spot --bucket=gs://my-bucket/runs \
#       -- --config=configs/soda_4b.py
#
# --name=NAME             name of the queued resource and its pod; an existing one is used
# --zone=ZONE             zone of the pod
# --type=TYPE             accelerator, as in v5p-256 or v5litepod-16
# --project=PROJECT       default: the project of gcloud
# --runtime_version=V     image of the hosts; default: the usual one for the type
# --spot, --reserved      kind of capacity
# --bucket=gs://B[/DIR]   checkpoints go to gs://B/DIR/NAME, the log to /var/tmp/soda/NAME on each host
# --allow_uncommitted     continue although the checkout has uncommitted changes, which the pod does not get
# --delete_when_done      delete the pod when the run is done or has failed (not after Ctrl-C or a lost connection)
# --poll_seconds=S        seconds between queries while waiting for a pod (30)
# --dry_run               print the commands without running them
#
# The source is the commit checked out here. The run does not depend on this script: it continues after Ctrl-C, and
# the same command follows it again. After a preemption, and after exit status 75 of soda train, the run is
# restarted. Exit status: 0 done; 2 user error; else that of soda train.

set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$ROOT/launch/_common.sh"

option=([poll_seconds]=30)
parse_options "name zone type project runtime_version bucket poll_seconds" \
  "spot reserved allow_uncommitted delete_when_done dry_run" "$@"
require name zone type
require_number poll_seconds 0
name=${option[name]}
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  fail "--name=$name: give small letters, digits and dashes, a letter first"
[[ -z ${option[spot]} || -z ${option[reserved]} ]] || fail "--spot and --reserved exclude each other"
set_train_arguments "${rest[@]}"
if [[ -z ${option[runtime_version]} ]]; then
  case ${option[type]} in
    v4-*) option[runtime_version]=tpu-ubuntu2204-base ;;
    v5litepod-*) option[runtime_version]=v2-alpha-tpuv5-lite ;;
    v5p-*) option[runtime_version]=v2-alpha-tpuv5 ;;
    v6e-*) option[runtime_version]=v2-alpha-tpuv6e ;;
    *) fail "--type=${option[type]}: give --runtime_version with it; known are v4-N, v5litepod-N, v5p-N, v6e-N" ;;
  esac
fi
need git "the source on the pod is a commit"
[[ -n ${option[dry_run]} ]] || need gcloud "install the Google Cloud CLI"

commit=$(git -C "$ROOT" rev-parse --short=12 HEAD 2>/dev/null) ||
  fail "$ROOT is not a git checkout: the source on the pod is a commit"
# Untracked files count as changes: an untracked config would be missing on the pod.
changed=$(git -C "$ROOT" status --porcelain)
if [[ -n $changed ]]; then
  first=${changed%%$'\n'*}
  message="${first:3} differs from commit $commit, which is what the pod gets"
  [[ -n ${option[allow_uncommitted]} || -n ${option[dry_run]} ]] ||
    fail "$message; commit it, or pass --allow_uncommitted"
  say "warning: $message"
fi
source=soda-$commit

where=(--zone="${option[zone]}")
[[ -z ${option[project]} ]] || where+=(--project="${option[project]}")
where+=(--quiet)
queue=(gcloud compute tpus queued-resources)
create=("${queue[@]}" create "$name" --node-id="$name" --accelerator-type="${option[type]}"
  --runtime-version="${option[runtime_version]}")
[[ -z ${option[spot]} ]] || create+=(--spot)
[[ -z ${option[reserved]} ]] || create+=(--reserved)
create+=("${where[@]}")
describe_queue=("${queue[@]}" describe "$name" --format="value(state.state)" "${where[@]}")
describe_pod=(gcloud compute tpus tpu-vm describe "$name" --format="value(state)" "${where[@]}")
delete=("${queue[@]}" delete "$name" --force "${where[@]}")

# on_hosts COMMAND: runs a shell command on all hosts; returns the first nonzero status.
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" --worker=all --command="$1" "${where[@]}"
}

# must WORD…: runs the command; ends the script if it fails.
must() {
  run "$@" || fail "this command failed with status $?: $(quote "$@")"
}

# ask: sets `state` to READY, NONE (no such resource), or another state of the queued resource or of the pod, which
# shows a preemption first. After gcloud has answered once, ten attempts bridge a network outage of minutes.
tries=1
ask() {
  local try
  for ((try = 1; try <= tries; try++)); do
    if answer; then
      tries=10
      return
    fi
    ((try == tries)) || sleep "${option[poll_seconds]}"
  done
  fail "gcloud cannot read the state of $name: $(tail -n 1 "$scratch/errors")"
}
answer() {
  if ! state=$("${describe_queue[@]}" 2>"$scratch/errors"); then
    state=NONE
    grep -q NOT_FOUND "$scratch/errors"
  elif [[ $state == ACTIVE ]]; then
    state=$("${describe_pod[@]}" 2>"$scratch/errors") || grep -q NOT_FOUND "$scratch/errors"
  fi
}

# ensure_pod: returns when the pod is ready. For a new one, without soda, `created` is 1 and `installed` empty.
ensure_pod() {
  local before='' failed=0
  while true; do
    ask
    [[ $state == "$before" ]] || say "$name is $state"
    before=$state
    case $state in
      READY) return ;;
      NONE)
        must "${create[@]}"
        created=1 installed=''
        ;;
      FAILED)
        ((++failed < 3)) ||
          fail "three requests for $name have failed; see $(quote "${queue[@]}" describe "$name" "${where[@]}")"
        must "${delete[@]}"
        continue
        ;;
      SUSPENDED | PREEMPTED | TERMINATED)
        must "${delete[@]}"
        continue
        ;;
    esac
    sleep "${option[poll_seconds]}"
  done
}

put_source() {
  run git -C "$ROOT" archive --format=tar.gz --output="$scratch/$source.tar.gz" HEAD || fail "git archive failed"
  run gcloud compute tpus tpu-vm scp "$scratch/$source.tar.gz" "$name:$source.tar.gz" --worker=all "${where[@]}" &&
    on_hosts "mkdir -p $source && tar -xzf $source.tar.gz -C $source && bash $source/launch/_tpu_host.sh install"
}

# set_command: sets `command` to the shell command that starts the next attempt on each host.
set_command() {
  attempt=$((attempt + 1))
  command=$(quote bash "$source/launch/_tpu_host.sh" train "$stamp-$attempt" "${arguments[@]}")
}

# prepare: installs the source and sets the command of the next attempt.
prepare() {
  until [[ -n $installed ]]; do
    if put_source; then
      installed=1
      continue
    fi
    ask
    [[ $state != READY ]] || fail "soda could not be installed on $name; see the errors above"
    ensure_pod
  done
  set_command
}

# The name of an attempt, unique among all starts of this script.
stamp=$(date +%Y%m%d-%H%M%S)-$$ attempt=0 created='' installed='' state='' command=''
if [[ -n ${option[dry_run]} ]]; then
  scratch=/tmp
  quote "${describe_queue[@]}"
  run "${create[@]}"
  echo "# until that state is ACTIVE and the next one READY, every ${option[poll_seconds]} s:"
  quote "${describe_pod[@]}"
  put_source
  set_command
  on_hosts "$command"
  echo "# after exit status 75: the last command again, as the next attempt"
  echo "# after a preemption (SUSPENDED, FAILED, PREEMPTED): the next command, then all from the second one"
  run "${delete[@]}"
  exit
fi

scratch=$(mktemp -d)
ended='' # 1 when the run is known to have ended
at_end() {
  rm -rf "$scratch"
  if [[ -n ${option[delete_when_done]} && -n $ended ]]; then
    must "${delete[@]}"
  else
    say "$name continues to run and to be billed until: $(quote "${delete[@]}")"
  fi
}
trap 'exit 130' INT TERM
trap 'rm -rf "$scratch"' EXIT
ensure_pod
trap at_end EXIT

if [[ -z $created ]] && on_hosts 'test -e soda-run/lock && ! flock --nonblock soda-run/lock true'; then
  say "$name is already training: following that run; these arguments apply from its next start"
  # shellcheck disable=SC2016  # for the shell of the host
  command='bash "$(cat soda-run/source)/launch/_tpu_host.sh" follow'
else
  prepare
fi
lost=0
while true; do
  began=$SECONDS code=0
  on_hosts "$command" || code=$?
  if ! ((code)); then
    ended=1
    exit
  fi
  # A preemption becomes visible only after some time.
  sleep "${option[poll_seconds]}"
  ((SECONDS - began < 600)) || lost=0
  ask
  if [[ $state != READY ]]; then
    say "status $code and $name is $state: continuing with a new pod"
    ensure_pod
    prepare
  elif ((code == PREEMPTED)); then
    say "stopped after a checkpoint: restarting"
    prepare
  elif ((code == LOST && ++lost <= 5)); then
    say "a host failed or a step hung: restarting from the last checkpoint"
    prepare
  elif ((code == 255 && ++lost <= 5)); then
    say "no connection to $name: retrying; the run continues"
  else
    say "error: the run on $name ended with status $code; see its output above"
    # After a lost connection (255) it may still be running.
    ((code == 255)) || ended=1
    exit "$code"
  fi
done
