"""launch/local.sh with a real run of two processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_toys import assert_same_run, rows_of
from toys import xla_flags

from soda_jax.train.loop import DONE, PREEMPTED

ROOT = Path(__file__).parents[2]

CONFIG = """
from pathlib import Path
from train_toys import tiny_config

def get_config():
    config = tiny_config(Path({datasets!r}), checkpoint__every_steps=0, evaluate__every_steps=0)
    config.mesh.update(data=2, fsdp=2)
    return config
"""

# `soda`, whose run waits after step 3 until SIGTERM was sent if PAUSE names a folder.
SODA = """
import os, sys, time
from pathlib import Path
from soda_jax import cli
from soda_jax.train import loop

class Pause:
    every = 3

    def __call__(self, run):
        if run.step == 3:
            Path(os.environ["PAUSE"], str(os.getpid())).touch()
            while not Path(os.environ["PAUSE"], "signal-sent").exists():
                time.sleep(0.05)
            time.sleep(5)  # jax's preemption notice arrives within a second
        return {}

train = loop.train
if "PAUSE" in os.environ:
    loop.train = lambda *args, hooks, **options: train(*args, hooks=[*hooks, Pause()], **options)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def launch(datasets, tmp_path):
    """launch(workdir, **environment): starts a run of two processes with two devices each."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(datasets=str(datasets)))
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, ROOT)))
    started = []

    def start(workdir, **environment):
        environment = {"PYTHONPATH": paths, **environment}
        environment = {**os.environ, "XLA_FLAGS": xla_flags(1), **environment}
        command = [ROOT / "launch/local.sh", "--processes=2", "--devices_per_process=2", "--"]
        command += [sys.executable, "-c", SODA, "train", f"--config={config}"]
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def test_invariant_7_a_job_preempted_under_local_sh_resumes_bit_for_bit(launch, tmp_path):
    whole, stopped, paused = (tmp_path / name for name in ("whole", "stopped", "paused"))
    paused.mkdir()
    running = launch(whole)
    printed = running.communicate(timeout=180)[0]
    assert running.returncode == DONE, printed
    assert {line[:4] for line in printed.splitlines()} == {"[0] ", "[1] "}

    running = launch(stopped, PAUSE=str(paused))
    deadline = time.monotonic() + 180
    while len(list(paused.iterdir())) < 2 and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    (paused / "signal-sent").touch()
    printed = running.communicate(timeout=120)[0]
    assert running.returncode == PREEMPTED, printed
    assert (
        "[0] received SIGTERM: saved a checkpoint at step 3" in printed
        and "[1] received SIGTERM: saved a checkpoint at step 3" in printed
    )
    assert [row["step"] for row in rows_of(stopped)] == [1, 2, 3]

    running = launch(stopped)
    printed = running.communicate(timeout=180)[0]
    assert running.returncode == DONE, printed
    assert "[0] resumed from step 3" in printed and "[1] resumed from step 3" in printed
    assert_same_run(stopped, whole)
