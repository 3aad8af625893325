"""tBLIMP: the sentences of sBLIMP as text, each pair once (ZeroSpeech 2021, syntactic)."""

from typing import Any

from soda_jax.evaluate.benchmarks._pairs import score_texts
from soda_jax.evaluate.benchmarks._zerospeech import pairs
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.tables import choice_lines


@evaluator("tblimp", needs_data=True, lines=choice_lines)
def score_tblimp(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of pairs whose grammatical sentence is more likely, see `score_choices`."""
    key, folder = ("type", "subtype", "id"), context.data_folder("tblimp")
    entries = pairs(folder, "syntactic", key, "transcription", by="type", spoken=False)
    return score_texts(context, "tblimp", entries)
