"""launch/local.sh with small programs instead of soda; a real run is in tests/train."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_toys import ROOT

SCRIPT = ROOT / "launch" / "local.sh"
# Creates its file in the folder, then prints the name of each signal and exits with the status of `on`.
# Blocked signals that wait together are taken in the order of their numbers: handlers can run in either.
WAITER = """
import os, pathlib, signal, sys, time
on = {{signal.SIGTERM: {term!r}, signal.SIGINT: {int!r}}}
signal.pthread_sigmask(signal.SIG_BLOCK, on)
pathlib.Path(sys.argv[-1].removeprefix("--process=")).touch()
while len(os.listdir()) < int(sys.argv[-2].removeprefix("--processes=")):
    time.sleep(0.05)
while True:
    received = signal.sigwait(on)
    print(signal.Signals(received).name.removeprefix("SIG"), flush=True)
    if on[received] is not None:
        sys.exit(on[received])
"""
# A shell starts its background jobs with SIGINT ignored, and a script cannot undo that.
INTERRUPTIBLE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


def run(*words: str, **options):
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=60, **options)


def start(folder, program, *options, processes=2):
    """Starts the program and waits until each process has announced itself."""
    words = [
        sys.executable,
        "-c",
        INTERRUPTIBLE,
        SCRIPT,
        f"--processes={processes}",
        *options,
        "--",
        sys.executable,
        "-c",
        program,
    ]
    pipe = subprocess.PIPE
    running = subprocess.Popen(words, cwd=folder, stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 30
    while True:
        ended = running.poll()  # asked first: all may announce themselves and one end meanwhile
        if len(list(folder.iterdir())) == processes:
            return running
        assert ended is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_each_process_gets_its_index_and_one_free_port():
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    given = ["my config", "it's", "$HOME", "", "*", "--a=b\nc"]
    done = run("--processes=3", "--", sys.executable, "-c", program, *given)
    assert done.returncode == 0 and not done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line[:4] for line in lines] == ["[0] ", "[1] ", "[2] "]
    found = [json.loads(line[4:]) for line in lines]
    coordinator = found[0][-3]
    host, port = coordinator.removeprefix("--coordinator=").split(":")
    assert host == "localhost" and 1024 < int(port) < 65536
    for number, words in enumerate(found):
        assert words == [*given, coordinator, "--processes=3", f"--process={number}"]


def test_every_line_of_both_streams_gets_the_number():
    program = "import sys; print('a\\n\\nb'); print('c', file=sys.stderr); print('end', end='')"
    done = run("--processes=1", "--", sys.executable, "-c", program)
    assert sorted(done.stdout.splitlines()) == ["[0] ", "[0] a", "[0] b", "[0] c", "[0] end"]


def test_simulated_devices_are_added_to_the_flags_that_are_set():
    program = "import os; print(os.environ['XLA_FLAGS'], os.environ['JAX_PLATFORMS'])"
    words = ("--processes=1", "--devices_per_process=4", "--", sys.executable, "-c", program)
    done = run(*words, env={**os.environ, "XLA_FLAGS": "--xla_a=1"})
    assert done.stdout == "[0] --xla_a=1 --xla_force_host_platform_device_count=4 cpu\n"


@pytest.mark.parametrize("name, status", [("TERM", 75), ("INT", 130)])
def test_a_signal_is_sent_to_all_processes_and_their_status_is_returned(tmp_path, name, status):
    running = start(tmp_path, WAITER.format(term=75, int=130), processes=3)
    running.send_signal(getattr(signal, "SIG" + name))
    output = running.communicate(timeout=30)[0]
    assert running.returncode == status
    assert sorted(output.splitlines()) == [f"[{i}] {name}" for i in range(3)]


def test_a_process_that_fails_takes_the_others_along(tmp_path):
    # As in a collective whose partner is gone: the others hear SIGTERM and stay.
    program = WAITER.format(term=None, int=None)
    fails = "if sys.argv[-1].endswith('=1'): sys.exit(7)\nwhile True:"
    program = program.replace("while True:", fails)
    begun = time.monotonic()
    running = start(tmp_path, program, "--grace=1", processes=3)
    out, errors = running.communicate(timeout=30)
    assert running.returncode == 7
    assert time.monotonic() - begun < 20
    assert set(out.splitlines()) == {"[0] TERM", "[2] TERM"}
    assert errors == "local.sh: a process ended with status 7: stopping the other processes\n"


def test_what_a_killed_process_has_started_ends_with_it(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True)\n"
    program = WAITER.format(term=None, int=None).replace("import os", child + "import os", 1)
    fails = "if sys.argv[-1].endswith('=1'): p.kill(); sys.exit(7)\nwhile True:"
    running = start(tmp_path, program.replace("while True:", fails), "--grace=0")
    out = running.communicate(timeout=30)[0]
    [survivor] = [
        int(line[4:]) for line in out.splitlines() if line[:4] == "[0] " and line[4:].isdigit()
    ]
    deadline = time.monotonic() + 10
    while _alive(survivor):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_75_waits_for_the_others_to_save(tmp_path):
    program = "import sys, time\nlate = sys.argv[-1].endswith('=1')\ntime.sleep(3 * late)\n"
    program += "print('saved'); sys.exit(75)"
    done = run("--processes=2", "--grace=1", "--", sys.executable, "-c", program)
    assert done.returncode == 75 and not done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] saved", "[1] saved"]


def test_arguments_without_a_command_are_passed_to_soda_train(cloud):
    done = cloud.run("local.sh", "--processes=2", "--dry_run", "--", "--config=it's")
    soda, *words = shlex.split(done.stdout.splitlines()[1])
    assert soda in ("soda", str(ROOT / ".venv/bin/soda"))
    assert words == [
        "train",
        "--config=it's",
        "--coordinator=localhost:PORT",
        "--processes=2",
        "--process=1",
    ]
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("options", [(), ("--devices_per_process=2",)])
def test_a_command_that_is_not_there_is_named(fails, options):
    told = fails("local.sh", "--processes=2", *options, "--", "no-such-soda", "train")
    assert "error: no-such-soda is not on PATH" in told
