"""Scores ASR and TTS by word error rates on held-out utterances."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from soda_jax.data.dataset import documents, open_splits
from soda_jax.errors import UserError
from soda_jax.evaluate.generation import Asked, Clip, HeldOutGenerator, reasons
from soda_jax.evaluate.partial import PartialResults
from soda_jax.evaluate.recognizer import Recognizer, transcribe_clips
from soda_jax.evaluate.wer import Normalizer, normalize, number_normalizer, word_errors
from soda_jax.evaluate.windows import with_split
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.schema import DataConfig
from soda_jax.tokens import Utterance

_CLIPS = 32  # that are transcribed between two writes


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
    generator: HeldOutGenerator, held_out: Sequence[HeldOutUtterance]
) -> dict[str, Any]:
    """Transcribes the stored codes greedily and compares texts normalized by `normalize`.

    An utterance whose prompt leaves no room in the context counts as all errors; one whose text has no word is left
    out.

    Returns:
      a JSON-able dict with items, utterances (those scored), failed (name and reason), limited (name and reason of the
      transcripts that the context ended), decoding, finished_share (of transcripts that the model ended),
      word_error_rate (corpus), mean_word_error_rate, examples.
    """
    items, model = len(held_out), generator.model
    held_out, failed = _with_words(held_out, normalize)
    asked = [
        Asked(item.name, number, model.audio_prompt(item.utterance.codes))
        for number, item in enumerate(held_out)
    ]
    found = generator(asked, "text", GREEDY, "transcribe")
    texts = ["" if one.failed else model.tokenizer.decode(one.ids) for one in found]
    references = [item.utterance.text for item in held_out]
    errors = word_errors(references, texts)
    return {
        "items": items,
        "utterances": errors.utterances,
        "failed": failed + reasons(asked, found, "failed"),
        "limited": reasons(asked, found, "limited"),
        "decoding": "greedy",
        "finished_share": float(np.mean([one.finished for one in found])),
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
    generator: HeldOutGenerator, held_out: Sequence[HeldOutUtterance]
) -> dict[str, Any]:
    """Samples speech and transcripts with and without the grammar.

    Returns:
      a JSON-able dict with utterances, sampling, max_seconds, seed, and for "speech" and "text" a dict
      with finished_share (with the grammar), and without it finished_share_without and legal_share, the
      share of streams that are legal up to their last token; failed (name and reason of the prompts that leave no room
      in the context, which are left out) and limited (those of the streams that the context ended).

    Raises:
      UserError: if no prompt of a kind fits into the context.
    """
    model, sampling = generator.model, Sampling()
    prompts = {
        "speech": [model.text_prompt(item.utterance.text) for item in held_out],
        "text": [model.audio_prompt(item.utterance.codes) for item in held_out],
    }
    result: dict[str, Any] = {
        "utterances": len(held_out),
        "sampling": _sampling_text(sampling),
        "max_seconds": generator.max_seconds,
        "seed": generator.seed,
    }
    for kind, ids in prompts.items():
        asked = [Asked(item.name, n, ids[n]) for n, item in enumerate(held_out)]
        found = {
            constrained: generator(
                asked,
                kind,
                sampling,
                f"{kind} with{'' if constrained else 'out'} grammar",
                constrained,
            )
            for constrained in (True, False)
        }
        free = [one for one in found[False] if not one.failed]
        failed = reasons(asked, found[False], "failed")
        if not free:
            raise UserError(f"grammar: no {kind} can be generated: {failed[0]['reason']}")
        result[kind] = {
            "finished_share": float(
                np.mean([one.finished for one in found[True] if not one.failed])
            ),
            "finished_share_without": float(np.mean([one.finished and one.legal for one in free])),
            "legal_share": float(np.mean([one.legal for one in free])),
            "failed": failed,
            "limited": reasons(asked, found[True], "limited")
            + reasons(asked, found[False], "limited"),
        }
    return result


def evaluate_tts(
    generator: HeldOutGenerator,
    held_out: Sequence[HeldOutUtterance],
    recognizer: Recognizer,
    results: PartialResults | None = None,
) -> dict[str, Any]:
    """Generates speech for held-out texts without a voice prompt; transcribes it.

    For comparison, the stored codes of the recordings are decoded and transcribed too. An utterance that the model
    does not end within `max_seconds` or the context has an empty transcript, which is an error rate of 100%. Texts are
    normalized by `number_normalizer`; an utterance without a word is left out.

    Args:
      generator: generates the speech.
      held_out: the utterances.
      recognizer: transcribes it, see `load_recognizer`.
      results: the transcripts so far, opened with settings that contain recognizer and codec; by default they are
        kept in memory.

    Returns:
      a JSON-able dict with items, utterances (those scored), failed (name and reason of those that were not spoken),
      limited (name and reason of the utterances that the context ended), recognizer, sampling, max_seconds, seed,
      complete_share, word_error_rate (corpus), mean_word_error_rate, codec_word_error_rate,
      codec_mean_word_error_rate, examples.
    """
    model, sampling = generator.model, Sampling()
    results = results or PartialResults(None, "tts", {})
    normalizer = number_normalizer([item.utterance.text for item in held_out])
    items = len(held_out)
    held_out, failed = _with_words(held_out, normalizer)
    references = [item.utterance.text for item in held_out]
    asked = [
        Asked(item.name, number, model.text_prompt(item.utterance.text))
        for number, item in enumerate(held_out)
    ]
    found = generator(asked, "speech", sampling, "speak")
    spoken = [Clip.of(a.name, generator.codes(one)) for a, one in zip(asked, found, strict=True)]
    complete = [one.finished and len(c.codes) > 0 for one, c in zip(found, spoken, strict=True)]
    stored = [Clip.of(item.name, item.utterance.codes[:, : model.codebooks]) for item in held_out]

    def transcribe(block: list[Clip]) -> Iterator[tuple[Clip, dict[str, str]]]:
        sounds = [clip.sound(model) for clip in block]
        texts = transcribe_clips(recognizer, sounds, model.codec.sample_rate)
        return ((clip, {"text": text}) for clip, text in zip(block, texts, strict=True))

    clips = [clip for clip, done in zip(spoken, complete, strict=True) if done]
    rows = results.fill([*clips, *stored], transcribe, _CLIPS, "clips")
    texts = iter(row["text"] for row in rows)
    heard = [next(texts) if done else "" for done in complete]
    codec_heard = list(texts)
    errors = word_errors(references, heard, normalizer)
    codec_errors = word_errors(references, codec_heard, normalizer)
    examples = zip(held_out, references, heard, codec_heard, complete, strict=True)
    return {
        "items": items,
        "utterances": errors.utterances,
        "failed": failed + reasons(asked, found, "failed"),
        "limited": reasons(asked, found, "limited"),
        "recognizer": recognizer.name,
        "sampling": _sampling_text(sampling),
        "max_seconds": generator.max_seconds,
        "seed": generator.seed,
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
            for item, reference, text, codec_text, done in examples
        ],
    }


def _sampling_text(sampling: Sampling) -> str:
    return f"temperature {sampling.temperature}, top-p {sampling.top_p}"
