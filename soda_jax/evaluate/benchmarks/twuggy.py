"""tWUGGY: the words and nonwords of sWUGGY as text, each pair once (ZeroSpeech 2021, lexical)."""

from typing import Any

from soda_jax.evaluate.benchmarks._pairs import score_texts
from soda_jax.evaluate.benchmarks._zerospeech import pairs
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator


@evaluator("twuggy", needs_speech=True, needs_data=True)
def score_twuggy(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of pairs whose word is more likely, see `score_choices`."""
    folder = context.data_folder("twuggy")
    entries = pairs(folder, "lexical", ("id",), "word", spoken=False)
    return score_texts(context, "twuggy", entries)
