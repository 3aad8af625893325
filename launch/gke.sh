#!/usr/bin/env bash
# Trains on TPU or GPU nodes of a Kubernetes cluster with JobSet (jobset.sigs.k8s.io, 0.6 or newer).
#
#   launch/gke.sh --name=soda-4b --image=REGISTRY/soda:TAG --tpu=v5p --topology=4x4x8 --spot \
#       --bucket=gs://my-bucket/runs -- --config=configs/soda_4b.py
#   launch/gke.sh --name=soda-1-7b --image=REGISTRY/soda:TAG --gpu=nvidia-h100-80gb --gpus_per_node=8 --nodes=4 \
#       --bucket=gs://my-bucket/runs -- --config=configs/soda_1_7b.py
#
# --name=NAME             name of the JobSet
# --image=IMAGE           image with soda on its PATH, see docs/launch.md
# --tpu=TYPE --topology=T TPU type (v4, v5e, v5p or v6e), and shape of a slice in chips, as in 4x4x8
# --chips_per_node=C      TPU chips per node (4)
# --slices=N              number of TPU slices (1)
# --gpu=TYPE --nodes=N    value of the node label cloud.google.com/gke-accelerator, and number of nodes
# --gpus_per_node=G       GPUs per node (8)
# --spot                  use only nodes of a spot pool
# --bucket=gs://B[/DIR]   checkpoints in gs://B/DIR/NAME/checkpoints, workdir /var/tmp/soda/NAME on each host
# --namespace=NS --service_account=S
# --max_restarts=N        number of restarts after failures other than preemptions (0)
# --poll_seconds=S        seconds between requests for the state of the JobSet (30)
# --dry_run               print the manifest and the commands without running them
#
# Follows the logs. Exit status: 0 the run is done, 1 it has failed, 2 user error.

set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$ROOT/launch/_common.sh"

option=([slices]=1 [chips_per_node]=4 [gpus_per_node]=8 [max_restarts]=0 [poll_seconds]=30)
parse_options "name image tpu topology slices chips_per_node gpu gpus_per_node nodes bucket namespace \
service_account max_restarts poll_seconds" "spot dry_run" "$@"
require name image
for word in poll_seconds max_restarts; do require_number "$word" 0; done
for word in namespace service_account; do
  [[ ${option[$word]} =~ ^[a-z0-9-]*$ ]] || fail "--$word=${option[$word]}: give lower-case letters, digits and dashes"
done
name=${option[name]}
# The name of a pod is NAME-workers-0-0-XXXXX; a label has at most 63 characters.
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "--name=$name: give at most 40 lower-case letters, digits and dashes, starting with a letter"
set_train_arguments "${rest[@]}"

if [[ -n ${option[tpu]} && -n ${option[gpu]} ]] || [[ -z ${option[tpu]}${option[gpu]} ]]; then
  fail "give either --tpu=TYPE or --gpu=TYPE"
fi
if [[ -n ${option[tpu]} ]]; then
  require topology
  require_number slices
  case ${option[tpu]} in
    v4) accelerator=tpu-v4-podslice shape='^[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*$' ;;
    v5p) accelerator=tpu-v5p-slice shape='^[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*$' ;;
    v5e) accelerator=tpu-v5-lite-podslice shape='^[1-9][0-9]*x[1-9][0-9]*$' ;;
    v6e) accelerator=tpu-v6e-slice shape='^[1-9][0-9]*x[1-9][0-9]*$' ;;
    *) fail "--tpu=${option[tpu]} is unknown: v4, v5e, v5p, v6e" ;;
  esac
  [[ ${option[topology]} =~ $shape ]] ||
    fail "--topology=${option[topology]} is not a shape of a ${option[tpu]} slice; give one such as 2x2x2 for v4 and v5p, 4x4 for v5e and v6e"
  chips=$((${option[topology]//x/ * }))
  require_number chips_per_node
  on_node=${option[chips_per_node]}
  ((chips > on_node)) || on_node=$chips
  ((chips % on_node == 0)) ||
    fail "--topology=${option[topology]}: $chips chips are not a multiple of --chips_per_node=$on_node"
  nodes=$((chips / on_node)) slices=${option[slices]} resource=google.com/tpu
  annotations="
  annotations:
    # A slice is one node pool and one job of the set.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
  selector="cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: ${option[topology]}"
else
  require nodes
  require_number nodes
  require_number gpus_per_node
  [[ ${option[gpu]} =~ ^[a-z0-9-]+$ ]] || fail "--gpu=${option[gpu]}: give a label such as nvidia-h100-80gb"
  nodes=${option[nodes]} slices=1 on_node=${option[gpus_per_node]} resource=nvidia.com/gpu annotations=''
  selector="cloud.google.com/gke-accelerator: ${option[gpu]}"
fi
tolerations=''
if [[ -n ${option[spot]} ]]; then
  selector+="
                cloud.google.com/gke-spot: \"true\""
  tolerations="
              tolerations:
                - {key: cloud.google.com/gke-spot, operator: Equal, value: \"true\", effect: NoSchedule}"
fi
account=''
[[ -z ${option[service_account]} ]] || account="
              serviceAccountName: ${option[service_account]}"
namespace=()
[[ -z ${option[namespace]} ]] || namespace=(--namespace="${option[namespace]}")

# json WORD: prints a JSON string, which is valid YAML. Kubernetes expands \$(NAME) and \$\$ in arguments.
json() {
  local word=${1//\\/\\\\}
  word=${word//\"/\\\"}
  word=${word//$'\n'/\\n}
  word=${word//$'\t'/\\t}
  printf '"%s"' "${word//\$/\$\$}"
}
# One process per node. JOB_INDEX is the index of the slice, JOB_COMPLETION_INDEX that of the pod in the slice. The
# service of the JobSet resolves the host name of the first pod.
script="exec soda train \"\$@\" --coordinator=$name-workers-0-0.$name:8482 --processes=$((nodes * slices))"
script+=" --process=\$((JOB_INDEX * $nodes + JOB_COMPLETION_INDEX))"
words=''
for word in "${arguments[@]}"; do
  [[ ${word//[$'\n\t']/} != *[[:cntrl:]]* ]] || fail "$(quote "$word") contains a control character"
  words+="
                    - $(json "$word")"
done

manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name$annotations
spec:
  network:
    enableDNSHostnames: true
  failurePolicy:
    # For failures other than the following.
    maxRestarts: ${option[max_restarts]}
    rules:
      # Preempted according to the pod failure policy below: restart all pods without a limit.
      - name: preempted
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: workers
      replicas: $slices
      template:
        spec:
          completionMode: Indexed
          parallelism: $nodes
          completions: $nodes
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: soda, operator: In, values: [$PREEMPTED, $LOST]}
              - action: FailJob
                onPodConditions: [{type: DisruptionTarget, status: \"True\"}]
          template:
            spec:
              restartPolicy: Never
              # Time from SIGTERM to the end of saving.
              terminationGracePeriodSeconds: 300$account
              nodeSelector:
                $selector$tolerations
              containers:
                - name: soda
                  image: $(json "${option[image]}")
                  command: [\"/bin/sh\", \"-c\", $(json "$script"), soda]
                  args:$words
                  env:
                    - name: JOB_INDEX
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['jobset.sigs.k8s.io/job-index']
                  resources:
                    limits:
                      $resource: $on_node"

get=(kubectl get jobset "$name" --ignore-not-found --output="jsonpath={.status.terminalState}" "${namespace[@]}")
apply=(kubectl apply --filename=- "${namespace[@]}")
logs=(kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name" --follow --prefix --ignore-errors
  --max-log-requests="$((nodes * slices))" --tail=-1 "${namespace[@]}")
delete=(kubectl delete jobset "$name" "${namespace[@]}")

if [[ -n ${option[dry_run]} ]]; then
  printf '%s\n' "$manifest"
  echo "# the above is the input of the second command; the third and the first are repeated until the run has ended:"
  quote "${get[@]}"
  quote "${apply[@]}"
  quote "${logs[@]}"
  exit
fi
need kubectl "install it and connect it to a cluster"

ask() {
  state=$("${get[@]}") || fail "kubectl does not report the state of JobSet $name, see above"
}
ask
[[ -z $state ]] || fail "JobSet $name already exists and has ended ($state): remove it with $(quote "${delete[@]}")"
"${apply[@]}" <<<"$manifest" >&2 || fail "kubectl refused the JobSet, see above; --dry_run prints it"
say "following JobSet $name; after Ctrl-C it continues until: $(quote "${delete[@]}")"
while true; do
  # Returns when the pods end, and fails while there are no pods yet.
  "${logs[@]}" || true
  ask
  case $state in
    Completed) exit 0 ;;
    Failed)
      say "error: JobSet $name has failed, see its last lines above and $(quote kubectl describe jobset "$name" "${namespace[@]}")"
      exit 1
      ;;
  esac
  sleep "${option[poll_seconds]}"
done
