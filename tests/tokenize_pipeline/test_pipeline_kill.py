"""Invariant 8 for shards: a job that is killed at any rename and repeated writes the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_toys import make_corpus, quarantine_of, tree

from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# For n = 0, 1, 2 …: a child process kills itself at its n-th rename (before it for even n, after it for
# odd n), and a second child finishes the job. If a finished data set is given, the children append to
# copies of it. Modules are imported once, and no thread runs when a child is forked.
KILL_AT_EVERY_RENAME = """
import os, shutil, signal, sys
from pipeline_toys import ToyCodec
from tokenize_pipeline import encoding
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

encoding.load_codec = lambda spec: ToyCodec()
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
        tokenize(TokenizeOptions(source, output, **given, append=bool(base)))
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
        tokenize(TokenizeOptions(source, base, codec="toy", shards=1))
        arguments.append(base)
    source = make_corpus(tmp_path / "corpus", utterances=2)
    with open(source, "a") as file:
        # In a new document, because an append skips known ones.
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
