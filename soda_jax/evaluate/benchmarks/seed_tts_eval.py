"""Seed-TTS-eval, English: speech in the voice of a prompt (arXiv 2406.02430).

    DIR/en/meta.lst     NAME|text of the prompt|prompt-wavs/….wav|text to be spoken
                        (https://github.com/BytedanceSpeech/seed-tts-eval)

DIR is the folder seedtts_testset, or one that contains it. The prompt is
`BOS text_start Tp text_end audio_start Ap audio_end text_start T text_end audio_start`; sampling at temperature
0.9, top-p 0.8, at most `--max_seconds`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from soda_jax.evaluate import naturalness
from soda_jax.evaluate.benchmarks._pairs import file_in, read_lines
from soda_jax.evaluate.choices import Entry
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.recognizer import identity, load_recognizer
from soda_jax.evaluate.speakers import load_encoder
from soda_jax.evaluate.tables import failed_lines
from soda_jax.evaluate.wer import normalize, word_errors
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import Speech

_BLOCK = 16


def _lines(task: str, scores: Mapping[str, Any]) -> list[str]:
    def shown(value: float | None, style: str) -> str:
        return "–" if value is None else format(value, style)

    natural = ", ".join(f"{kind} {shown(v, '.2f')}" for kind, v in scores["naturalness"].items())
    return [
        f"\n{task}: {scores['mean_word_error_rate']:.1%} mean WER by {scores['recognizer']} over "
        f"{scores['scored']:,} of {scores['items']:,} texts, {scores['complete_share']:.1%} complete",
        f"similarity {shown(scores['similarity'], '.3f')} ({shown(scores['similarity_complete'], '.3f')} of the "
        f"complete ones) by {scores['speaker_encoder']}",
        f"{scores['naturalness_scorer']}: {natural or '–'}; length / recording "
        f"{shown(scores['length_ratio'], '.2f')}",
        *failed_lines(scores["failed"], "failed"),
    ]


@evaluator("seed_tts_eval", packages=("jiwer",), needs_speech=True, needs_data=True, lines=_lines)
def score_seed_tts_eval(context: EvaluationContext) -> dict[str, Any]:
    """Speaks the texts and scores words, voice, naturalness and length.

    An item that cannot be spoken, or whose speech does not end within the limit, has the word error rate 100% and the
    similarity 0; the naturalness and length are means over the complete ones.

    Returns:
      a JSON-able dict with items, complete, complete_share, failed (name and reason), mean_word_error_rate,
      word_error_rate (corpus), similarity, similarity_complete (mean over complete items), naturalness (a dict),
      length_ratio (speech to reference recording, where there is one), the names of recognizer,
      speaker_encoder and naturalness_scorer, sampling, seed and examples.
    """
    context.require("seed_tts_eval", "audio", "text")
    options = context.options
    entries = context.first(read(context.data_folder("seed_tts_eval")))
    spoken = [entry for entry in entries if normalize(entry.content[0])]
    if not spoken:
        raise UserError(f"{context.data_folder('seed_tts_eval')}: no text has words")
    scorers = _Scorers(context)
    dtype = context.speech_model.engine.dtype
    results = context.partial(
        "seed_tts_eval", entries=spoken, seed=options.seed, max_seconds=options.max_seconds,
        recognizer=identity(options.recognizer, scorers.recognizer), speaker_encoder=options.speaker_encoder, weights_dtype=dtype,
    )  # fmt: skip
    numbers = {entry.name: number for number, entry in enumerate(spoken)}
    rows = results.fill(
        spoken,
        lambda block: zip(block, _speak(context, block, numbers, scorers), strict=True),
        _BLOCK,
        "texts",
        keep=lambda row: row.get("spoken", True),
    )
    errors = word_errors([e.content[0] for e in spoken], [row["heard"] for row in rows])
    complete = [row for row in rows if "failed" not in row]
    known = set(numbers)
    failed = [
        {"name": entry.name, "reason": row["failed"]}
        for entry, row in zip(spoken, rows, strict=True)
        if "failed" in row
    ] + [
        {"name": entry.name, "reason": "the text has no words"}
        for entry in entries
        if entry.name not in known
    ]

    def mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if len(values) else None

    ratios = [row["length_ratio"] for row in complete if row["length_ratio"] is not None]
    kinds = complete[0]["naturalness"] if complete else {}
    return {
        "items": len(entries),
        "scored": len(spoken),
        "complete": len(complete),
        "complete_share": len(complete) / len(spoken),
        "failed": failed,
        "mean_word_error_rate": errors.mean,
        "word_error_rate": errors.corpus,
        "similarity": mean([row["similarity"] for row in rows]),
        "similarity_complete": mean([row["similarity"] for row in complete]),
        "naturalness": {
            kind: mean([row["naturalness"][kind] for row in complete]) for kind in kinds
        },
        "length_ratio": mean(ratios),
        "recognizer": scorers.recognizer.name,
        "speaker_encoder": scorers.encoder.name,
        "naturalness_scorer": naturalness.NAME,
        "sampling": "temperature 0.9, top-p 0.8",
        "weights_dtype": dtype,
        "max_seconds": options.max_seconds,
        "seed": options.seed,
        "data": options.benchmarks["seed_tts_eval"],
        "examples": [
            {"name": entry.name, "reference": entry.content[0], "heard": row["heard"]}
            for entry, row in list(zip(spoken, rows, strict=True))[:20]
        ],
    }


def read(folder: Path) -> list[Entry]:
    """Returns the items; the content is (text, text of the prompt, prompt, recording of the text or "")."""
    path = file_in(folder, "en/meta.lst", "seedtts_testset/en/meta.lst", "meta.lst")
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (4, 5):
            raise UserError(f"{path}:{number} has {len(fields)} fields, not 4 or 5 separated by |")
        name, prompt_text, prompt, text = fields[:4]
        recording = path.parent / (fields[4] if len(fields) == 5 else f"wavs/{name}.wav")
        content = (
            text, prompt_text, str(path.parent / prompt),
            str(recording) if recording.is_file() else "",
        )  # fmt: skip
        found.append(Entry(f"{number}/{name}", name, "", content))
    return found


class _Scorers:
    def __init__(self, context: EvaluationContext):
        self.recognizer = load_recognizer(context.options.recognizer)
        self.encoder = load_encoder(context.options.speaker_encoder)
        self.naturalness = naturalness.Dnsmos()


def _speak(
    context: EvaluationContext,
    block: Sequence[Entry],
    numbers: dict[str, int],
    scorers: _Scorers,
) -> list[dict[str, Any]]:
    model, rate = context.speech_model, context.speech_model.codec.sample_rate
    rows: dict[str, dict[str, Any]] = {}
    clips, usable = [], []
    for entry in block:
        try:
            clips.append(read_audio(entry.content[2], rate))
            usable.append(entry)
        except UserError as error:
            rows[entry.name] = _failed(str(error), spoken=False)
    prompts, speaking = [], []
    limit = model.metadata["data"]["sequence_length"]
    for entry, clip, codes in zip(usable, clips, model.encode(clips), strict=True):
        text, prompt_text = entry.content[:2]
        try:
            prompt = model.text_prompt(text, model.voice(prompt_text, codes))
        except UserError as error:  # a text is empty, or has a character that the tokenizer lacks
            rows[entry.name] = _failed(str(error))
            continue
        if len(prompt) >= limit:
            rows[entry.name] = _failed(f"the prompt has {len(prompt)} tokens, the context {limit}")
            continue
        prompts.append(prompt)
        speaking.append((entry, clip))
    # The seed of an item must not depend on where an earlier evaluation stopped.
    speeches = model.generate_speech(
        prompts, context.options.max_seconds, Sampling(), context.options.seed,
        prompt_numbers=[numbers[entry.name] for entry, _ in speaking],
    )  # fmt: skip
    for (entry, clip), speech in zip(speaking, speeches, strict=True):
        if not speech.finished or not len(speech.codes):
            limit_text = f"the speech does not end within {context.options.max_seconds:g} s"
            rows[entry.name] = _failed("the speech is empty" if speech.finished else limit_text)
            continue
        voices = [scorers.encoder(sound, rate) for sound in (clip, speech.audio)]
        rows[entry.name] = {
            "heard": scorers.recognizer.transcribe(speech.audio, rate),
            "similarity": float(voices[0] @ voices[1]),
            "naturalness": scorers.naturalness(speech.audio, rate),
            "length_ratio": _length_ratio(speech, entry.content[3], rate),
        }
    return [rows[entry.name] for entry in block]


def _length_ratio(speech: Speech, recording: str, rate: int) -> float | None:
    """Returns the length of speech divided by that of a recording; None if there is no usable one."""
    try:
        return len(speech.audio) / len(read_audio(recording, rate)) if recording else None
    except UserError:
        return None


def _failed(reason: str, spoken: bool = True) -> dict[str, Any]:
    """Returns the result of an item that counts as errors; `spoken` is False if its prompt is missing."""
    return {"heard": "", "similarity": 0.0, "failed": reason, "spoken": spoken}
