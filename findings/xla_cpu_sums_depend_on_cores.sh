#!/usr/bin/env bash
# jax 0.10.2 with jaxlib 0.10.2, on a CPU: the bits of a plain sum depend on how many cores the process
# may use, because XLA splits the sum over its threads. The same program on the same machine gives
# another result under `taskset`, in a container with fewer cores, or on a larger machine.
#
# Expected: JAX documents no dependence on the number of cores; the program, the inputs and the one
# CPU device are the same.
#
# Observed on an x86_64 CPU (the last digits differ between CPU models):
#   1 core            1239.20263671875
#   2 cores           1239.2027587890625
#   2 cores, NPROC=1  1239.20263671875
#
# So a run resumed on a CPU repeats an uninterrupted one bit for bit only with the same number of
# cores, or with the environment variable NPROC set to the same number (docs/resume.md).
#
# Exit status: 0 as observed, 1 if the behavior changed, 2 if there are fewer than two cores.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat >"$folder/sum.py" <<'PYTHON'
import os
import sys

cores = sorted(os.sched_getaffinity(0))
wanted = int(sys.argv[1])
if len(cores) < wanted:
    sys.exit("two cores are needed")
os.sched_setaffinity(0, cores[:wanted])

import jax
import numpy as np

values = np.random.RandomState(0).standard_normal((4096, 256)).astype(np.float32)
print(float(jax.jit(lambda x: x.sum())(values)))
PYTHON
add_up() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/sum.py" "$1"; }
unset NPROC
one=$(add_up 1) || exit 2
two=$(add_up 2) || exit 2
again=$(add_up 2)
limited=$(NPROC=1 add_up 2)
echo "1 core            $one"
echo "2 cores           $two"
echo "2 cores, NPROC=1  $limited"
[[ $one != "$two" && $two == "$again" && $limited == "$one" ]]
