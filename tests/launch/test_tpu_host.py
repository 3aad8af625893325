"""launch/_tpu_host.sh, as the hosts of a pod run it, with a stand-in of soda."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launch_toys import ROOT

# Waits for a file `end` that holds its exit status; saves for a moment on SIGTERM.
SODA = """#!/usr/bin/env bash
trap 'echo saved; exit 75' TERM
echo "started $$ $*"
until [[ -e end ]]; do sleep 0.05; done
echo -n "no line break"
exit "$(cat end)"
"""


class Host:
    def __init__(self, home: Path):
        self.home, self.source = home, home / "soda-1"
        (self.source / ".venv/bin").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.source / "launch")
        soda = self.source / ".venv/bin/soda"
        soda.write_text(SODA)
        soda.chmod(0o755)
        self.environment = {**os.environ, "HOME": str(home), "HOSTNAME": "t1v-n-x-w-3"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.source / "launch/_tpu_host.sh", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def log(self) -> str:
        file = self.home / "soda-run/log"
        return file.read_text() if file.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def end(self, status: int) -> None:
        file = self.source / "partial"
        file.write_text(str(status))
        file.rename(self.source / "end")

    def pid(self) -> int:
        return int((self.home / "soda-run/pid").read_text())


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    yield host
    host.end(0)
    subprocess.run(["flock", tmp_path / "soda-run/lock", "true"], timeout=20, check=True)


@pytest.mark.parametrize("status", [0, 1, 75])
def test_follows_the_run_to_its_exit_status(host, status):
    running = host.start("train", "a-1", "--config=a b", "x'y")
    host.wait_for("started")
    host.end(status)
    printed = running.communicate(timeout=20)[0]
    assert running.returncode == status, printed
    assert printed.splitlines() == [
        f"[3] started {host.pid()} train --config=a b x'y",
        "[3] no line break",
    ]


def test_a_broken_connection_does_not_end_the_run_and_the_same_command_finds_it(host):
    running = host.start("train", "a-1", "--x")
    host.wait_for("started")
    pid = host.pid()
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=20)
    again, other = host.start("train", "a-1", "--x"), host.start("follow")
    time.sleep(0.2)
    host.end(75)
    for process in (again, other):
        assert "no line break" in process.communicate(timeout=20)[0]
        assert process.returncode == 75
    # Also after its end: gcloud may ask once more.
    late = host.start("train", "a-1", "--x")
    late.communicate(timeout=20)
    assert late.returncode == 75
    assert host.pid() == pid and f"started {pid}" in host.log() and "saved" not in host.log()


def test_the_next_attempt_ends_what_is_left_of_the_last_one(host):
    first = host.start("train", "a-1", "--x")
    host.wait_for("started")
    old = host.pid()
    second = host.start("train", "a-2", "--y")
    assert "[3] saved" in first.communicate(timeout=20)[0]
    host.wait_for("train --y")
    assert host.pid() != old
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)
    host.end(0)
    second.communicate(timeout=20)
    assert second.returncode == 0


def test_sigterm_at_shutdown_reaches_soda(host):
    running = host.start("train", "a-1")
    host.wait_for("started")
    os.kill(int((host.home / "soda-run/runner").read_text()), signal.SIGTERM)
    assert "[3] saved" in running.communicate(timeout=20)[0]
    assert running.returncode == 75


def test_a_run_that_was_killed_with_its_runner_is_an_error(host):
    running = host.start("train", "a-1")
    host.wait_for("started")
    for pid in (int((host.home / "soda-run/runner").read_text()), host.pid()):
        os.kill(pid, signal.SIGKILL)
    printed = running.communicate(timeout=20)[0]
    assert running.returncode == 2
    assert "error: the run on t1v-n-x-w-3 was killed" in printed


def test_install_takes_the_lock_and_the_tpu_extra_once(cloud, tmp_path):
    host = Host(tmp_path / "home")
    (tmp_path / "home/.local/bin").mkdir(parents=True)
    (cloud.path / "python3").unlink()
    cloud.add("python3", "uv")
    (cloud.path / "uv").rename(tmp_path / "home/.local/bin/uv")
    cloud.answer("python3", "pip", "uv")
    cloud.answer("uv", "venv", "3.11")
    cloud.answer("uv", "-r", "requirements.lock")
    cloud.answer("uv", "--constraint", "requirements.lock", "-e", ".[tpu]")
    for _ in range(2):
        done = cloud.run(host.source / "launch/_tpu_host.sh", "install", HOME=str(host.home))
        assert done.returncode == 0, done
    assert len(cloud.calls()) == 4


def test_install_that_fails_is_tried_again(cloud, tmp_path):
    host = Host(tmp_path / "home")
    (cloud.path / "python3").unlink()
    cloud.add("python3")
    for _ in range(2):
        cloud.answer("python3", "uv", code=1)
        done = cloud.run(host.source / "launch/_tpu_host.sh", "install", HOME=str(host.home))
        assert done.returncode == 1
