"""What the compiler is told for each kind of hardware, beside the program.

The options go with the program to `jax.jit`, not into the environment: all hosts and `soda plan` compile
alike, and nothing has to be set before a run. `XLA_FLAGS` and `LIBTPU_INIT_ARGS` work as ever.
"""

from collections.abc import Mapping

Options = Mapping[str, bool | int | str]

# Without the first five every gather of weights and every sum of gradients of the compiled step stands
# alone in the schedule, the chip idle meanwhile.
TPU: Options = {
    # An exchange is cut into steps that run inside the products around it.
    "xla_tpu_enable_async_collective_fusion": True,
    # This also for gathers of weights, which fsdp makes in every layer.
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    # One exchange may run beside several products: weights are larger than what one hides.
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # The core multiplies while it exchanges.
    "xla_tpu_overlap_compute_collective_tc": True,
    # Gathers begin early and end late, so that there is something to run beside them.
    "xla_enable_async_all_gather": True,
}
GPU: Options = {
    # The scheduler moves the start of an exchange before, and its end behind, work that does not need it.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # The weights of the next layer are gathered while this one runs, across rounds of the scan.
    "xla_gpu_enable_pipelined_all_gather": True,
    # The gradients of the last layer are summed while this one runs.
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    # Two rounds of the scan share no buffer, so that the two above need no copies.
    "xla_gpu_enable_while_loop_double_buffering": True,
}
CPU: Options = {
    # The moments are overwritten where they lie. By default each is copied first, because the update
    # reads the old one as well: without need, since all of it reads before it writes.
    "xla_cpu_copy_insertion_use_region_analysis": True,
}

_BY_PLATFORM: Mapping[str, Options] = {"tpu": TPU, "gpu": GPU, "cpu": CPU}


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """Options of `jax.jit` for the devices of a platform."""
    return dict(_BY_PLATFORM.get(platform, {}))
