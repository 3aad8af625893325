"""SIGTERM to one process stops all processes of a run in the same call of `reached`."""

import os
import signal
from pathlib import Path

import pytest
from toys import run_two

from soda_jax.parallel.preemption import StopRequest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys, time
port, index, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
from soda_jax.parallel import hosts
from soda_jax.parallel.preemption import StopRequest
hosts.start(f"localhost:{port}", 2, index)
with StopRequest() as request:
    for _ in range(calls):
        assert not request.reached()
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)  # the notice arrives within a second
    print("stopped in call", next(n for n in range(1, 100) if request.reached()), flush=True)
    assert request.reached(), "a request stays"
"""


NESTED = """
import os, signal, sys, time
port, index = sys.argv[1], int(sys.argv[2])
from soda_jax.parallel import hosts
from soda_jax.parallel.preemption import StopRequest
hosts.start(f"localhost:{port}", 2, index)
with StopRequest() as study:
    for _ in range(3):
        with StopRequest() as run:
            assert not any(run.reached() for _ in range(50))
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    with StopRequest() as run:
        print("stopped in call", next((n for n in range(1, 40) if run.reached()), None), flush=True)
    assert study.reached()
"""


def test_sigterm_between_two_runs_stops_both_processes_in_the_next_run():
    codes, output = run_two(NESTED, environment={"PYTHONPATH": str(ROOT)}, timeout=90)
    assert codes == [0, 0], output
    assert all("stopped in call 1\n" in text for text in output), output


@pytest.mark.parametrize("calls", [0, 3])
def test_sigterm_to_one_process_stops_both_in_the_next_call(calls):
    environment = {"PYTHONPATH": str(ROOT)}
    codes, output = run_two(PROGRAM, str(calls), environment=environment, timeout=90)
    assert codes == [0, 0], output
    assert all("stopped in call 1\n" in text for text in output), output


def test_a_single_process_stops_in_the_next_call_and_restores_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert not request.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.reached() and request.reached()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_reaches_the_outer_request():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.reached()
        assert outer.reached()
        with StopRequest() as next_one:
            assert not next_one.reached()
    assert signal.getsignal(signal.SIGTERM) is before
