"""Worker processes of a job on this machine: forked, watched, gone with the job; invariant 8 for them."""

import contextlib
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
from tokenize_pipeline.local_workers import LocalWorkers, _processes, local_workers
from tokenize_pipeline.options import Options

ROOT = Path(__file__).parent.parent.parent
TWO = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")

RUN = f"""
import sys
from soda_jax.cli import main
sys.exit(main(["tokenize", *sys.argv[1:], *{TWO}]))
"""


def offspring(process: int) -> list[int]:
    """Ids of the processes that `process` and its children have started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {process}
    for _ in range(4):
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {process})


def is_fork(process: int) -> bool:
    """Whether a process is a worker: it has the command of the one from which it was forked."""
    command = Path(f"/proc/{process}/cmdline").read_bytes()
    parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
    return b"beam_worker" in command and Path(f"/proc/{parent}/cmdline").read_bytes() == command


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        ((), 0),
        (("--direct_num_workers=3",), 0),  # in threads of this process, as Beam has it
        (TWO, 2),
        (("--direct_running_mode", "multi_processing", "--direct_num_workers", "5"), 5),
        (("--direct_running_mode=multi_processing",), 1),
        (("--direct_running_mode=multi_processing", "--direct_num_workers=0"), os.cpu_count()),
        (("--direct_running_mode=multi_processing", "--direct_num_workers=many"), 0),
        (("--direct_running_mode",), 0),
    ],
)
def test_the_options_of_beam_say_how_many_workers(flags, count):
    assert _processes("DirectRunner", flags) == count
    assert _processes("FlinkRunner", flags) == 0


@linux
def test_the_process_that_forks_has_one_thread_and_no_jax():
    program = """
import sys
from pathlib import Path
from apache_beam.runners.worker import sdk_worker_main
from tokenize_pipeline import beam_graph
assert "jax" not in sys.modules
names = {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")}
# The memory allocator of pyarrow puts its own thread in order when it is forked.
assert len(names - {"jemalloc_bg_thd"}) == 1, names
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_work_whose_worker_dies_is_given_up_and_other_errors_pass():
    with subprocess.Popen(["sleep", "60"]) as server:
        workers = LocalWorkers(server, "nowhere")
        done = []
        workers.run(lambda: done.append(1))
        assert done == [1]
        with pytest.raises(ZeroDivisionError):
            workers.run(lambda: print(1 // 0))
        server.kill()
        with pytest.raises(UserError, match="a worker process was killed"):
            workers.run(lambda: time.sleep(60))


@linux
def test_nothing_is_left_of_workers_that_were_not_needed():
    before = offspring(os.getpid())
    with local_workers("DirectRunner", TWO) as workers:
        assert workers is not None and len(offspring(os.getpid())) == len(before) + 1
        folder = Path(workers.command[-1]).parent
        assert folder.is_dir()
    assert offspring(os.getpid()) == before and not folder.exists()
    with local_workers("DirectRunner", ()) as workers:
        assert workers is None


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("mel")
    clips = [hum(1.0, hertz, 24_000) for hertz in (120, 400, 900)]
    clips += list(np.random.default_rng(0).normal(0, 0.1, (4, 24_000)).astype(np.float32))
    MelCodec.fit(clips, MelSettings(components=8, codebook_sizes=(8, 8))).save(folder)
    return f"mel:{folder}"


@linux
@pytest.mark.parametrize("who", ["a worker", "the job"])
def test_invariant_8_a_crash_ends_the_job_and_the_next_one_ends_with_the_same_bytes(
    tmp_path, codec, who
):
    source = make_corpus(tmp_path / "corpus", documents=60, utterances=4)
    given = {"codec": codec, "shards": 20, "validation_fraction": 0.2}
    tokenize(Options(source, str(tmp_path / "whole"), **given))
    output = tmp_path / "killed"
    arguments = [f"--input={source}", f"--output={output}", f"--codec={codec}"]
    arguments += ["--shards=20", "--validation_fraction=0.2"]
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: list((output / "plan/0000/results").glob("*.json")) or process.poll())
        family = offspring(process.pid)
        workers = [child for child in family if is_fork(child)]
        assert len(workers) == 2
        os.kill(workers[0] if who == "a worker" else process.pid, signal.SIGKILL)
        told = process.communicate(timeout=60)[1]
    if who == "a worker":
        assert process.returncode == 2, told
        assert told.splitlines()[-1].startswith("soda tokenize: error: a worker process was killed")
        assert "Traceback" not in told
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in family))
    results = output / "plan/0000/results"
    finished = {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}
    tokenize(Options(source, str(output), **given, beam_options=TWO))
    assert tree(output) == tree(tmp_path / "whole")
    assert finished and all(
        (results / name).stat().st_mtime_ns == time for name, time in finished.items()
    )
