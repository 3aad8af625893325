"""A progress bar on a terminal does not change redirected output."""

import os
import pty
import subprocess
import sys

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
