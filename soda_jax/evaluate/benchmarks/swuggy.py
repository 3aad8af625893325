"""sWUGGY: a spoken word and a spoken nonword, by several voices (ZeroSpeech 2021, lexical)."""

from typing import Any

from soda_jax.evaluate.benchmarks._pairs import score_audio
from soda_jax.evaluate.benchmarks._zerospeech import by_frequency, pairs
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.tables import choice_lines


@evaluator("swuggy", needs_speech=True, needs_data=True, lines=choice_lines)
def score_swuggy(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of pairs whose word is more likely, see `score_choices`."""
    folder = context.data_folder("swuggy")
    entries = pairs(folder, "lexical", ("id",), "word", by="frequency")
    return score_audio(context, "swuggy", by_frequency(entries))
