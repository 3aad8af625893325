"""Sets options of the C allocator for training on a CPU.

XLA allocates the temporaries of a step, hundreds of MB, at once. By default glibc maps this memory at each
step and unmaps it afterwards, so every step has a page fault for each 4 KiB that it touches.
"""

import os
import platform
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
# Use huge pages, do not mmap large allocations, and keep freed memory in the process.
SETTINGS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"
)
_OLDEST = (2, 35)  # the first glibc with glibc.malloc.hugetlb
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages(environment: dict[str, str] | None = None) -> None:
    """Restarts this process with `SETTINGS`, which glibc reads only at the start of a program.

    Does nothing if glibc is older than 2.35 or not used, if huge pages are disabled, or if the user
    has configured the allocator with GLIBC_TUNABLES or a MALLOC_ variable.

    Args:
      environment: environment variables of the restarted process; `os.environ` by default.
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
