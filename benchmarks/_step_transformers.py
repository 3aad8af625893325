"""Worker of `train_step.py` and `head.py`: Qwen3 of Hugging Face Transformers in torch, with AdamW."""

from collections.abc import Iterable
from typing import Any

from _worker import MissingError, Step, resident_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the settings to try: without and with remat on the whole batch, then on parts."""
    if order["platform"] == "cpu":
        return [{"recompute": False, "parts": 1}]
    parts = [p for p in (1, 2, 4, 8, 16) if order["shape"]["batch"] % p == 0]
    # Recomputing layers does not shrink the logits, so smaller parts of the batch are next.
    return [{"recompute": again, "parts": p} for p in parts for again in (False, True)]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Builds the step: f32 parameters, fused AdamW; on a GPU also bf16 by autocast."""
    import torch
    import transformers

    shape, on_gpu = order["shape"], order["platform"] == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise MissingError(f"torch {torch.__version__} finds no GPU")
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if on_gpu else "highest")
    config = transformers.Qwen3Config(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=shape["sequence"],
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with device:
        model = transformers.Qwen3ForCausalLM(config).float().train()
    if setting["recompute"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.033, fused=True)
    size = (shape["batch"], shape["sequence"])
    # The content does not affect the speed: all logits are computed for every token.
    tokens = torch.randint(0, shape["vocabulary"], size, device=device)
    if order.get("compile"):
        forward = torch.compile(model)
    else:
        forward = model

    def run(steps: int) -> None:
        for _ in range(steps):
            for part in tokens.chunk(setting["parts"]):
                with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                    loss = forward(input_ids=part, labels=part).loss
                (loss / setting["parts"]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()

    facts = {
        "parameters": sum(p.numel() for p in parameters),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    peak = torch.cuda.max_memory_allocated if on_gpu else resident_bytes
    return Step(run, facts, peak)


if __name__ == "__main__":
    serve(build, settings)
