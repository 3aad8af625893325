"""Finds the processes of a run from flags, environment variables, or jax's cluster detection.

The classes in `jax._src.clusters` read the environment of each kind of cluster. Unlike
`jax.distributed.initialize`, this module falls back to a single process instead of failing, and it
reports incomplete settings in one line.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soda_jax.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
POD_INDEX = "JOB_COMPLETION_INDEX"  # set in the pods of an indexed Kubernetes Job
_FIX = (
    "pass --coordinator=HOST:PORT --processes=N --process=I, or --processes=1 for a single process"
)


@dataclass(frozen=True)
class ProcessInfo:
    """The index of this process, the number of processes and the coordinator address.

    Attributes:
      method: how the processes were found, for messages.
      coordinator: `host:port` of process 0.
      count: number of processes.
      index: index of this process, from 0.
      local_devices: indices of the GPUs of this process if several processes share a machine; None
        for all visible GPUs.
    """

    method: str
    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"process {self.index} of {self.count} from {self.method}, coordinator {self.coordinator}"


def find_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: float = 300,
) -> ProcessInfo | None:
    """Returns the `ProcessInfo` of this process, or None if the run has a single process.

    Args:
      coordinator: `host:port` of process 0 (`--coordinator`).
      count: number of processes (`--processes`); 1 ignores the environment.
      index: index of this process, from 0 (`--process`).
      timeout: seconds to wait until the name of the coordinator resolves in a cluster.

    Raises:
      UserError: if flags or environment variables are incomplete or invalid, or cluster detection
        fails.
    """
    flags = {"--coordinator": coordinator, "--processes": count, "--process": index}
    if count == 1 and index in (None, 0):
        return None
    if any(value is not None for value in flags.values()):
        return _checked("flags", flags, "pass all three, or --processes=1 for a single process")
    variables = _read_variables()
    if variables[COUNT] == 1:
        return None
    if None not in variables.values():
        return _checked(ADDRESS, variables, "")
    found = _from_cluster(variables, timeout)
    if found is None and any(variables[name] is not None for name in (ADDRESS, COUNT, INDEX)):
        _checked("environment", variables, "set all three, or none for a single process")
    return found


def _checked(method: str, values: Mapping[str, Any], fix: str) -> ProcessInfo:
    """Returns the `ProcessInfo` of an address, a count and an index after checking them."""
    missing = [name for name, value in values.items() if value is None]
    if missing:
        given = ", ".join(f"{name}={v}" for name, v in values.items() if v is not None)
        raise UserError(f"{given} without {' and '.join(missing)}: {fix}")
    (address, count, index), names = values.values(), tuple(values)
    if not re.fullmatch(r"\S+:\d+", address):
        raise UserError(f"{names[0]}={address} must be HOST:PORT of process 0")
    if not 0 <= index < count:
        raise UserError(
            f"{names[2]}={index} with {names[1]}={count}: the index must be in 0–{count - 1}"
        )
    return ProcessInfo(method, address, count, index)


def _read_variables() -> dict[str, Any]:
    """Reads the environment variables, with the index of an indexed Kubernetes Job as fallback."""
    address, count, index = os.environ.get(ADDRESS), _integer(COUNT), _integer(INDEX)
    if index is None and address and count is not None:
        index = _integer(POD_INDEX)
    return {ADDRESS: address or None, COUNT: count, INDEX: index}


def _integer(variable: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"{variable}={text} is not an integer; correct or unset it")
    return int(text)


def _from_cluster(variables: Mapping[str, Any], timeout: float) -> ProcessInfo | None:
    """Returns what jax detects, overridden by `variables`; None for a single process."""
    name, cluster = _detect()
    if cluster is None:
        return None
    try:
        count = variables[COUNT] or cluster.get_process_count()
        if count == 1:
            return None
        index = cluster.get_process_id() if variables[INDEX] is None else variables[INDEX]
        address = variables[ADDRESS] or cluster.get_coordinator_address(
            timeout_secs=timeout, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )
    except Exception as error:  # jax raises several types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name} was detected, but jax cannot find its processes ({reason}): {_FIX}"
        ) from error
    found = _checked(name, {"coordinator": address, "count": count, "process": index}, "")
    return ProcessInfo(name, found.coordinator, count, index, _local_gpus(name))


def _detect() -> tuple[str, Any]:
    """Returns the name of the cluster and jax's class that reads it, or ("", None)."""
    from jax._src import clusters

    tasks = _integer("SLURM_NTASKS") or 1
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    missing = [name for name in slurm if name not in os.environ]
    if tasks > 1 and missing:
        raise UserError(
            f"SLURM_NTASKS={tasks}, but {missing[0]} is not set: this is not a task of a Slurm "
            "step. Start it with srun, or pass --processes=1 for a single process"
        )
    # GKE is tried before Cloud TPU, whose detection waits for a metadata server. Slurm is not
    # tried for a job with one task, so that a TPU host in such a job is detected.
    candidates: dict[str, Any] = {"Open MPI": clusters.OmpiCluster}
    if tasks > 1:
        candidates["Slurm"] = clusters.SlurmCluster
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not platforms or "tpu" in platforms.split(","):
        candidates |= {"GKE TPU": clusters.GkeTpuCluster, "Cloud TPU": clusters.GceTpuCluster}
    if POD_INDEX in os.environ and importlib.util.find_spec("kubernetes"):
        candidates["Kubernetes"] = clusters.K8sCluster
    for name, cluster in candidates.items():
        try:
            if cluster.is_env_present():
                return name, cluster
        except Exception as error:  # the metadata server or the Kubernetes API failed
            raise UserError(f"{name}: its metadata cannot be read ({error}); {_FIX}") from error
    if POD_INDEX in os.environ:
        raise UserError(
            f"{POD_INDEX}={os.environ[POD_INDEX]}: this is a pod of an indexed Job, but the number of "
            f"pods is unknown; set {ADDRESS} (host:port of pod 0) and {COUNT}, or {COUNT}=1 if it is "
            "the only pod"
        )
    return "", None


def _local_gpus(cluster: str) -> tuple[int, ...] | None:
    """Returns the GPUs of a task that shares a machine with other tasks; None for all visible GPUs.

    jax would assign one GPU to each task. Here the GPUs in CUDA_VISIBLE_DEVICES are divided equally
    among the tasks of a machine; if the variable is not set, each task uses one GPU. The only task
    of a machine uses all GPUs, and a task that sees a single GPU uses that GPU.
    """
    if os.environ.get("JAX_LOCAL_DEVICE_IDS"):  # jax reads this variable
        return None
    if cluster == "Slurm":
        local_index, tasks = _integer("SLURM_LOCALID"), _slurm_tasks_on_this_node()
    elif cluster == "Open MPI":
        local_index = _integer("OMPI_COMM_WORLD_LOCAL_RANK")
        tasks = _integer("OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    else:
        return None
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if local_index is None or tasks == 1 or len(visible) == 1:
        return None
    gpus = max(1, len(visible) // tasks)
    return tuple(range(local_index * gpus, (local_index + 1) * gpus))


def _slurm_tasks_on_this_node() -> int:
    """Returns the task count of this node from SLURM_STEP_TASKS_PER_NODE, such as "8(x3),1"."""
    tasks: list[int] = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        tasks += [int(match[1])] * int(match[2] or 1) if match else []
    node = _integer("SLURM_NODEID") or 0
    return tasks[node] if node < len(tasks) else 1
