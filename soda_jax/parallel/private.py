"""All that this package takes from inside jax; checked with jax 0.10.2, 0.11.2 and 0.12.0.

`jax.distributed` finds clusters and runs a coordination service (barriers and a key-value store on
process 0), but its public part neither tells what it would find nor lends the service out.
"""

from typing import Any


def clusters() -> dict[str, Any]:
    """jax's classes that read a cluster's environment, by the name that a user knows."""
    from jax._src import clusters

    return {
        "Slurm": clusters.SlurmCluster,
        "GKE TPU": clusters.GkeTpuCluster,
        "Cloud TPU": clusters.GceTpuCluster,
        "Kubernetes": clusters.K8sCluster,
    }


def client() -> Any:
    """The client of the coordination service; None in a process that has joined no others."""
    from jax._src import distributed

    return distributed.global_state.client


def hold_aborts() -> None:
    """Lets an abort of this process sleep for six seconds first.

    When the coordinator goes, jax aborts the others within the same millisecond, from a thread of
    its own and with nothing but a stack trace. With libc's `sleep` as the handler of SIGABRT (its
    argument is then the number of the signal, 6) our own listener gets to say who was lost.
    """
    import ctypes
    import signal

    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
