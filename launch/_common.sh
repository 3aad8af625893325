# shellcheck shell=bash
# Options, errors and quoting for the launch scripts, which source this file.

# Exit status of soda after it received SIGTERM and saved a checkpoint: start it again.
# shellcheck disable=SC2034  # used by the scripts that source this file
readonly PREEMPTED=75
readonly LOST=76 # another process failed or a step hung: start it again from the last checkpoint
readonly SCRIPT=${0##*/}

say() {
  printf '%s: %s\n' "$SCRIPT" "${*//$'\n'/ }" >&2
}

# fail MESSAGE: prints one line and exits with the status of a user error.
fail() {
  say "error: $*"
  exit 2
}

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  fail "bash 4.4 or newer is needed, this is $BASH_VERSION"
fi

# need TOOL HINT: requires the tool on PATH.
need() {
  command -v "$1" >/dev/null || fail "$1 is not on PATH: $2"
}

# The comment at the top of a script is its help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

declare -A option=()
rest=()

# parse_options VALUES FLAGS WORD…: fills option[name] from --name=value or --name value for the names in VALUES
# and with 1 for those in FLAGS, and `rest` with the words after `--`. Missing options keep their default in
# `option`, or are empty.
parse_options() {
  local values=" $1 " flags=" $2 " word name
  shift 2
  for name in $values $flags; do option[$name]=${option[$name]:-}; done
  while (($#)); do
    word=$1
    name=${word#--}
    name=${name%%=*}
    shift
    case $word in
      --)
        rest=("$@")
        return
        ;;
      --help | -h)
        usage
        exit 0
        ;;
      --*=*)
        [[ $flags != *" $name "* ]] || fail "--$name takes no value"
        [[ $values == *" $name "* ]] || _unknown "$name" "$values$flags"
        option[$name]=${word#*=}
        ;;
      --*)
        if [[ $flags == *" $name "* ]]; then
          option[$name]=1
          continue
        fi
        [[ $values == *" $name "* ]] || _unknown "$name" "$values$flags"
        (($#)) || fail "--$name needs a value"
        option[$name]=$1
        shift
        ;;
      *) fail "unexpected argument $(quote "$word"): put the arguments of soda train after --" ;;
    esac
  done
}

_unknown() {
  local names
  read -ra names <<<"$2"
  fail "unknown option --$1; the options are ${names[*]/#/--}"
}

# require NAME…: requires a value for each of these options.
require() {
  local name
  for name; do
    [[ -n ${option[$name]:-} ]] || fail "--$name=… is missing; see $SCRIPT --help"
  done
}

# require_number NAME [LEAST]: requires an integer of at least LEAST (1).
require_number() {
  local value=${option[$1]} least=${2:-1}
  if ! [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((value < least)); then
    fail "--$1=$value: give a whole number, $least or more"
  fi
}

# quote WORD…: prints the words as one line that any POSIX shell parses to the same words.
quote() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# run WORD…: runs the command; with --dry_run prints it.
run() {
  if [[ -n ${option[dry_run]:-} ]]; then quote "$@"; else "$@"; fi
}

# prefix TEXT: copies standard input with TEXT at the start of each line.
prefix() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '%s%s\n' "$1" "$line"; done
}

# set_training WORD…: sets `training` to the training command: the words themselves if the first is a
# command, else `soda train` with the words, using the soda of this checkout if it exists.
training=()
set_training() {
  (($#)) || fail "give the arguments of soda train after --, as in -- --config=configs/demo.py --workdir=runs/demo"
  case $1 in
    -*)
      local soda="$ROOT/.venv/bin/soda"
      [[ -x $soda ]] || soda=soda
      training=("$soda" train "$@")
      ;;
    *) training=("$@") ;;
  esac
}

# set_train_arguments WORD…: sets `arguments` to the arguments of `soda train` on another machine. --bucket
# adds a local workdir and a checkpoint folder in the bucket, both named after the job, unless the words set them.
arguments=()
set_train_arguments() {
  local word workdir='' checkpoints=''
  # Accepts a whole `soda train …`; only its arguments are sent.
  if [[ ${1:-} == soda && ${2:-} == train ]]; then shift 2; fi
  (($#)) || fail "give the arguments of soda train after --, as in -- --config=configs/soda_4b.py"
  [[ $1 == -* ]] || fail "$(quote "$1"): after -- give the arguments of soda train, as in -- --config=configs/soda_4b.py"
  arguments=("$@")
  for word; do
    case $word in
      --workdir=*://* | *://*) [[ $word == --workdir=* || $workdir == next ]] &&
        fail "$(quote "$word"): a workdir is a local folder; for checkpoints in a bucket give --bucket=gs://… instead" ;;
    esac
    case $word in
      --workdir) workdir=next ;;
      --workdir=*) workdir=1 ;;
      --config.checkpoint.directory | --config.checkpoint.directory=*) checkpoints=1 ;;
      *) [[ $workdir != next ]] || workdir=1 ;;
    esac
  done
  if [[ -n ${option[bucket]:-} ]]; then
    [[ ${option[bucket]} == gs://?* ]] || fail "--bucket=${option[bucket]}: give gs://BUCKET or gs://BUCKET/FOLDER"
    [[ -n $workdir ]] || arguments+=("--workdir=/var/tmp/soda/${option[name]}")
    [[ -n $checkpoints ]] || arguments+=("--config.checkpoint.directory=${option[bucket]%/}/${option[name]}/checkpoints")
  elif [[ -z $workdir ]]; then
    fail "no --workdir among the arguments of soda train; give one that all hosts share, or --bucket=gs://… for the checkpoints"
  fi
}
