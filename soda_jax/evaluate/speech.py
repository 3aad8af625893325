"""Scores ASR and TTS by word error rates on held-out utterances."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from soda_jax.data.dataset import documents, open_splits
from soda_jax.errors import UserError
from soda_jax.evaluate.recognizer import load_recognizer, transcribe_clips
from soda_jax.evaluate.wer import Normalizer, normalize, number_normalizer, word_errors
from soda_jax.evaluate.windows import with_split
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel, Transcript
from soda_jax.schema import DataConfig
from soda_jax.tokens import Utterance


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutUtterance:
    """A held-out utterance and its name, `DOCUMENT#NUMBER`, or `SOURCE/DOCUMENT#NUMBER` if that is not unique."""

    name: str
    utterance: Utterance


def held_out_utterances(config: DataConfig, limit: int) -> list[HeldOutUtterance]:
    """Returns the first `limit` held-out utterances with text and audio; 0 = all.

    Raises:
      UserError: if there is no such utterance.
    """
    config, _ = with_split(config, "validation")

    def each() -> Iterator[HeldOutUtterance]:
        names: set[str] = set()
        for document in documents(open_splits(config, "validation")):
            for number, utterance in enumerate(document.utterances):
                if utterance.text.strip() and len(utterance.codes):
                    name = f"{document.document_id}#{number}"
                    name = f"{document.source}/{name}" if name in names else name
                    names.add(name)
                    yield HeldOutUtterance(name, utterance)

    found = list(itertools.islice(each(), limit or None))
    if not found:
        raise UserError("the validation splits contain no utterance with both text and audio")
    return found


def evaluate_asr(
    model: SpeechModel, held_out: Sequence[HeldOutUtterance], context: int = 0
) -> dict[str, Any]:
    """Transcribes the stored codes greedily and compares texts normalized by `normalize`.

    An utterance whose prompt has `context` or more tokens counts as all errors (0 = no limit); one whose text
    has no word is left out.

    Returns:
      a JSON-able dict with items, utterances (those scored), failed (name and reason), decoding, finished_share (of transcripts that
      the model ended), word_error_rate (corpus), mean_word_error_rate, examples.
    """
    items = len(held_out)
    held_out, failed = _with_words(held_out, normalize)
    prompts = [model.audio_prompt(item.utterance.codes) for item in held_out]
    fits = [not context or len(prompt) < context for prompt in prompts]
    failed += [
        {
            "name": item.name,
            "reason": f"the prompt has {len(prompt)} tokens, the context {context}",
        }
        for item, prompt, fit in zip(held_out, prompts, fits, strict=True)
        if not fit
    ]
    usable = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
    found = iter(model.transcribe_prompts(usable, progress="transcribe"))
    transcripts = [next(found) if fit else Transcript("", False) for fit in fits]
    texts = [transcript.text for transcript in transcripts]
    references = [item.utterance.text for item in held_out]
    errors = word_errors(references, texts)
    return {
        "items": items,
        "utterances": errors.utterances,
        "failed": failed,
        "decoding": "greedy",
        "finished_share": float(np.mean([transcript.finished for transcript in transcripts])),
        "word_error_rate": errors.corpus,
        "mean_word_error_rate": errors.mean,
        "examples": [
            {"name": item.name, "reference": item.utterance.text, "hypothesis": text}
            for item, text in zip(held_out, texts, strict=True)
        ],
    }


def _with_words(
    held_out: Sequence[HeldOutUtterance], normalizer: Normalizer
) -> tuple[list[HeldOutUtterance], list[dict[str, str]]]:
    """Returns the utterances whose normalized text has words, and the others with the reason."""
    kept = [item for item in held_out if normalizer(item.utterance.text)]
    names = {item.name for item in kept}
    reason = "the reference has no words"
    failed = [{"name": i.name, "reason": reason} for i in held_out if i.name not in names]
    if not kept:
        raise UserError("no word error rate: no reference of the validation splits has words")
    return kept, failed


def evaluate_without_grammar(
    model: SpeechModel,
    held_out: Sequence[HeldOutUtterance],
    *,
    max_seconds: float = 15.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Samples speech and transcripts with and without the grammar.

    Returns:
      a JSON-able dict with utterances, sampling, max_seconds, seed, and for "speech" and "text" a dict
      with finished_share (with the grammar), and without it finished_share_without and legal_share, the
      share of streams that are legal up to their last token.
    """
    layout, frames = model.layout, max(1, int(max_seconds * model.codec.frame_rate))
    texts = [model.text_prompt(item.utterance.text) for item in held_out]
    codes = [model.audio_prompt(item.utterance.codes) for item in held_out]
    budget = frames * model.codebooks + 1
    kinds = {
        "speech": (texts, layout.audio_end, budget, frames),
        "text": (codes, layout.text_end, 448, 0),
    }
    sampling = Sampling()
    result: dict[str, Any] = {
        "utterances": len(held_out),
        "sampling": f"temperature {sampling.temperature}, top-p {sampling.top_p}",
        "max_seconds": max_seconds,
        "seed": seed,
    }
    for kind, (prompts, stop, most, most_frames) in kinds.items():
        found = {
            constrained: model.engine(
                prompts, stop=stop, budget=most, max_frames=most_frames, sampling=sampling, seed=seed,
                constrained=constrained, progress=f"{kind} with{'' if constrained else 'out'} grammar",
            )
            for constrained in (True, False)
        }  # fmt: skip
        result[kind] = {
            "finished_share": float(np.mean([row.finished for row in found[True]])),
            "finished_share_without": float(
                np.mean([row.finished and row.legal for row in found[False]])
            ),
            "legal_share": float(np.mean([row.legal for row in found[False]])),
        }
    return result


def evaluate_tts(
    model: SpeechModel,
    held_out: Sequence[HeldOutUtterance],
    *,
    max_seconds: float = 15.0,
    seed: int = 0,
    recognizer: str = "whisper",
) -> dict[str, Any]:
    """Generates speech for held-out texts without a voice prompt; transcribes it.

    For comparison, the stored codes of the recordings are decoded and transcribed too (`load_recognizer`). An
    utterance that the model does not end within `max_seconds` has an empty transcript, which is an
    error rate of 100%. Texts are normalized by `number_normalizer`; an utterance without a word is left out.

    Returns:
      a JSON-able dict with items, utterances (those scored), failed (name and reason of the others), recognizer, sampling, max_seconds, seed, complete_share,
      word_error_rate (corpus), mean_word_error_rate, codec_word_error_rate,
      codec_mean_word_error_rate, examples.
    """
    whisper = load_recognizer(recognizer)
    normalizer = number_normalizer([item.utterance.text for item in held_out])
    items = len(held_out)
    held_out, failed = _with_words(held_out, normalizer)
    references = [item.utterance.text for item in held_out]
    speeches = model.speak(references, max_seconds=max_seconds, seed=seed, progress="speak")
    complete = [speech.finished and len(speech.codes) > 0 for speech in speeches]
    spoken = [speech.audio for speech, done in zip(speeches, complete, strict=True) if done]
    decoded = [
        model.codec.decode([item.utterance.codes[:, : model.codebooks]])[0] for item in held_out
    ]
    rate = model.codec.sample_rate
    texts = iter(transcribe_clips(whisper, spoken, rate, "recognize"))
    heard = [next(texts) if done else "" for done in complete]
    codec_heard = transcribe_clips(whisper, decoded, rate, "codec")
    errors = word_errors(references, heard, normalizer)
    codec_errors = word_errors(references, codec_heard, normalizer)
    rows = zip(held_out, references, heard, codec_heard, complete, strict=True)
    return {
        "items": items,
        "utterances": errors.utterances,
        "failed": failed,
        "recognizer": whisper.name,
        "sampling": "temperature 0.9, top-p 0.8",
        "max_seconds": max_seconds,
        "seed": seed,
        "complete_share": float(np.mean(complete)),
        "word_error_rate": errors.corpus,
        "mean_word_error_rate": errors.mean,
        "codec_word_error_rate": codec_errors.corpus,
        "codec_mean_word_error_rate": codec_errors.mean,
        "examples": [
            {
                "name": item.name,
                "reference": reference,
                "heard": text,
                "heard_from_codec": codec_text,
                "complete": done,
            }
            for item, reference, text, codec_text, done in rows
        ],
    }
