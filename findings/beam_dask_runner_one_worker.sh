#!/usr/bin/env bash
# apache-beam 2.77.0 with dask and distributed 2026.8.0: the Dask runner puts up to 128 elements of Create into
# one task, and Reshuffle does not spread them. A pipeline with few, expensive elements, such as one element
# per output shard, runs on one worker of a cluster.
#
# Expected: Create followed by Reshuffle distributes the elements, as on Beam's other runners.
#
# Observed with a local cluster of 4 single-threaded workers and 8 elements of 0.5 s each:
#   default                   workers used: 1
#   --dask_partition_size=1   workers used: 4
#
# `tokenize_pipeline/beam_graph.py` therefore passes --dask_partition_size=1.
#
# Exit status: 0 as observed, 1 if the behavior changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  apache-beam==2.77.0 dask==2026.8.0 distributed==2026.8.0
cat >"$folder/spread.py" <<'PYTHON'
import os
import pathlib
import sys
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from distributed import Client, LocalCluster


def work(element):
    time.sleep(0.5)
    pathlib.Path(folder, str(os.getpid())).touch()
    return element


if __name__ == "__main__":
    name, folder, *flags = sys.argv[1:]
    pathlib.Path(folder).mkdir()
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster):
            flags += [
                "--runner=apache_beam.runners.dask.dask_runner.DaskRunner",
                f"--dask_client_address={cluster.scheduler_address}",
            ]
            pipeline = beam.Pipeline(options=PipelineOptions(flags))
            elements = pipeline | beam.Create(range(8), reshuffle=False) | beam.Reshuffle()
            _ = elements | beam.Map(work)
            pipeline.run().wait_until_finish()
    print(f"{name} workers used: {len(list(pathlib.Path(folder).iterdir()))}")
PYTHON
found=$(for name in default one; do
  flags=()
  [[ $name == one ]] && flags=(--dask_partition_size=1)
  "$folder/venv/bin/python" "$folder/spread.py" "$name" "$folder/$name" "${flags[@]}" 2>"$folder/$name.log"
done)
printf '%s\n' "$found"
expected='default workers used: 1
one workers used: 4'
[[ $found == "$expected" ]] || { tail -n 3 "$folder"/*.log >&2; echo 'the behavior changed'; exit 1; }
