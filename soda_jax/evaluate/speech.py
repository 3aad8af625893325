"""Scores ASR and TTS by word error rates on held-out utterances."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from soda_jax.data.dataset import documents, open_splits
from soda_jax.errors import UserError
from soda_jax.evaluate.recognizer import load_recognizer, transcribe_clips
from soda_jax.evaluate.wer import number_normalizer, word_errors
from soda_jax.evaluate.windows import with_split
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
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


def evaluate_asr(model: SpeechModel, held_out: Sequence[HeldOutUtterance]) -> dict[str, Any]:
    """Transcribes the stored codes greedily and compares texts normalized by `normalize`.

    Returns:
      a JSON-able dict with utterances, decoding, finished_share (of transcripts that the model ended),
      word_error_rate (corpus), mean_word_error_rate, examples.
    """
    prompts = [model.audio_prompt(item.utterance.codes) for item in held_out]
    found = model.transcribe_prompts(prompts, progress="transcribe")
    texts = [transcript.text for transcript in found]
    references = [item.utterance.text for item in held_out]
    errors = word_errors(references, texts)
    return {
        "utterances": errors.utterances,
        "decoding": "greedy",
        "finished_share": float(np.mean([transcript.finished for transcript in found])),
        "word_error_rate": errors.corpus,
        "mean_word_error_rate": errors.mean,
        "examples": [
            {"name": item.name, "reference": item.utterance.text, "hypothesis": text}
            for item, text in zip(held_out, texts, strict=True)
        ],
    }


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
    error rate of 100%. Texts are normalized by `number_normalizer`.

    Returns:
      a JSON-able dict with utterances, recognizer, sampling, max_seconds, seed, complete_share,
      word_error_rate (corpus), mean_word_error_rate, codec_word_error_rate,
      codec_mean_word_error_rate, examples.
    """
    whisper = load_recognizer(recognizer)
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
    normalizer = number_normalizer(references)
    errors = word_errors(references, heard, normalizer)
    codec_errors = word_errors(references, codec_heard, normalizer)
    rows = zip(held_out, references, heard, codec_heard, complete, strict=True)
    return {
        "utterances": errors.utterances,
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
