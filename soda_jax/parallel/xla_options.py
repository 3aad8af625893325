"""What the compiler is told for each kind of hardware, beside the program.

The options go with the program to `jax.jit`, not into the environment: all hosts and `soda plan` compile
alike, and nothing has to be set before a run. `XLA_FLAGS` and `LIBTPU_INIT_ARGS` work as ever.
"""

from collections.abc import Mapping

Options = Mapping[str, bool | int | str]

TPU: Options = {
    # Weights of the next layer are gathered, and gradients of the last one summed, while the chip
    # multiplies. Without these every gather of the compiled step stands alone in the schedule.
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}
GPU: Options = {
    # The scheduler moves the start of an exchange before, and its end behind, work that does not need it.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Exchanges of the scan over layers are carried over from one layer to the next.
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_while_loop_double_buffering": True,
}
CPU: Options = {}

_BY_PLATFORM: Mapping[str, Options] = {"tpu": TPU, "gpu": GPU, "cpu": CPU}


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """Options of `jax.jit` for the devices of a platform."""
    return dict(_BY_PLATFORM.get(platform, {}))
