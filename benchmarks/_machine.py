"""Describes the machine; every benchmark prints this description with its table."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Returns the CPU model, the architecture, and the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_model() or 'CPU of unknown model'} ({platform.machine()}), {cores} cores"


def _model() -> str:
    """Returns the model name of the CPU; a virtual machine may report only a family."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
