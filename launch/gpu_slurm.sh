#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process a GPU.
#
#   launch/gpu_slurm.sh --name=soda-1.7b --nodes=4 --gpus_per_node=8 --partition=h100 --time=24:00:00 \
#       -- --config=configs/soda_1_7b.py --workdir=/shared/runs/soda-1.7b
#
# --name=NAME                  of the job; its log is NAME-JOBID.log in this folder
# --nodes=N --gpus_per_node=G  the size of the job
# --time=LIMIT                 as Slurm writes it; at its end the run is saved and put back into the queue
# --partition=P --account=A    otherwise the cluster's own
# --cpus_per_gpu=C             otherwise the cluster's own
# --save_seconds=S             how long before the limit soda is told to save (300)
# --soda=PATH                  the soda of the nodes; otherwise .venv/bin/soda of this checkout, or soda
# --dry_run                    print the batch script and the command, run none
#
# After -- come the arguments of soda train. The nodes see this folder: a shared file system is needed.

set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$ROOT/launch/_common.sh"

option=([save_seconds]=300)
parse_options "name nodes gpus_per_node partition time account cpus_per_gpu save_seconds soda" "dry_run" "$@"
require name nodes gpus_per_node time
for count in nodes gpus_per_node save_seconds; do require_number "$count"; done
# These stand in lines that Slurm splits at blanks.
for word in name partition time account; do
  [[ ${option[$word]} =~ ^[A-Za-z0-9_.:,+-]*$ ]] ||
    fail "--$word=${option[$word]}: give letters, digits and . _ : , + - only"
done
set_train_arguments "${rest[@]}"
soda=${option[soda]:-$ROOT/.venv/bin/soda}
[[ -n ${option[soda]} || -x $soda ]] || soda=soda

lines=(
  "--job-name=${option[name]}" "--output=${option[name]}-%j.log" --open-mode=append
  "--nodes=${option[nodes]}" "--ntasks-per-node=${option[gpus_per_node]}"
  "--gpus-per-node=${option[gpus_per_node]}" "--time=${option[time]}"
  --requeue "--signal=TERM@${option[save_seconds]}"
)
[[ -z ${option[partition]} ]] || lines+=("--partition=${option[partition]}")
[[ -z ${option[account]} ]] || lines+=("--account=${option[account]}")
if [[ -n ${option[cpus_per_gpu]} ]]; then
  require_number cpus_per_gpu
  lines+=("--cpus-per-task=${option[cpus_per_gpu]}")
  # srun does not take it over from the job by itself.
  srun=(srun "--cpus-per-task=${option[cpus_per_gpu]}")
else
  srun=(srun)
fi
# All processes save before the first one ends with 75, but they need not end in the same second: so the
# first to end does not take the others along, unless they stay for two minutes.
srun+=(--kill-on-bad-exit=0 --wait=120)

batch=$(
  echo "#!/bin/bash"
  printf '#SBATCH %s\n' "${lines[@]}"
  cat <<END
# One task a GPU, each seeing all of its node: JAX takes the one of its number.
# Slurm sends SIGTERM to the tasks alone before the time limit and in the grace time of a preemption. They save
# and end with $PREEMPTED. To this shell it sends SIGTERM only with scancel, the limit itself or a requeue of its own.
trap 'cancelled=1' TERM
cancelled=
code=0
$(quote "${srun[@]}" "$soda" train "${arguments[@]}") || code=\$?
# A lost node may be gone for good, and a step that hangs may hang again: so not for ever.
if [ "\$code" = $LOST ] && [ "\${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  code=$PREEMPTED
fi
if [ "\$code" = $PREEMPTED ] && [ -z "\$cancelled" ]; then
  echo "stopped, the last checkpoint stands: back into the queue"
  scontrol requeue "\$SLURM_JOB_ID" && exit
fi
exit "\$code"
END
)
if [[ -n ${option[dry_run]} ]]; then
  printf '%s\n' "$batch"
  echo "# the above is the input of:"
  quote sbatch --parsable
  exit
fi
need sbatch "run this where jobs are submitted"
job=$(sbatch --parsable <<<"$batch") || fail "sbatch refused the job, see above; --dry_run prints it"
say "job ${job%%;*}; its log: ${option[name]}-${job%%;*}.log"
