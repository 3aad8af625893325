"""tWUGGY: the words and nonwords of sWUGGY as text, each pair once (ZeroSpeech 2021, lexical)."""

from typing import Any

from soda_jax.evaluate.benchmarks._pairs import score_texts
from soda_jax.evaluate.benchmarks._zerospeech import by_frequency, pairs
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.tables import choice_lines


@evaluator("twuggy", needs_data=True, lines=choice_lines)
def score_twuggy(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of pairs whose word is more likely, see `score_choices`."""
    folder = context.data_folder("twuggy")
    entries = pairs(folder, "lexical", ("id",), "word", by="frequency", spoken=False)
    return score_texts(context, "twuggy", by_frequency(entries))
