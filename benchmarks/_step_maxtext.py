"""Worker of `train_step.py`: Qwen3 of MaxText, the jitted step of its pre-training loop."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from _worker import MissingError, Step, jax_peak_bytes, serve

INSTALL = (
    "MaxText needs Python 3.12, jax below 0.12 and the packages in docs/performance.md; give its "
    "interpreter with --maxtext_python=PATH"
)


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the settings to try: policies that keep ever less, on whole logits, then on parts.

    No policy of MaxText keeps more than the first: "none" recomputes everything, as "full" does.
    """
    if order["platform"] == "cpu":
        return [{"remat": "minimal_with_context", "parts": 1}]
    return [
        {"remat": remat, "parts": parts}
        for parts in (1, 8)
        for remat in ("minimal_with_context", "minimal", "full")
    ]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Builds the step: f32 parameters, bf16 arithmetic on an accelerator."""
    import importlib.metadata

    import jax
    import numpy as np

    try:
        import maxtext
        from flax import nnx
        from flax.core.spmd import logical_axis_rules
        from maxtext.common.goodput import create_goodput_recorder
        from maxtext.configs import pyconfig
        from maxtext.trainers.pre_train.train import eval_step, train_step
        from maxtext.utils import sharding, train_utils
    except ImportError as error:
        raise MissingError(f"{error}; {INSTALL}") from None

    shape, device = order["shape"], jax.devices()[0]
    version = importlib.metadata.version("maxtext")
    if device.platform != order["platform"]:
        raise MissingError(f"the jax of maxtext {version} finds only {device.platform}")
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    with tempfile.TemporaryDirectory() as folder:
        config = pyconfig.initialize(
            ["train", str(base)], base_output_directory=folder, **options(order, setting)
        )
        recorder = create_goodput_recorder(config)
        (_, _, shardings, _, mesh, *_, state) = train_utils.setup_train_loop(config, recorder)
    graph, first = nnx.split(state)
    of_params, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, first, shardings, train_step, eval_step, None, of_params
    )
    size = (shape["batch"], shape["sequence"])
    tokens = np.random.default_rng(0).integers(0, shape["vocabulary"], size, np.int32)
    positions = np.broadcast_to(np.arange(size[1], dtype=np.int32), size)
    batch = {}
    for name, ids in (("inputs", tokens), ("targets", np.roll(tokens, -1, 1))):
        batch |= {
            name: ids,
            f"{name}_position": positions,
            f"{name}_segmentation": np.ones_like(ids),
        }
    ready = jax.device_put(batch, sharding.get_input_data_sharding(config, mesh))
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(state.model, nnx.Param)))
    kept = [first]

    def run(steps: int) -> None:
        with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
            for _ in range(steps):
                kept[0], _ = step(kept[0], ready)
        jax.block_until_ready(kept[0])

    facts = {
        "parameters": parameters,
        "device": device.device_kind,
        "version": f"maxtext {version}, jax {jax.__version__}",
    }
    return Step(run, facts, lambda: jax_peak_bytes(device))


def options(order: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes to MaxText's base config: its Qwen3, untied, in the sizes of `order`."""
    shape, platform = order["shape"], order["platform"]
    on_cpu = platform == "cpu"
    return {
        "run_name": "benchmark",
        "hardware": platform,
        "decoder_block": "qwen3",
        "base_emb_dim": shape["hidden_size"],
        "base_mlp_dim": shape["intermediate_size"],
        "base_num_query_heads": shape["num_heads"],
        "base_num_kv_heads": shape["num_kv_heads"],
        "base_num_decoder_layers": shape["num_layers"],
        "head_dim": shape["head_dim"],
        "vocab_size": shape["vocabulary"],
        "mlp_activations": ["silu", "linear"],
        "normalization_layer_epsilon": 1e-6,
        "use_qk_norm": True,
        "logits_via_embedding": False,
        "enable_dropout": False,
        "max_target_length": shape["sequence"],
        "per_device_batch_size": shape["batch"],
        "dtype": "float32" if on_cpu else "bfloat16",
        "weight_dtype": "float32",
        "attention": "dot_product" if on_cpu else "autoselected",
        "scan_layers": not on_cpu,
        "remat_policy": setting["remat"],
        "num_vocab_tiling": setting["parts"],
        "opt_type": "adamw",
        "adam_weight_decay": 0.033,
        "gradient_clipping_threshold": 1.0,
        "dataset_type": "synthetic",
        "steps": 1_000_000,
        "enable_checkpointing": False,
        "enable_goodput_recording": False,
        "skip_jax_distributed_system": True,
        "log_config": False,
    }


if __name__ == "__main__":
    serve(build, settings)
