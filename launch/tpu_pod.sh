#!/usr/bin/env bash
# Trains on a Cloud TPU pod and restarts after preemptions, until the run is done.
#
#   launch/tpu_pod.sh --name=soda-4b --zone=us-east5-a --type=v5p-256 --spot --bucket=gs://my-bucket/runs \
#       -- --config=configs/soda_4b.py
#
# --name=NAME             name of the queued resource and its pod; an existing one is used
# --zone=ZONE             zone of the pod
# --type=TYPE             accelerator, as in v5p-256 or v5litepod-16
# --project=PROJECT       default: gcloud's project
# --runtime_version=V     VM image of the hosts; the default depends on --type
# --spot, --reserved      kind of capacity
# --bucket=gs://B[/DIR]   checkpoints in gs://B/DIR/NAME/checkpoints, workdir /var/tmp/soda/NAME on each host
# --allow_uncommitted     start although the checkout has changes that are not copied to the pod
# --delete_when_done      delete the pod when the run is done or has failed (not after Ctrl-C or a lost connection)
# --poll_seconds=S        seconds between requests while waiting for a pod (30)
# --dry_run               print the commands without running them
#
# The source is the commit that is checked out here. The run does not depend on this script: after Ctrl-C it
# continues, and the same command follows it again. After a preemption, and after exit status 75 or 76 of soda train,
# the run is restarted. Exit status: 0 done; 2 user error; else that of soda train.

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
  fail "--name=$name: give lower-case letters, digits and dashes, starting with a letter"
[[ -z ${option[spot]} || -z ${option[reserved]} ]] || fail "--spot and --reserved exclude each other"
set_train_arguments "${rest[@]}"
if [[ -z ${option[runtime_version]} ]]; then
  case ${option[type]} in
    v4-*) option[runtime_version]=tpu-ubuntu2204-base ;;
    v5litepod-*) option[runtime_version]=v2-alpha-tpuv5-lite ;;
    v5p-*) option[runtime_version]=v2-alpha-tpuv5 ;;
    v6e-*) option[runtime_version]=v2-alpha-tpuv6e ;;
    *) fail "--type=${option[type]}: give --runtime_version; only v4-N, v5litepod-N, v5p-N and v6e-N have a default" ;;
  esac
fi
need git "it is needed to copy the commit to the pod"
[[ -n ${option[dry_run]} ]] || need gcloud "install the Google Cloud CLI"

commit=$(git -C "$ROOT" rev-parse --short=12 HEAD 2>/dev/null) ||
  fail "$ROOT is not a git checkout: the commit that is checked out is copied to the pod"
# Untracked files count as well: a new config would be missing on the pod.
changed=$(git -C "$ROOT" status --porcelain)
if [[ -n $changed ]]; then
  first=${changed%%$'\n'*}
  message="${first:3} differs from commit $commit, which is copied to the pod"
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

# on_hosts COMMAND: runs a line of shell on all hosts; the status is the first that is not 0.
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" --worker=all --command="$1" "${where[@]}"
}

# must WORD…: runs the command; if it fails, the script exits.
must() {
  run "$@" || fail "this command failed with status $?: $(quote "$@")"
}

# ask: sets `state` to READY, NONE (no resource with that name), or the state of the queued resource, or that of the
# pod if the resource is active, because a preemption is first visible there. After the first answer of gcloud, a
# failed request is repeated up to nine times, so that a network failure does not end the script.
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
  fail "gcloud does not report the state of $name: $(tail -n 1 "$scratch/errors")"
}
answer() {
  if ! state=$("${describe_queue[@]}" 2>"$scratch/errors"); then
    state=NONE
    grep -q NOT_FOUND "$scratch/errors"
  elif [[ $state == ACTIVE ]]; then
    state=$("${describe_pod[@]}" 2>"$scratch/errors") || grep -q NOT_FOUND "$scratch/errors"
  fi
}

# ensure_pod: returns when the pod is ready. For a new pod, sets `created` to 1 and `installed` to ''.
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

# prepare: installs the source if necessary and sets the command of the next attempt.
prepare() {
  until [[ -n $installed ]]; do
    if put_source; then
      installed=1
      continue
    fi
    ask
    [[ $state != READY ]] || fail "soda could not be installed on $name, see above"
    ensure_pod
  done
  set_command
}

# The name of an attempt is unique for every start of this script on any machine.
stamp=$(date +%Y%m%d-%H%M%S)-$$ attempt=0 created='' installed='' state='' command=''
if [[ -n ${option[dry_run]} ]]; then
  scratch=/tmp
  quote "${describe_queue[@]}"
  run "${create[@]}"
  echo "# the first command and the next one, every ${option[poll_seconds]} s until they print ACTIVE and READY:"
  quote "${describe_pod[@]}"
  put_source
  set_command
  on_hosts "$command"
  echo "# after exit status 75 or 76: the last command again, with the next attempt"
  echo "# after a preemption (SUSPENDED, FAILED, PREEMPTED): the next command, then all from the second command on"
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
    say "$name is charged, and an unfinished run on it continues, until: $(quote "${delete[@]}")"
  fi
}
trap 'exit 130' INT TERM
trap 'rm -rf "$scratch"' EXIT
ensure_pod
trap at_end EXIT

if [[ -z $created ]] && on_hosts 'test -e soda-run/lock && ! flock --nonblock soda-run/lock true'; then
  say "following the run that is active on $name; the given arguments apply from its next start"
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
  # A preemption is reported after a delay.
  sleep "${option[poll_seconds]}"
  ((SECONDS - began < 600)) || lost=0
  ask
  if [[ $state != READY ]]; then
    say "status $code and $name is $state: continuing on a new pod"
    ensure_pod
    prepare
  elif ((code == PREEMPTED)); then
    say "stopped after saving a checkpoint: restarting"
    prepare
  elif ((code == LOST && ++lost <= 5)); then
    say "a host failed or a step did not finish: restarting from the last checkpoint"
    prepare
  elif ((code == 255 && ++lost <= 5)); then
    say "no connection to $name: trying again; the run continues"
  else
    say "error: the run on $name ended with status $code, see above"
    # Without a connection (255) it may still run.
    ((code == 255)) || ended=1
    exit "$code"
  fi
done
