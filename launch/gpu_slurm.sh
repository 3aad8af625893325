#!/usr/bin/env bash
# Trains on GPU nodes under Slurm, one process per GPU.
#
#   launch/gpu_slurm.sh --name=soda-1.7b --nodes=4 --gpus_per_node=8 --partition=h100 --time=24:00:00 \
#       -- --config=configs/soda_1_7b.py --workdir=/shared/runs/soda-1.7b
#
# --name=NAME                  name of the job; its log is NAME-JOBID.log in this folder
# --nodes=N --gpus_per_node=G  size of the job
# --time=LIMIT                 in Slurm's format; when it expires, the run is saved and requeued
# --partition=P --account=A    default: those of the cluster
# --cpus_per_gpu=C             default: that of the cluster
# --save_seconds=S             seconds before the limit at which soda receives SIGTERM (300)
# --soda=PATH                  path of soda on the nodes; default: .venv/bin/soda of this checkout, else soda on PATH
# --dry_run                    print the batch script and the command without running them
#
# The arguments of soda train follow after --. The nodes need this folder: use a shared file system.

set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$ROOT/launch/_common.sh"

option=([save_seconds]=300)
parse_options "name nodes gpus_per_node partition time account cpus_per_gpu save_seconds soda" "dry_run" "$@"
require name nodes gpus_per_node time
for count in nodes gpus_per_node save_seconds; do require_number "$count"; done
# Slurm splits the lines with these values at blanks.
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
  # srun does not inherit it from the job.
  srun=(srun "--cpus-per-task=${option[cpus_per_gpu]}")
else
  srun=(srun)
fi
# The processes exit with 75 after a common save, but not in the same second. So the first exit does not kill
# the other processes until two minutes later.
srun+=(--kill-on-bad-exit=0 --wait=120)

batch=$(
  echo "#!/bin/bash"
  printf '#SBATCH %s\n' "${lines[@]}"
  cat <<END
# One task per GPU; each task sees all GPUs of its node and uses the one of its local index.
# Before the time limit and in the grace time of a preemption, Slurm sends SIGTERM to the tasks only. They save
# and exit with $PREEMPTED. This shell receives SIGTERM only from scancel, the limit itself or a requeue by Slurm.
trap 'cancelled=1' TERM
cancelled=
code=0
$(quote "${srun[@]}" "$soda" train "${arguments[@]}") || code=\$?
# A node may have failed for good, and a step may hang again: limit the number of restarts.
if [ "\$code" = $LOST ] && [ "\${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  code=$PREEMPTED
fi
if [ "\$code" = $PREEMPTED ] && [ -z "\$cancelled" ]; then
  echo "stopped; the job is requeued and resumes from the last checkpoint"
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
