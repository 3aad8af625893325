"""The pool of worker processes: killed workers, errors, and no process left; invariant 8."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipeline_toys import hum, make_corpus, tree

from soda_jax.codecs.mel import MelCodec, MelSettings
from soda_jax.errors import UserError
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.plan import plan_folder

ROOT = Path(__file__).parent.parent.parent
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


def children(process: int) -> list[int]:
    """Returns the process ids of the workers of a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("mel")
    clips = [hum(1.0, hertz, 24_000) for hertz in (120, 400, 900)]
    clips += list(np.random.default_rng(0).normal(0, 0.1, (4, 24_000)).astype(np.float32))
    MelCodec.fit(clips, MelSettings(components=8, codebook_sizes=(8, 8))).save(folder)
    return f"mel:{folder}"


@pytest.mark.parametrize("workers", [2, 0])
def test_worker_processes_write_the_same_bytes_as_one_and_end(
    tmp_path, codec, workers, monkeypatch
):
    source = make_corpus(tmp_path / "corpus")
    given = {"codec": codec, "shards": 4, "validation_fraction": 0.3}
    tokenize(TokenizeOptions(source, str(tmp_path / "one"), **given))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    tokenize(TokenizeOptions(source, str(tmp_path / "many"), **given, workers=workers))
    assert tree(tmp_path / "many") == tree(tmp_path / "one")
    assert not multiprocessing.active_children()
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["MKL_NUM_THREADS"] == "3"


def test_an_error_in_a_worker_process_is_raised_with_its_traceback(tmp_path, codec, monkeypatch):
    source = make_corpus(tmp_path / "corpus")
    folder = plan_folder(tmp_path / "data", 0)

    def damage(*given):  # after the plan was made and checked
        (folder / "train-00001.jsonl").write_text("{}")
        return False

    monkeypatch.setattr("tokenize_pipeline.job.is_finished", damage)
    options = TokenizeOptions(source, str(tmp_path / "data"), codec=codec, shards=4, workers=2)
    with pytest.raises(UserError, match=r"train-00001.jsonl does not match the plan") as caught:
        tokenize(options)
    assert "in read_documents" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_a_local_job_imports_neither_beam_nor_dask_nor_jax(tmp_path, codec):
    source = make_corpus(tmp_path / "corpus", documents=2)
    program = """
import sys
from soda_jax.cli import main
status = main(["tokenize", *sys.argv[1:]])
heavy = {"apache_beam", "dask", "distributed", "jax", "pyarrow"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else status)
"""
    words = [f"--input={source}", f"--output={tmp_path / 'data'}", f"--codec={codec}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@linux
@pytest.mark.parametrize("victim", ["a worker", "the job"])
def test_invariant_8_a_repeated_job_writes_the_same_bytes_after_a_killed_process(
    tmp_path, codec, victim
):
    source = make_corpus(tmp_path / "corpus", documents=60, utterances=4)
    given = {"codec": codec, "shards": 20, "validation_fraction": 0.2}
    tokenize(TokenizeOptions(source, str(tmp_path / "whole"), **given))
    output = tmp_path / "killed"
    arguments = [f"--input={source}", f"--output={output}", f"--codec={codec}", "--workers=2"]
    arguments += ["--shards=20", "--validation_fraction=0.2"]
    results = output / "plan/0000/results"
    with subprocess.Popen(
        [sys.executable, "-m", "soda_jax.cli", "tokenize", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: list(results.glob("*.json")) or process.poll() is not None)
        workers = children(process.pid)
        assert len(workers) == 2
        os.kill(workers[0] if victim == "a worker" else process.pid, signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
    if victim == "a worker":
        assert process.returncode == 2, error
        (line,) = [line for line in error.splitlines() if line.startswith("soda tokenize: error:")]
        assert (
            f"worker process {workers[0]} was killed by SIGKILL while it tokenized shard " in line
        )
        assert "run the same command again" in line and "Traceback" not in error
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    finished = {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}
    assert 0 < len(finished) < 20
    tokenize(TokenizeOptions(source, str(output), **given, workers=2))
    assert tree(output) == tree(tmp_path / "whole")
    assert all((results / name).stat().st_mtime_ns == time for name, time in finished.items())
