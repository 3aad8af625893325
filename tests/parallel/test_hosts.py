"""Communication in a single process, and between two real processes of which one fails."""

import os
from pathlib import Path

import jax
import pytest
from toys import run_two

from soda_jax.parallel import hosts
from soda_jax.parallel.heartbeat import LOST


def test_a_single_process_sends_no_messages(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    hosts.start()  # single process: must not look for a coordinator
    assert hosts.is_single_process() and hosts.is_primary() and jax.process_index() == 0
    assert hosts.any_process(True) and not hosts.any_process(False)
    assert hosts.gather_json([1, {"a": None}]) == [[1, {"a": None}]]
    assert hosts.broadcast_json({"step": 3, "ü": [1.5, None]}) == {"step": 3, "ü": [1.5, None]}
    hosts.barrier("here")


def test_single_process_just_raises():
    with pytest.raises(KeyError), hosts.fail_together():
        raise KeyError("mine")


BEGIN = """
import sys, time
port, number, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from soda_jax.errors import UserError
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
hosts.is_single_process()  # initializes the devices of all processes
"""
AGREE = """
for n in range(50):
    assert hosts.any_process(n % 7 == number, "a") == (n % 7 < 2)
    assert hosts.gather_json([n, number], "b") == [[n, 0], [n, 1]]
    assert hosts.broadcast_json([n, number], "c") == [n, 0]
    hosts.barrier("d")
print("agreed", flush=True)
"""
MISSING = """
if number == 1:
    time.sleep(60)
hosts.barrier("the meeting", 3)
"""
FAIL = """
with hosts.fail_together():
    if number == 1:
        raise UserError("no disk") if how == "user" else KeyError("a bug")
    time.sleep(60)
"""


def run(program, how=""):
    root = Path(__file__).parents[2]
    flags = {"PYTHONPATH": str(root), "SODA_LOST_SECONDS": "30"}
    return run_two(BEGIN + program, how, environment={**os.environ, **flags}, timeout=60)


def test_two_processes_agree_repeatedly_and_exit_regularly():
    codes, output = run(AGREE)
    assert codes == [0, 0] and all("agreed" in text for text in output), output
    assert "process 0 of 2 from flags, coordinator localhost:" in output[0]
    assert "from flags" not in output[1] and "failed" not in "".join(output)


def test_a_process_that_misses_a_barrier_is_named_with_the_barrier():
    codes, output = run(MISSING)
    assert codes == [LOST, LOST], output
    line = "barrier 'the meeting': process 1 did not arrive within 3 s"
    assert f"soda: process 0 of 2: {line}" in output[0]
    assert f"soda: process 1 of 2: {line}" in output[1]


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [("user", 2, "process 1 stopped: error: no disk"), ("bug", 1, "process 1 stopped: KeyError: ")],
)
def test_a_process_that_fails_ends_the_others(how, status, message):
    codes, output = run(FAIL, how)
    assert codes == [status, status], output
    for number, text in enumerate(output):
        assert f"soda: process {number} of 2: {message}" in text
    assert ("Traceback" in output[1]) == (how == "bug") and "Traceback" not in output[0]


def test_a_process_reports_that_the_others_did_not_connect():
    codes, output = run_two(
        "import sys, os; os.environ['SODA_JOIN_SECONDS'] = '4'\n"
        "if sys.argv[2] == '1': sys.exit(0)\n" + BEGIN,
        "",
        environment={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    assert codes == [LOST, 0], output
    assert "soda: process 0 of 2 from flags, coordinator localhost:" in output[0]
    assert "not all processes connected within 4 s" in output[0]
    assert "stack trace" not in output[0]
