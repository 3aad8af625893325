"""Two processes of four devices: numbers of one device, changing process counts, a killed process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from process_toys import environment_of_two, read_rows, recorded_batches, rows_as_lines, train_until
from run_toys import rows_of
from toys import free_port, run_two
from train_toys import tiny_config

from soda_jax.data.dataset import make_dataset
from soda_jax.data.loader import Loader
from soda_jax.parallel.heartbeat import LOST
from soda_jax.train.loop import DONE, PREEMPTED

MESHES = {
    "dcn": ({"dcn": 2, "data": 4}, 1, "full"),
    "data": ({"data": 8}, 1, "full"),
    "fsdp": ({"fsdp": 8}, 1, "full"),
    "sequence": ({"sequence": 8}, 1, "full"),
    "tensor": ({"tensor": 8}, 1, "full"),
    "dcn-fsdp-tensor": ({"dcn": 2, "fsdp": 2, "tensor": 2}, 2, "full"),
    # The devices do different numbers of iterations over the text positions.
    "legal": ({"dcn": 2, "fsdp": 2, "tensor": 2}, 2, "legal"),
    "legal-sequence": ({"fsdp": 4, "sequence": 2}, 1, "legal"),
}

SAME_NUMBERS = """
import sys
port, number = sys.argv[1], int(sys.argv[2])
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax
from mesh_toys import check_same_numbers, on_one_device, toy_batch
from test_several_processes import MESHES

assert jax.process_count() == 2 and len(jax.devices()) == 8 and len(jax.local_devices()) == 4
with jax.default_matmul_precision("highest"):
    batch = toy_batch()
    single = {head: on_one_device(batch, head) for head in ("full", "legal")}
    for name, (axes, accumulate, head) in MESHES.items():
        try:
            check_same_numbers(axes, accumulate, batch, single[head], head)
            print("agrees:", name, flush=True)
        except AssertionError as error:
            print("differs:", name, error, flush=True)
"""

TRAIN = """
import sys
from pathlib import Path
port, number, datasets, workdir, stop = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
import jax
from process_toys import recorded_batches, train_until
from train_toys import tiny_config

mesh = {"mesh__dcn": 2, "mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2}
with jax.default_matmul_precision("highest"), recorded_batches(lambda line: print(line, flush=True)):
    sys.exit(train_until(tiny_config(Path(datasets), **mesh), workdir, int(stop)))
"""

LONG = """
from pathlib import Path
from train_toys import tiny_config

def get_config():
    return tiny_config(Path({datasets!r}), steps=100_000, checkpoint__every_steps=0)
"""


@pytest.fixture(scope="module")
def meshes():
    """What each of two processes says about every mesh."""
    codes, printed = run_two(SAME_NUMBERS, environment=environment_of_two(), timeout=300)
    assert codes == [0, 0], printed
    return printed


@pytest.mark.parametrize("name", MESHES)
def test_invariant_7_two_processes_give_the_numbers_of_one_device(meshes, name):
    for printed in meshes:
        assert f"agrees: {name}\n" in printed, printed


def test_invariant_7_two_processes_then_one_then_two_repeat_the_run_of_one(
    datasets, whole, tmp_path
):
    workdir, read = tmp_path / "turns", {}

    def two(step, first):
        arguments = (str(datasets), str(workdir), str(step))
        codes, printed = run_two(TRAIN, *arguments, environment=environment_of_two(), timeout=180)
        lines = [line for text in printed for line in text.splitlines()]
        read.update({(first + n, row): crc for (n, row), crc in read_rows(lines).items()})
        return codes

    assert two(2, 0) == [PREEMPTED] * 2
    lines = []
    with recorded_batches(lines.append):
        single = tiny_config(datasets, mesh__data=2, mesh__fsdp=1, mesh__sequence=4)
        assert train_until(single, workdir, 4) == PREEMPTED
    read.update({(2 + n, row): crc for (n, row), crc in read_rows(lines).items()})
    assert two(6, 4) == [DONE] * 2

    assert len(read) == 6 * 8 and len(set(read.values())) > 40
    with Loader(make_dataset(tiny_config(datasets).data.to_dict()), 8, 0, list(range(8))) as loader:
        wanted = [rows_as_lines(n, next(loader), range(8)) for n in range(6)]
    assert read == read_rows([line for lines in wanted for line in lines])
    rows, wanted = rows_of(workdir), rows_of(whole[0])
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, want in zip(rows, wanted, strict=True):
        for name in (n for n in want if n.startswith(("loss", "gradient", "parameter"))):
            assert row[name] == pytest.approx(want[name], rel=2e-5), (row["step"], name)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_status_76_and_one_line_that_names_it(
    datasets, tmp_path, victim
):
    config, workdir = tmp_path / "long.py", tmp_path / "run"
    config.write_text(LONG.format(datasets=str(datasets)))
    command = [sys.executable, "-m", "soda_jax.cli", "train", f"--config={config}"]
    command += [f"--workdir={workdir}", "--config.evaluate.every_steps=0", "--processes=2"]
    command += [f"--coordinator=localhost:{free_port()}"]
    running = [
        subprocess.Popen(
            [*command, f"--process={number}"],
            env={**os.environ, **environment_of_two(), "SODA_LOST_SECONDS": "8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        while len(rows_of(workdir)) < 3 and all(one.poll() is None for one in running):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running[victim].send_signal(signal.SIGKILL)
        output = running[1 - victim].communicate(timeout=60)[0]
    finally:
        for one in running:
            one.kill()
            one.wait()
    assert running[1 - victim].returncode == LOST == 76, output
    lines = [
        line
        for line in output.splitlines()
        if line.startswith("soda: ") and f"process {victim} failed: " in line
    ]
    assert len(lines) == 1, output
    assert lines[0].startswith(f"soda: process {1 - victim} of 2: process {victim} failed: ")
    assert "restart the run" in lines[0] and "Traceback" not in output


STUDY = """
import sys
from pathlib import Path
port, number, datasets, folder, how = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
from soda_jax.scaling.execute import run_study
from soda_jax.scaling.study import Job, Study
from soda_jax.schema import run_config
from train_toys import tiny_config

# As on hosts without a shared disk: each process has a folder of its own.
settings = {"checkpoint__directory": f"{folder}/checkpoints", "checkpoint__every_steps": 0}
if how == "diverging":  # every update is a spike
    settings |= {"safety__spike_after": 0, "safety__max_skipped_in_a_row": 3}
config = run_config(tiny_config(Path(datasets), steps=16, **settings))
sys.exit(run_study(Study(Path(folder) / f"host_{number}", [Job("only", config, 16.0, {})]), 2))
"""


def test_the_processes_of_one_job_train_a_run_of_a_study_together(datasets, tmp_path):
    arguments = (str(datasets), str(tmp_path), "")
    codes, printed = run_two(STUDY, *arguments, environment=environment_of_two(), timeout=300)
    assert codes == [0, 0], printed
    assert "1 of 1 runs finished" in printed[0] and "FLOPs of the study" not in printed[1]
    table = (tmp_path / "host_0" / "results.csv").read_text().splitlines()
    assert len(table) == 2 and ",done," in table[1] and table[1].endswith(",8 x cpu")
    assert not (tmp_path / "host_1" / "results.csv").exists()


def test_the_processes_of_one_job_repeat_a_diverged_run_with_another_seed(datasets, tmp_path):
    arguments = (str(datasets), str(tmp_path), "diverging")
    codes, printed = run_two(STUDY, *arguments, environment=environment_of_two(), timeout=300)
    assert codes == [1, 1], printed
    assert printed[0].count("only diverged: step 3: 3 updates in a row were skipped") == 2
    assert "Traceback" not in "".join(printed)
    runs = tmp_path / "host_0" / "runs" / "only"
    events = [json.loads(line)["event"] for line in (runs / "attempts.jsonl").open()]
    assert events == ["started", "diverged"] * 2
    assert {file.name for file in runs.glob("seed_*")} == {"seed_0", "seed_1"}


def test_a_diverged_run_of_two_processes_ends_with_status_2_and_one_message(datasets, tmp_path):
    config = tmp_path / "spikes.py"
    config.write_text(LONG.format(datasets=str(datasets)))
    options = ["--config.safety.spike_after=0", "--config.safety.max_skipped_in_a_row=3"]
    program = (
        "import sys; from soda_jax import cli; "
        "sys.exit(cli.main([*sys.argv[3:], f'--coordinator=localhost:{sys.argv[1]}', "
        "f'--process={sys.argv[2]}', '--processes=2']))"
    )
    arguments = ("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *options)
    codes, printed = run_two(program, *arguments, environment=environment_of_two(), timeout=300)
    assert codes == [2, 2], printed
    for text in printed:
        lines = [line for line in text.splitlines() if "updates in a row were skipped" in line]
        assert len(lines) == 1 and "Traceback" not in text, text
