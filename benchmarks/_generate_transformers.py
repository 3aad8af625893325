"""Worker of `generate.py`: `generate` of Hugging Face Transformers, Qwen3 with random weights in f32."""

from collections.abc import Iterable
from typing import Any

from _worker import MissingError, Step, resident_bytes, serve


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the only setting."""
    return [{}]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Builds the model; a step generates the tokens of one utterance per row, from all ids."""
    import torch
    import transformers

    on_gpu = order["platform"] == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise MissingError(f"torch {torch.__version__} finds no GPU")
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    shape, new = order["model"], order["frames"] * order["codebooks"] + 1
    config = transformers.Qwen3Config(
        vocab_size=order["vocabulary"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with device:
        model = transformers.Qwen3ForCausalLM(config).float().eval()
    if on_gpu:
        model = model.to(torch.bfloat16)
    length = 24 + order["prompt_frames"] * order["codebooks"]
    prompt = torch.randint(0, 128_000, (order["batch"], length), device=device)
    sampled = order["sampling"] == "top-p"
    options: dict[str, Any] = {"do_sample": sampled, "use_cache": True}
    if sampled:
        options |= {"top_p": 0.8, "top_k": 0, "temperature": 1.0}

    def run(steps: int) -> None:
        with torch.inference_mode():
            for _ in range(steps):
                model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=new,
                    max_new_tokens=new, **options,
                )  # fmt: skip
        if on_gpu:
            torch.cuda.synchronize()

    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    return Step(run, facts, resident_bytes, lambda: {"tokens": order["batch"] * new}, False)


if __name__ == "__main__":
    serve(build, settings)
