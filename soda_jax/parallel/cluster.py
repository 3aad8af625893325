"""How a process finds the others of its run: flags, variables, Slurm, Cloud TPU or Kubernetes.

jax reads the clusters; what is decided here is whether there is anything to join, and what is said
when half of it is missing. A laptop, a single TPU VM and a Slurm job of one task are alone.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soda_jax.errors import UserError
from soda_jax.parallel import private

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
POD = "JOB_COMPLETION_INDEX"  # of an indexed Job of Kubernetes
_MEND = "give --coordinator=HOST:PORT --processes=N --process=I, or --processes=1 to run alone"


@dataclass(frozen=True)
class Found:
    """The place of this process in its run.

    Attributes:
      way: how it was found, as a user calls it.
      coordinator: `host:port` of process 0.
      count: number of processes.
      number: of this process, from 0.
      devices: the GPUs that this process takes, where several share a machine; None: all it sees.
    """

    way: str
    coordinator: str
    count: int
    number: int
    devices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return (
            f"process {self.number} of {self.count} by {self.way}, coordinator {self.coordinator}"
        )


def find(
    coordinator: str | None = None,
    count: int | None = None,
    number: int | None = None,
    *,
    seconds: float = 300,
) -> Found | None:
    """The place of this process, or None if it is alone.

    Args:
      coordinator: `host:port` of process 0, as the flag says.
      count: number of processes; 1: alone, whatever the environment says.
      number: of this process, from 0.
      seconds: how long to wait for the name of the coordinator to be known, in a cluster.

    Raises:
      UserError: if flags or environment say only half of it, or something that cannot be.
    """
    flags = {"--coordinator": coordinator, "--processes": count, "--process": number}
    if count == 1 and number in (None, 0):
        return None
    if any(value is not None for value in flags.values()):
        return _whole("flags", flags, "give all three, or --processes=1 to run alone")
    told = _from_variables()
    if told[COUNT] == 1:
        return None
    if None not in told.values():
        return _whole(ADDRESS, told, "")
    found = _from_cluster(told, seconds)
    if found is None and any(told[name] is not None for name in (ADDRESS, COUNT, NUMBER)):
        _whole("environment", told, "set all three, or none to run alone")
    return found


def _whole(way: str, values: Mapping[str, Any], mend: str) -> Found:
    """`Found` of an address, a count and a number, once they are there and make sense."""
    missing = [name for name, value in values.items() if value is None]
    if missing:
        given = ", ".join(f"{name}={v}" for name, v in values.items() if v is not None)
        raise UserError(f"{given} without {' and '.join(missing)}: {mend}")
    (address, count, number), names = values.values(), tuple(values)
    if not re.fullmatch(r"\S+:\d+", address):
        raise UserError(f"{names[0]}={address}: write HOST:PORT of process 0")
    if not 0 <= number < count:
        raise UserError(
            f"{names[2]}={number} of {names[1]}={count}: processes are numbered from 0 to the count - 1"
        )
    return Found(way, address, count, number)


def _from_variables() -> dict[str, Any]:
    """What the variables say; a pod of an indexed Job has its number already."""
    address, count, number = os.environ.get(ADDRESS), _whole_number(COUNT), _whole_number(NUMBER)
    if number is None and address and count is not None:
        number = _whole_number(POD)
    return {ADDRESS: address or None, COUNT: count, NUMBER: number}


def _whole_number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{name}={text} is not a whole number; mend or unset it")
    return int(text)


def _from_cluster(told: Mapping[str, Any], seconds: float) -> Found | None:
    """What jax reads of the cluster that this process runs in; `told` goes before it."""
    name = _cluster_name()
    if name is None:
        return None
    cluster = private.clusters()[name]
    try:
        if name == "Kubernetes":
            cluster.is_env_present()  # this is what opens its API
        count = cluster.get_process_count() if told[COUNT] is None else told[COUNT]
        if count == 1:
            return None
        number = cluster.get_process_id() if told[NUMBER] is None else told[NUMBER]
        address = told[ADDRESS] or cluster.get_coordinator_address(
            timeout_secs=seconds, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )
    except Exception as error:  # of whatever kind: its environment is not as jax expects it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} was found, but not the processes of the run ({reason}): {_MEND}"
        ) from error
    devices = _own_gpus() if name == "Slurm" else None
    found = _whole(name, {"coordinator": address, "count": count, "process": number}, "")
    return Found(name, found.coordinator, count, number, devices)


def _cluster_name() -> str | None:
    """Which of jax's clusters to ask; asking costs the Cloud TPU a look at its metadata server."""
    tasks = _whole_number("SLURM_NTASKS") or 1
    if tasks > 1:
        missing = [
            name
            for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
            if name not in os.environ
        ]
        if missing:
            raise UserError(
                f"SLURM_NTASKS={tasks}, but {missing[0]} is not set: this is not a task of a Slurm "
                "step. Start it with srun, or give --processes=1 to run alone"
            )
        return "Slurm"
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms.split(","):
        for name in ("GKE TPU", "Cloud TPU"):
            if _is_present(name):
                return name
    if POD not in os.environ:
        return None
    if importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    raise UserError(
        f"{POD}={os.environ[POD]}: this is a pod of an indexed Job, but nothing says of how many; "
        f"set {ADDRESS} (host:port of pod 0) and {COUNT}, or {COUNT}=1 if it is the only one"
    )


def _is_present(name: str) -> bool:
    try:
        return private.clusters()[name].is_env_present()
    except Exception as error:  # the metadata server does not answer
        raise UserError(f"{name}: its metadata cannot be read ({error}); {_MEND}") from error


def _own_gpus() -> tuple[int, ...] | None:
    """The GPUs of a Slurm task that shares those of a machine with others; else None: all it sees.

    One task a machine takes every GPU of it, and so does a task to which Slurm shows but one.
    """
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):  # jax reads it
        return None
    tasks: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        tasks += [int(match[1])] * int(match[2] or 1) if match else []
    node = _whole_number("SLURM_NODEID") or 0
    here = tasks[node] if node < len(tasks) else 1
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if here == 1 or len(visible) == 1:
        return None
    each = max(1, len(visible) // here)
    first = int(os.environ["SLURM_LOCALID"]) * each
    return tuple(range(first, first + each))
