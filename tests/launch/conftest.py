"""A PATH of stand-ins, a command line that fails, and a checkout to launch from."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch_toys import PARTS, ROOT, Cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    """A PATH without any tool of a cloud; the test adds those that it means."""
    cloud = Cloud(tmp_path)
    cloud.path.mkdir()
    (tmp_path / "answers.json").write_text("[]")
    for part in PARTS:
        found = shutil.which(part)
        assert found, f"{part} is needed by the launch scripts"
        (cloud.path / part).symlink_to(found)
    (cloud.path / "python3").symlink_to(sys.executable)
    yield cloud
    assert not cloud.unused(), "the script asked less than the test expected"


@pytest.fixture
def fails(cloud: Cloud) -> Callable[..., str]:
    """fails(script, *arguments): asserts one line on stderr and status 2; returns the line."""

    def check(script: str, *arguments: str) -> str:
        done = cloud.run(script, *arguments)
        assert done.returncode == 2 and not done.stdout, done
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith(f"{Path(script).name}: error: "), lines
        return lines[0]

    return check


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with the launch scripts, all committed."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", folder / "launch")
    config = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    for command in (["init", "-q"], ["add", "-A"], [*config, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=folder, env=environment, check=True)
    return folder
