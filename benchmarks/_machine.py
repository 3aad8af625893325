"""The machine in words, so that no table stands without it."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Model of the CPU, architecture, and the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_model() or 'CPU of unknown model'} ({platform.machine()}), {cores} cores"


def _model() -> str:
    """The CPU's own name: virtual machines may show a family and no more."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
