"""sBLIMP: a grammatical and an ungrammatical spoken sentence (ZeroSpeech 2021, syntactic)."""

from typing import Any

from soda_jax.evaluate.benchmarks._pairs import score_audio
from soda_jax.evaluate.benchmarks._zerospeech import pairs
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.tables import choice_lines


@evaluator("sblimp", needs_speech=True, needs_data=True, lines=choice_lines)
def score_sblimp(context: EvaluationContext) -> dict[str, Any]:
    """Returns the share of pairs whose grammatical sentence is more likely, see `score_choices`."""
    key = ("type", "subtype", "id")
    entries = pairs(context.data_folder("sblimp"), "syntactic", key, "transcription", by="type")
    return score_audio(context, "sblimp", entries)
