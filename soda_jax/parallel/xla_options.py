"""XLA compiler options for each platform.

The options are passed to `jax.jit` instead of being set in environment variables, so that all hosts
and `soda plan` use the same options without setup. `XLA_FLAGS` and `LIBTPU_INIT_ARGS` still apply.
"""

from collections.abc import Mapping

Options = Mapping[str, bool | int | str]

# Without these options, the compiled step does not overlap all-gathers of weights or reductions of
# gradients with computation.
TPU: Options = {
    # Splits a collective into steps that run inside the surrounding matrix products.
    "xla_tpu_enable_async_collective_fusion": True,
    # Applies the option above to all-gathers of weights, which fsdp needs in every layer.
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    # A collective may overlap several products: one matmul is too short to hide the all-gather.
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # The TensorCore computes during a collective.
    "xla_tpu_overlap_compute_collective_tc": True,
    # All-gathers start early and finish late, so that they overlap computation.
    "xla_enable_async_all_gather": True,
}
GPU: Options = {
    # Schedules independent computation between the start and the end of a collective.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Gathers the weights of the next layer during this one, across iterations of the scan.
    "xla_gpu_enable_pipelined_all_gather": True,
    # Reduces the gradients of the previous layer during this one.
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    # Consecutive iterations of the scan use different buffers, so that the two options above need
    # no copies.
    "xla_gpu_enable_while_loop_double_buffering": True,
}
CPU: Options = {
    # Updates the optimizer moments in place. By default XLA copies each moment first, because the
    # update also reads the old value.
    "xla_cpu_copy_insertion_use_region_analysis": True,
}

_BY_PLATFORM: Mapping[str, Options] = {"tpu": TPU, "gpu": GPU, "cpu": CPU}


def compiler_options(platform: str) -> dict[str, bool | int | str]:
    """Returns the `compiler_options` of `jax.jit` for a platform."""
    return dict(_BY_PLATFORM.get(platform, {}))
