"""`--runner=dask` on a cluster of two workers, of which one is killed; invariant 8 for clusters."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pipeline_toys import hum, make_corpus, tree

pytest.importorskip("apache_beam")
distributed = pytest.importorskip("distributed")

from soda_jax.codecs.mel import MelCodec, MelSettings  # noqa: E402
from soda_jax.errors import UserError  # noqa: E402
from tokenize_pipeline.job import tokenize  # noqa: E402
from tokenize_pipeline.options import TokenizeOptions  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("mel")
    clips = [hum(1.0, hertz, 24_000) for hertz in (120, 400, 900)]
    clips += list(np.random.default_rng(0).normal(0, 0.1, (4, 24_000)).astype(np.float32))
    MelCodec.fit(clips, MelSettings(components=8, codebook_sizes=(8, 8))).save(folder)
    return f"mel:{folder}"


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen]:
    """Runs a program of Dask without its log; kills it at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def cluster(tmp_path) -> Iterator[tuple[str, list[int]]]:
    """Yields the address of a scheduler and the process ids of its two workers, of one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    options = [
        "--nthreads=1",
        "--no-nanny",
        "--no-dashboard",
        f"--local-directory={tmp_path}/scratch",
    ]
    with (
        started("scheduler", "--host=127.0.0.1", f"--port={port}", "--no-dashboard"),
        started("worker", address, *options) as one,
        started("worker", address, *options) as two,
    ):
        with distributed.Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, [one.pid, two.pid]


def test_invariant_8_dask_with_a_killed_worker_writes_the_same_bytes_as_one_process(
    tmp_path, codec, cluster
):
    address, workers = cluster
    source = make_corpus(tmp_path / "corpus", documents=60, utterances=4)
    given = {"codec": codec, "shards": 20, "validation_fraction": 0.2}
    tokenize(TokenizeOptions(source, str(tmp_path / "one"), **given))
    output = tmp_path / "dask"
    words = [f"--input={source}", f"--output={output}", f"--codec={codec}", "--shards=20"]
    words += ["--validation_fraction=0.2", "--runner=dask", f"--dask_client_address={address}"]
    with subprocess.Popen(
        [sys.executable, "-m", "soda_jax.cli", "tokenize", *words],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        deadline = time.monotonic() + 240  # a busy machine takes minutes to import Beam and Dask
        while not list((output / "plan/0000/results").glob("*.json")) and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(workers[0], signal.SIGKILL)
        assert len(list((output / "plan/0000/results").glob("*.json"))) < 20
        log = job.communicate(timeout=240)[1]
    assert job.returncode == 0, log
    assert tree(output) == tree(tmp_path / "one")
    # Dask logs nothing: only the progress of the job is printed.
    assert all(line.startswith(("planning, ", "tokenizing, ")) for line in log.splitlines()), log


def test_an_unreachable_scheduler_is_a_user_error(tmp_path, codec):
    source = make_corpus(tmp_path / "corpus", documents=1, utterances=1)
    flags = ("--dask_client_address=tcp://127.0.0.1:1", "--dask_connection_timeout=1")
    with pytest.raises(UserError, match="--runner=dask cannot be reached"):
        tokenize(
            TokenizeOptions(
                source, str(tmp_path / "data"), codec=codec, runner="dask", beam_options=flags
            )
        )
