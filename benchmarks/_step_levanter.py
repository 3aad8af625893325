"""Worker of `train_step.py`: Qwen3 of Levanter, the step of its `Trainer`, with optax's AdamW."""

from collections.abc import Iterable
from typing import Any

from _worker import MissingError, Step, jax_peak_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the settings to try: without and with remat on whole logits, then on blocks."""
    if order["platform"] == "cpu":
        return [{"recompute": False, "loss_block": None}]
    return [
        {"recompute": again, "loss_block": block}
        for block in (None, 8192)
        for again in (False, True)
    ]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Builds the step: f32 parameters, bf16 arithmetic on an accelerator."""
    import functools
    import importlib.metadata

    import haliax
    import jax
    import jmp
    import numpy as np
    import optax

    try:
        from levanter.models.lm_model import LmExample, compute_next_token_loss
        from levanter.models.qwen import Qwen3Config
        from levanter.tracker import NoopConfig
        from levanter.trainer import Trainer, TrainerConfig
    except ImportError as error:
        raise MissingError(f"{error}; Qwen3 needs a pre-release of levanter 1.2") from None

    version = importlib.metadata.version("levanter")
    shape, on_cpu, device = order["shape"], order["platform"] == "cpu", jax.devices()[0]
    if device.platform != order["platform"]:
        raise MissingError(f"the jax of levanter {version} finds only {device.platform}")
    model_config = Qwen3Config(
        seq_len=shape["sequence"],
        hidden_dim=shape["hidden_size"],
        intermediate_dim=shape["intermediate_size"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        num_kv_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
        tie_word_embeddings=False,
        gradient_checkpointing=setting["recompute"],
        scan_layers=not on_cpu,
        cross_entropy_block_size=setting["loss_block"],
    )
    trainer = Trainer(
        TrainerConfig(
            id="benchmark",
            mp=jmp.get_policy("f32" if on_cpu else "p=f32,c=bfloat16"),
            tracker=NoopConfig(),
            log_jaxprs=False,
            log_xla_hlo=False,
            train_batch_size=shape["batch"],
            load_checkpoint=False,
            require_accelerator=False,
        ),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4, weight_decay=0.033)),
        # The trainer computes the mean, because haliax's weighted mean fails with the current jax.
        functools.partial(compute_next_token_loss, reduction=None),
        add_default_hooks=False,
    )
    trainer.__enter__()  # stays entered until the process ends
    vocabulary = haliax.Axis("vocab", shape["vocabulary"])
    seed, training_seed = jax.random.split(jax.random.PRNGKey(0))
    first = trainer.initial_state(
        training_seed, model_init=lambda: model_config.build(vocabulary, key=seed)
    )
    size = (shape["batch"], shape["sequence"])
    ids = np.random.default_rng(0).integers(0, shape["vocabulary"], size, np.int32)
    tokens = haliax.named(ids, (haliax.Axis("batch", shape["batch"]), model_config.Pos))
    batch = haliax.vmap(LmExample.causal, "batch")(tokens)
    state = [first]

    def run(steps: int) -> None:
        for _ in range(steps):
            state[0] = trainer.train_step(state[0], batch).state
        jax.block_until_ready(state[0])

    parameters = sum(x.size for x in jax.tree.leaves(first.trainable_model))
    facts = {
        "parameters": parameters,
        "device": device.device_kind,
        "version": f"levanter {version}, jax {jax.__version__}",
    }
    return Step(run, facts, lambda: jax_peak_bytes(device))


if __name__ == "__main__":
    serve(build, settings)
