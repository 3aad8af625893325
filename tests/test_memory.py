"""Allocator settings of a training process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from soda_jax import memory

PROGRAM = """
import os, pathlib, sys
from soda_jax import memory
memory._KERNEL = pathlib.Path(sys.argv[1])
print("start", flush=True)
memory.restart_with_huge_pages()
print("run", os.getpid(), os.environ.get("GLIBC_TUNABLES", ""), *sys.argv[1:])
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Returns the file in which the kernel reports that it has huge pages."""
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    monkeypatch.setattr(memory, "_KERNEL", file)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return file


@pytest.fixture
def started(monkeypatch):
    """Collects the calls of `execve` instead of running them."""
    calls: list = []
    monkeypatch.setattr(memory.os, "execve", lambda *call: calls.append(call))
    return calls


def test_other_tunables_of_the_user_are_kept(kernel, started):
    memory.restart_with_huge_pages({"GLIBC_TUNABLES": "glibc.rtld.nns=5", "HOME": "/x"})
    ((program, arguments, environment),) = started
    assert program == arguments[0] == sys.executable
    assert environment == {
        "HOME": "/x",
        "GLIBC_TUNABLES": f"glibc.rtld.nns=5:{memory.SETTINGS}",
    }


@pytest.mark.parametrize(
    "environment",
    [{"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, {"MALLOC_ARENA_MAX": "2"}],
)
def test_an_allocator_that_the_user_configured_is_not_changed(kernel, started, environment):
    memory.restart_with_huge_pages(environment)
    assert not started


@pytest.mark.parametrize("library", [("glibc", "2.34"), ("", "")])
def test_no_restart_with_another_or_an_older_library(kernel, started, monkeypatch, library):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: library)
    memory.restart_with_huge_pages({})
    assert not started


def test_no_restart_if_the_kernel_has_no_huge_pages(kernel, started):
    kernel.write_text("always madvise [never]\n")
    memory.restart_with_huge_pages({})
    kernel.unlink()
    memory.restart_with_huge_pages({})
    assert not started


@pytest.mark.skipif(memory.platform.libc_ver() < ("glibc", "2.35"), reason="needs glibc 2.35")
def test_the_process_restarts_once_with_the_same_arguments(kernel):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", PROGRAM, str(kernel), "two words", "--x=1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines[:2] == ["start", "start"], "exactly one restart"
    assert lines[2] == f"run {process.pid} {memory.SETTINGS} {kernel} two words --x=1"
