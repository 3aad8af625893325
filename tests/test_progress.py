"""A progress bar on a terminal does not change redirected output."""

import os
import pty
import re
import subprocess
import sys

import pytest

from soda_jax import progress

PROGRAM = """
from soda_jax.progress import track
for number in track(range(3), "at work"):
    print("result", number)
"""


def test_a_bar_does_not_change_redirected_output():
    terminal, end = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=end, env=environment
        )
        shown = os.read(terminal, 100_000).decode()
    finally:
        os.close(end)
        os.close(terminal)
    assert done.stdout.decode() == "result 0\nresult 1\nresult 2\n"
    assert "at work" in shown and "result" not in shown


# 40 units are left: 10 units took 10 s, or 60 units took 180 s.
@pytest.mark.parametrize(("seconds", "left"), [(0, 40), (170, 120)])
def test_the_time_left_after_a_restart_is_that_of_the_known_rate(
    monkeypatch, capsys, seconds, left
):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress("work", 100)
    now[0] += 1000  # compilation, data, an earlier run
    bar.restart(50, seconds)  # of which the time is not known, or is 170 s
    now[0] += 10
    bar.advance(10)
    found = re.search(r"60/100, about (\d+) s left", capsys.readouterr().err)
    assert found is not None and int(found[1]) == left


def test_a_bar_on_a_terminal_does_not_count_earlier_work_as_done_at_once(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = progress.Progress("work", 100)
    try:
        bar.advance(1)
        bar.restart(50, 0)
        bar.advance(1)
        (task,) = bar._bar.tasks
        assert task.completed == 51 and not task.speed
    finally:
        bar.close()
