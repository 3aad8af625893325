"""A step that does not finish: a sleeping hook in a real run, and the limits with a fake clock."""

import os
import subprocess
import sys
import threading
import time

import pytest
from process_toys import environment_of_two
from train_toys import tiny_config

from soda_jax.parallel.heartbeat import LOST
from soda_jax.train.loop import DONE, train
from soda_jax.train.watchdog import Watchdog

# The hook exceeds its limit after 2 s, the run ends after 4 s.
STUCK = """
import sys, time
from pathlib import Path
from train_toys import tiny_config
from soda_jax.train import loop

loop.FIRST_STEP = 1e6  # compilation may take any time

class Sleeper:
    every = 2

    def __call__(self, run):
        time.sleep(60)

config = tiny_config(Path(sys.argv[1]), mesh__data=2, safety__stuck_minutes=1 / 30)
loop.train(config, sys.argv[2], hooks=[Sleeper()])
"""


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def guard(tmp_path):
    """guard(minutes): a watchdog, its clock (a list of one number) and the messages it ended with."""

    def make(minutes):
        now, ended = [0.0], []
        return Watchdog(tmp_path, minutes, clock=lambda: now[0], end=ended.append), now, ended

    return make


def test_a_stuck_step_writes_all_stacks_once_and_ends_the_run_after_twice_the_limit(
    guard, tmp_path, capfd
):
    go, file = threading.Event(), tmp_path / "stacks-0.txt"
    helper = threading.Thread(target=go.wait, name="a helper of the test")
    helper.start()
    dog, now, ended = guard(0.01)
    with dog:
        dog.now("step 7")
        now[0] = 0.5  # of 0.6 seconds
        time.sleep(0.3)
        assert not file.exists()
        now[0] = 1.1
        until(lambda: file.exists() and file.read_text())
        time.sleep(0.3)
        assert not ended
        now[0] = 1.3
        until(lambda: ended)
    go.set()
    helper.join()
    text = file.read_text()
    assert text.strip() in capfd.readouterr().err
    assert text.count("step 7 has not finished after 0.0183 minutes; all stacks:") == 1
    for name in ("MainThread", "a helper of the test"):
        assert f"thread {name}:\n" in text
    assert "in test_a_stuck_step_writes_all_stacks" in text
    (message,) = ended
    assert message.startswith("step 7 has not finished after 0.0217 minutes; the stacks are in")
    assert str(file) in message


def test_each_activity_has_its_own_limit(guard, tmp_path):
    dog, now, ended = guard(0.01)
    with dog:
        dog.now("step 1", factor=4.0)
        now[0] = 2.0  # of 2.4 seconds
        time.sleep(0.3)
        for _ in range(5):
            dog.now("a hook")
            now[0] += 0.5
            time.sleep(0.1)
    assert not ended and not list(tmp_path.iterdir())


def test_zero_minutes_start_no_thread(guard):
    dog, _, _ = guard(0.0)
    with dog:
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_a_run_reports_each_activity(datasets, tmp_path, monkeypatch):
    activities = []
    monkeypatch.setattr(
        Watchdog, "now", lambda self, activity, factor=1.0: activities.append(activity)
    )

    class Hook:
        every = 2

        def __call__(self, run):
            return {}

    config = tiny_config(datasets, safety__stuck_minutes=0.0)
    assert train(config, tmp_path, hooks=[Hook()]) == DONE
    assert activities[:6] == [
        "starting",
        "step 1",
        "step 2",
        "Hook after step 2",
        "saving after step 2",
        "step 3",
    ]
    assert activities[-1] == "saving after step 6"


def test_a_run_with_a_stuck_hook_names_it_and_ends(datasets, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, str(datasets), str(tmp_path / "run")],
        env={**os.environ, **environment_of_two()},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode == LOST, done.stderr
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert "process 0: Sleeper after step 2 has not finished after" in stacks
    assert "line 13, in __call__" in stacks and "thread loader" in stacks
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("soda: Sleeper after step 2 has not finished after")
