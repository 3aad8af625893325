"""Worker of `evaluate.py`: Transformers' Qwen3."""

from collections.abc import Iterable
from typing import Any

import _evaluate_items as items
from _worker import MissingError, Step, resident_bytes, serve

# Tokens of a padded batch: logits of 2,048 tokens take 1.2 GB.
_BATCH_TOKENS = 2048


def settings(order: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Returns the only setting."""
    return [{}]


def build(order: dict[str, Any], setting: dict[str, Any]) -> Step:
    """Loads the weights; a step scores all items, or transcribes 16 recordings."""
    import torch
    import transformers

    on_gpu = order["platform"] == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise MissingError(f"torch {torch.__version__} finds no GPU")
    device = torch.device("cuda" if on_gpu else "cpu")
    model = transformers.Qwen3ForCausalLM.from_pretrained(
        order["folder"], dtype=getattr(torch, order["dtype"]), attn_implementation="sdpa"
    )
    model = model.eval().to(device)
    done: dict[str, Any] = {}
    if order["task"] == "score":
        rows = sorted(items.scored(order["items"]), key=len, reverse=True)
        batches, at = [], 0
        while at < len(rows):
            size = max(1, _BATCH_TOKENS // len(rows[at]))
            chosen, at = rows[at : at + size], at + size
            ids = torch.full((len(chosen), len(chosen[0])), 0)
            mask = torch.zeros_like(ids)
            for row, tokens in enumerate(chosen):
                ids[row, : len(tokens)] = torch.as_tensor(tokens)
                mask[row, : len(tokens)] = 1
            batches.append((ids.to(device), mask.to(device), [len(tokens) for tokens in chosen]))

        def run(steps: int) -> None:
            with torch.inference_mode():
                for _ in range(steps):
                    total, tokens = 0.0, 0
                    for ids, mask, lengths in batches:
                        logits = model(ids, attention_mask=mask, use_cache=False).logits
                        for row, length in enumerate(lengths):
                            # The tokens between the markers.
                            targets = ids[row, 2 : length - 1]
                            loss = torch.nn.functional.cross_entropy(
                                logits[row, 1 : length - 2], targets, reduction="sum"
                            )
                            total, tokens = total + float(loss), tokens + len(targets)
                    done.update(done=tokens, mean=total / tokens)

    else:
        prompt = torch.as_tensor(items.recordings()).to(device)

        def run(steps: int) -> None:
            with torch.inference_mode():
                for _ in range(steps):
                    model.generate(
                        prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                        min_new_tokens=items.NEW, max_new_tokens=items.NEW,
                    )  # fmt: skip
                    done.update(done=len(prompt))

    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    return Step(run, facts, resident_bytes, lambda: dict(done))


if __name__ == "__main__":
    serve(build, settings)
