"""Invariant 8 for shards: killed anywhere and run again, a job ends with the same bytes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pipeline_toys import hum, make_corpus, quarantine_of, tree

from soda_jax.codecs.mel import MelCodec, MelSettings
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import Options

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# For n = 0, 1, 2 …: a child process kills itself in place of (or just after) its n-th rename, another
# one goes on to the end. Given a finished data set, they append to copies of it. Beam is imported
# once and no thread runs when a child is forked.
KILL_AT_EVERY_RENAME = """
import os, shutil, signal, sys
from pipeline_toys import ToyCodec
from tokenize_pipeline import beam_graph, worker
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import Options

worker.load_codec = lambda spec: ToyCodec()
source, folder, *base = sys.argv[1:]
rename, renames = os.replace, 0

def child(output, fatal):
    def replace(old, new):
        global renames
        if renames == fatal and not fatal % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new)
        if renames == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        renames += 1

    pid = os.fork()
    if not pid:
        os.replace = replace
        given = dict(codec="toy", shards=3, validation_fraction=0.3, max_bad_fraction=0.3)
        tokenize(Options(source, output, **given, append=bool(base)))
        os._exit(0)
    return os.waitpid(pid, 0)[1]

fatal = 0
while True:
    output = f"{folder}/{fatal}"
    if base:
        shutil.copytree(base[0], output)
    status = child(output, fatal)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert child(output, -1) == 0
    fatal += 1
print(fatal)
"""

PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
RUN = f"""
import sys
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import Options

source, output, codec = sys.argv[1:]
given = dict(codec=codec, shards=12, validation_fraction=0.2)
tokenize(Options(source, output, **given, beam_options={PROCESSES}))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}


@pytest.mark.parametrize("append", [False, True])
def test_invariant_8_a_job_killed_at_any_rename_ends_with_the_same_bytes(
    tmp_path, append, toy_codec
):
    arguments = [str(tmp_path / "corpus/manifest.jsonl"), str(tmp_path / "data")]
    if append:
        base = str(tmp_path / "base")
        source = make_corpus(tmp_path / "corpus", documents=2, utterances=2)
        tokenize(Options(source, base, codec="toy", shards=1))
        arguments.append(base)
    source = make_corpus(tmp_path / "corpus", utterances=2)
    with open(source, "a") as file:
        # In a document of its own, which an append would not know from the time before.
        file.write('{"audio": "absent.wav", "text": "t", "document": "bad"}\n{broken\n')
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_RENAME, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kills = int(done.stdout)
    assert kills > 20
    uninterrupted = tree(tmp_path / "data" / str(kills))
    bad = [row["reason"] for row in quarantine_of(tmp_path / "data" / str(kills))]
    assert bad == ["malformed_row", "missing"]
    for number in range(kills):
        assert tree(tmp_path / "data" / str(number)) == uninterrupted, number


@pytest.fixture(scope="module")
def mel(tmp_path_factory) -> str:
    """A mel codec too coarse to be of use, fitted on noise and hums."""
    folder = tmp_path_factory.mktemp("mel")
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 24_000)).astype(np.float32)
    clips = [*noise, *(hum(1.0, hertz, 24_000) for hertz in (120, 400, 900))]
    MelCodec.fit(clips, MelSettings(components=8, codebook_sizes=(8, 8))).save(folder)
    return f"mel:{folder}"


def test_invariant_8_two_processes_killed_and_run_again_give_the_bytes_of_one(tmp_path, mel):
    source = make_corpus(tmp_path / "corpus", documents=24, utterances=4)
    given = {"codec": mel, "shards": 12, "validation_fraction": 0.2}
    tokenize(Options(source, str(tmp_path / "whole"), **given))
    command = [sys.executable, "-c", RUN, source, str(tmp_path / "killed"), mel]
    results = tmp_path / "killed/plan/0000/results"
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and len(list(results.glob("*.json"))) < 2:
            assert time.monotonic() < deadline
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert killed, "the job was over before it could be killed"
    finished = {p.name: p.stat().st_mtime_ns for p in results.glob("*.json")}
    tokenize(Options(source, str(tmp_path / "killed"), **given, beam_options=PROCESSES))
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    kept = [name for name in finished if (results / name).stat().st_mtime_ns == finished[name]]
    assert len(kept) >= 1
