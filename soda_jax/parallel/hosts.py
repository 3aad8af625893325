"""What the processes of a run tell each other; with one process nothing is sent.

Every process of the run calls these functions, in the same order. They wait for each other.
"""

import json
import os
from typing import Any


def start(
    coordinator: str | None = None, process_count: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run, before any other use of jax.

    Args:
      coordinator: `host:port` of process 0. Without it the environment decides: a Slurm step of
        several tasks, or JAX_COORDINATOR_ADDRESS; else this process is alone and nothing happens.
      process_count: number of processes; found by jax on a cluster that it knows.
      process_id: number of this process, from 0; found likewise.
    """
    cluster = "JAX_COORDINATOR_ADDRESS" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if coordinator is None and not cluster:
        return
    import jax

    jax.distributed.initialize(coordinator, process_count, process_id)


def alone() -> bool:
    """True if the run is one process."""
    import jax

    return jax.process_count() == 1


def is_first() -> bool:
    """True in process 0, the one that writes what is written once."""
    import jax

    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """True everywhere if any process says True."""
    return any(_gather(flag))


def all_processes(flag: bool) -> bool:
    """True everywhere if every process says True."""
    return all(_gather(flag))


def _gather(flag: bool) -> list[bool]:
    if alone():
        return [bool(flag)]
    import numpy as np
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.asarray([bool(flag)])).reshape(-1).tolist()


def broadcast_json(value: Any) -> Any:
    """The value that process 0 passes (plain JSON), in every process; others' are ignored."""
    if alone():
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0)
    # Arrays of a broadcast have one shape everywhere, so the length goes first.
    length = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = data if is_first() else np.zeros(length, np.uint8)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return json.loads(sent.astype(np.uint8).tobytes())


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if not alone():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
