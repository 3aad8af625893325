"""With one process, and with two real ones that do not keep together."""

import os
from pathlib import Path

import pytest
from toys import run_two

from soda_jax.parallel import hosts
from soda_jax.parallel.peers import LOST


def test_one_process_answers_for_itself(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    hosts.start()  # alone: must not look for a coordinator
    assert hosts.alone() and hosts.is_first() and hosts.process_index() == 0
    assert hosts.any_process(True) and not hosts.any_process(False)
    assert hosts.all_processes(True) and not hosts.all_processes(False)
    assert hosts.broadcast_json({"step": 3, "ü": [1.5, None]}) == {"step": 3, "ü": [1.5, None]}
    hosts.barrier("here")


def test_one_process_just_raises():
    with pytest.raises(KeyError), hosts.together():
        raise KeyError("mine")


BEGIN = """
import sys, time
port, number, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from soda_jax.errors import UserError
from soda_jax.parallel import hosts
hosts.start(f"localhost:{port}", 2, number)
hosts.alone()  # the devices of all are known from here on
"""
AGREE = """
for n in range(50):
    assert hosts.any_process(n % 7 == number, "a") == (n % 7 < 2)
    assert hosts.all_processes(n % 7 != number, "b") == (n % 7 > 1)
    assert hosts.broadcast_json([n, number], "c") == [n, 0]
    hosts.barrier("d")
print("agreed", flush=True)
"""
ALONE = """
if number == 1:
    time.sleep(60)
hosts.barrier("the meeting", 3)
"""
FAIL = """
with hosts.together():
    if number == 1:
        raise UserError("no disk") if how == "user" else KeyError("a bug")
    time.sleep(60)
"""


def run(program, how=""):
    root = Path(__file__).parents[2]
    flags = {"PYTHONPATH": str(root), "SODA_LOST_SECONDS": "30"}
    return run_two(BEGIN + program, how, environment={**os.environ, **flags}, timeout=60)


def test_two_processes_agree_again_and_again_and_leave_in_order():
    codes, told = run(AGREE)
    assert codes == [0, 0] and all("agreed" in text for text in told), told
    assert "process 0 of 2 by flags, coordinator localhost:" in told[0]
    assert "by flags" not in told[1] and "lost" not in "".join(told)


def test_a_process_that_misses_a_barrier_is_named_with_it():
    codes, told = run(ALONE)
    assert codes == [LOST, LOST], told
    line = "barrier 'the meeting': process 1 did not come within 3 s"
    assert f"soda: process 0 of 2: {line}" in told[0]
    assert f"soda: process 1 of 2: {line}" in told[1]


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [("user", 2, "process 1 stopped: error: no disk"), ("bug", 1, "process 1 stopped: KeyError: ")],
)
def test_a_process_that_fails_takes_the_others_along(how, status, message):
    codes, told = run(FAIL, how)
    assert codes == [status, status], told
    for number, text in enumerate(told):
        assert f"soda: process {number} of 2: {message}" in text
    assert ("Traceback" in told[1]) == (how == "bug") and "Traceback" not in told[0]


def test_a_process_whose_company_does_not_come_says_so():
    codes, told = run_two(
        "import sys, os; os.environ['SODA_JOIN_SECONDS'] = '4'\n"
        "if sys.argv[2] == '1': sys.exit(0)\n" + BEGIN,
        "",
        environment={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    assert codes == [LOST, 0], told
    assert "soda: process 0 of 2 by flags, coordinator localhost:" in told[0]
    assert "not all processes came within 4 s" in told[0] and "stack trace" not in told[0]
