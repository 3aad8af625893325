"""Processes: SIGTERM to `soda train`, and two processes as one run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import run_two, xla_flags
from train_toys import tiny_config

from soda_jax.checkpoints import CheckpointReader
from soda_jax.train.loop import DONE, PREEMPTED, train
from soda_jax.train.metric_logs import read_metrics

CONFIG = """
from pathlib import Path
from train_toys import tiny_config

def get_config():
    return tiny_config(Path({datasets!r}), steps=100_000, checkpoint__every_steps=0)
"""

TWO = """
import os, signal, sys, time
from pathlib import Path
port, number, datasets, workdir = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax
from train_toys import tiny_config
from soda_jax.train.loop import train

assert jax.process_count() == 2 and len(jax.devices()) == 8 and len(jax.local_devices()) == 4

class Preempt:
    every = 3

    def __call__(self, run):
        if run.step == 3:
            if number == 1:  # only one of the processes is preempted
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)  # the notice arrives within a second
        return {}

with jax.default_matmul_precision("highest"):
    sys.exit(train(tiny_config(Path(datasets)), workdir, hooks=[Preempt()]))
"""


@pytest.fixture
def environment():
    """Variables for a process that compiles as quickly as the tests do."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    return {**os.environ, "PYTHONPATH": paths}


def test_invariant_8_sigterm_to_soda_train_saves_and_exits_with_75(datasets, tmp_path, environment):
    file, workdir = tmp_path / "long.py", tmp_path / "run"
    file.write_text(CONFIG.format(datasets=str(datasets)))
    command = [sys.executable, "-m", "soda_jax.cli", "train", f"--config={file}"]
    command += [f"--workdir={workdir}", "--config.evaluate.every_steps=0"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(read_metrics(workdir / "metrics.jsonl")) < 3 and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        printed = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == PREEMPTED == 75, printed
    last = read_metrics(workdir / "metrics.jsonl")[-1]["step"]
    assert (
        f"received SIGTERM: saved a checkpoint at step {last}" in printed
        and "Traceback" not in printed
    )
    assert 3 <= last < 100_000
    report = CheckpointReader(workdir / "checkpoints").choose()
    assert report.step == last and not report.skipped


def test_invariant_7_two_processes_give_the_numbers_of_one_and_stop_at_an_agreed_step(
    datasets, tmp_path, environment
):
    assert train(tiny_config(datasets), tmp_path / "one") == DONE
    environment["XLA_FLAGS"] = xla_flags(4)
    arguments = [str(datasets), str(tmp_path / "two")]
    codes, printed = run_two(TWO, *arguments, environment=environment, timeout=180)
    assert codes == [PREEMPTED] * 2, printed
    assert all("received SIGTERM: saved a checkpoint at step 3" in text for text in printed)
    reader = CheckpointReader(tmp_path / "two" / "checkpoints")
    assert reader.choose().step == 3
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for row, wanted in zip(two, one[:3], strict=True):
        assert row.keys() == wanted.keys()
        for name in (name for name in row if name.startswith(("loss", "gradient", "parameter"))):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5), name
    assert len(np.unique([row["loss"] for row in two])) == 3
