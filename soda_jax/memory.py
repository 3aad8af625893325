"""The C allocator's settings for a process that trains on a CPU.

A step's temporaries, hundreds of MB, are one allocation of XLA. By default glibc maps it afresh at
each step and gives it back after, so that every step takes a page fault for every 4 KiB it touches.
"""

import os
import platform
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
# Huge pages; no mapping of single allocations; freed memory stays with the process.
SETTINGS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
)
_OLDEST = (2, 35)  # the first glibc with glibc.malloc.hugetlb
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages(environment: dict[str, str] | None = None) -> None:
    """Replaces this process by itself under `SETTINGS`: glibc reads them only when a program starts.

    Does nothing where they cannot help (no glibc of 2.35 or later, huge pages switched off) and where
    the user has set the allocator, with GLIBC_TUNABLES or a MALLOC_ variable.

    Args:
      environment: the variables to look at and to start with; `os.environ` by default.
    """
    environment = dict(os.environ) if environment is None else environment
    if not _helps(environment):
        return
    before = environment.get(TUNABLES)
    environment[TUNABLES] = f"{before}:{SETTINGS}" if before else SETTINGS
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _helps(environment: dict[str, str]) -> bool:
    library, version = platform.libc_ver()
    if library != "glibc" or not sys.executable:
        return False
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return False
    if "glibc.malloc." in environment.get(TUNABLES, "") or any(
        name.startswith("MALLOC_") for name in environment
    ):
        return False
    try:
        return "[never]" not in _KERNEL.read_text()
    except OSError:
        return False
