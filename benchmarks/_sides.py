"""Runs the sides of a comparison in turn, so that a slow phase of the machine affects all of them.

A side is a worker script (`_worker.py` has the protocol) with a separate interpreter. On a CPU all
sides stay in memory and run one after another, round by round; a side sleeps while another runs. On
an accelerator they would not fit into memory together, so a side is started anew for each turn.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from soda_jax.errors import UserError
from soda_jax.progress import track

START_LIMIT, TURN_LIMIT = 1200.0, 300.0  # seconds after which a side counts as hung
_HERE = Path(__file__).parent


class SideError(Exception):
    """Raised if a side cannot run, has exited or hangs; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Describes how to start a side.

    Attributes:
      python: interpreter.
      worker: script in this folder.
      order: what to build; `_worker.serve` passes it to the script.
      environment: variables in addition to those of this process.
    """

    python: str
    worker: str
    order: Mapping[str, Any]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Turns:
    """The results of a side.

    Attributes:
      ready: the worker's `ready` message, see `_worker.py`; None if it was never sent.
      answers: one for each round, with `steps` and `seconds`.
      missing: why there are no (more) answers; empty if the side has not failed.
    """

    ready: dict[str, Any] | None = None
    answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    missing: str = ""


class Worker:
    """A running side."""

    def __init__(self, command: Command):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in `stop`
        self._lines: queue.Queue[str | None] = queue.Queue()
        try:
            self._process = subprocess.Popen(
                [command.python, str(_HERE / command.worker), json.dumps(command.order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, **command.environment},
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise SideError(f"{command.python}: {error.strerror}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input = self._process.stdin
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.put(line)
        self._lines.put(None)

    def ready(self) -> dict[str, Any]:
        """Waits for the first steps; returns the `ready` message, or raises SideError."""
        answer = self._answer(START_LIMIT)
        if "missing" in answer:
            raise SideError(answer["missing"])
        return answer["ready"]

    def run(self, steps: int) -> dict[str, Any]:
        """Trains `steps` steps; returns the worker's answer and `steps`."""
        with contextlib.suppress(BrokenPipeError):  # `_answer` raises the reason
            self._input.write(json.dumps({"steps": steps}) + "\n")
            self._input.flush()
        return {"steps": steps, **self._answer(TURN_LIMIT)}

    def _answer(self, limit: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise SideError(f"no answer in {limit:.0f} s") from None
        if line is None:
            raise SideError(f"exit status {self._process.wait()}: {self._last_words()}")
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if "Error" in line] or lines
        return errors[-1].strip()[:300] if errors else "nothing on standard error"

    def stop(self) -> None:
        """Kills the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._errors.close()


def take_turns(
    commands: Mapping[str, Command], rounds: int, seconds: float, resident: bool, what: str = ""
) -> dict[str, Turns]:
    """Runs the sides in turn.

    Args:
      commands: the sides by name; the first round runs them in this order, the next in reverse.
      rounds: turns of each side.
      seconds: approximate length of a turn, which has a whole number of steps, at least one.
      resident: keep all workers in memory; otherwise only one exists at a time.
      what: description for the progress bar.
    """
    turns = {name: Turns() for name in commands}
    workers: dict[str, Worker] = {}
    try:
        for number in track(range(rounds), what):
            order = list(commands.items())
            # In alternating order, so that no side always follows the same other side.
            for name, command in reversed(order) if number % 2 else order:
                if not turns[name].missing:
                    _turn(name, command, turns[name], workers, seconds)
                    if (not resident or turns[name].missing) and name in workers:
                        workers.pop(name).stop()
    finally:
        for worker in workers.values():
            worker.stop()
    return turns


def _turn(
    name: str, command: Command, turns: Turns, workers: dict[str, Worker], seconds: float
) -> None:
    try:
        if name not in workers:
            if (
                turns.ready is not None
            ):  # failed attempts of a new search would count in the peak memory
                setting = turns.ready["setting"]
                command = dataclasses.replace(command, order={**command.order, "setting": setting})
            workers[name] = Worker(command)
            turns.ready = workers[name].ready()
        assert turns.ready is not None
        steps = max(1, round(seconds / turns.ready["first_step"]))
        turns.answers.append(workers[name].run(steps))
    except SideError as error:
        turns.missing = str(error)


def platform_here() -> str:
    """Returns `cpu`, `gpu` or `tpu`; jax runs in a child process, so no GPU memory is used here."""
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    answer = subprocess.run(ask, capture_output=True, text=True, timeout=START_LIMIT)
    if answer.returncode:
        raise UserError(f"jax finds no device: {(answer.stderr.splitlines() or [''])[-1]}")
    return answer.stdout.split()[-1]
