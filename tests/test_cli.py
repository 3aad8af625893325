"""The `soda` program when the reader of its output exits early."""

import os
import signal
import subprocess
import sys

import pytest

from soda_jax import cli

CLOSED_PIPE = 128 + signal.SIGPIPE  # what a shell reports for `yes | head`


PLAN = ["plan", "--config=soda_600m", "--topology=h200:8", "--estimate"]


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [(["--help"], ""), (["plan", "--help"], ""), (PLAN, ""), (PLAN, "1")],
)
def test_a_closed_pipe_ends_every_command_quietly(arguments, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "soda_jax.cli", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, b"")


def test_an_error_of_another_pipe_is_raised(monkeypatch):
    def fail():
        raise BrokenPipeError("a socket")

    monkeypatch.setattr(cli, "main", fail)
    monkeypatch.setattr(sys, "argv", ["soda", "plan"])
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(BrokenPipeError, match="a socket"):
            cli.script()
