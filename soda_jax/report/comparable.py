"""Decides whether a score may be shown in a column of the paper's table."""

import re
from collections.abc import Mapping
from typing import Any

from soda_jax.report.published import Column

WHISPER, WAVLM = "Whisper-large-v3", "WavLM-large"
# Words that the name of the published scorer must contain, and those that it may contain as well. A name with
# any other word (turbo, distilled, base, …) is another scorer.
_REQUIRED = {WHISPER: {"whisper", "large", "v3"}, WAVLM: {"wavlm", "large"}}
_FORMATS = {"int8", "float16", "fp16", "bfloat16", "float32", "fp32", "ct2", "ctranslate2", "onnx"}
_ALLOWED = {
    WHISPER: {"openai", "systran", "faster"} | _FORMATS,
    WAVLM: {"microsoft", "finetune", "finetuned", "speaker", "verification", "sv"} | _FORMATS,
}
_SECONDS = 15.0
_SAMPLING = "temperature 0.9, top-p 0.8"


def is_published_scorer(name: str, published: str) -> bool:
    """Returns whether a scorer is the one of the paper, judged by its name.

    Args:
      name: name in the evaluation. For "Whisper in DIR, int8" the last part of DIR counts.
      published: `WHISPER` or `WAVLM`.
    """
    folder = re.fullmatch(r"Whisper in (.+), (\w+)", name)
    if folder:
        name = f"{folder[1].rstrip('/').rpartition('/')[2]} {folder[2]}"
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    # A CTranslate2 folder is often named only "large-v3"; a recognizer of soda_jax then adds "Whisper in".
    words |= {"whisper"} if folder else set()
    required = _REQUIRED[published]
    return required <= words <= required | _ALLOWED[published]


def differences(
    column: Column,
    scores: Mapping[str, Any],
    limit: int | None,
    *,
    normalizer: str = "full",
    tokens: str = "all",
) -> tuple[str, ...]:
    """Returns how a score was measured differently from a column of the paper; empty if it is comparable.

    Args:
      column: the column.
      scores: the result of the task `column.task` in the JSON of `soda evaluate`, with weights_dtype.
      limit: the `--limit` of the evaluation, None or 0 for all items.
      normalizer: ids over which log-probabilities are normalized, "full" or "legal".
      tokens: tokens whose log-probability counts, "all" or "semantic".
    """
    items, used = int(scores["items"]), int(scores["scored"])
    found = []
    if limit:
        found.append(f"a subset of {items:,} items (--limit={limit})")
    elif items < column.items or (column.exact and items > column.items):
        whole = f"{column.items:,}" if column.exact else f"at least {column.items:,}"
        found.append(f"{items:,} items, the benchmark has {whole}")
    if used < items:
        found.append(f"{items - used:,} of {items:,} items are left out")
    if scores.get("weights_dtype") == "int8":
        found.append("weights rounded to int8")
    if scores.get("missing_parts"):
        found.append(f"parts without data: {', '.join(map(str, scores['missing_parts']))}")
    if normalizer != "full":
        found.append(f"normalized over the {normalizer} ids, not all ids")
    if tokens != "all":
        found.append(f"{tokens} tokens only")
    if column.task == "librispeech":
        if scores["shots"]:
            found.append(f"{scores['shots']} shots, not zero-shot")
        if scores["decoding"] != "greedy":
            found.append(f"decoding {scores['decoding']}, not greedy")
    if column.task == "seed_tts_eval":
        if float(scores["max_seconds"]) != _SECONDS:
            found.append(f"at most {scores['max_seconds']:g} s of speech, not {_SECONDS:g} s")
        if scores["sampling"] != _SAMPLING:
            found.append(f"sampling {scores['sampling']}, not {_SAMPLING}")
        key, published = (
            ("speaker_encoder", WAVLM) if column.name == "SIM" else ("recognizer", WHISPER)
        )
        if not is_published_scorer(str(scores[key]), published):
            found.append(f"scored by {scores[key]}, not {published}")
    return tuple(found)
