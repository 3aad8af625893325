"""ASR of LibriSpeech test-clean: corpus word error rate of greedy transcripts.

    DIR/test-clean/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt and .flac      (https://www.openslr.org/12)

DIR is the folder LibriSpeech, or one that contains it. The prompt is `BOS audio_start A audio_end text_start`;
with `--shots=N`, N other utterances with their transcripts are between BOS and A.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from soda_jax.evaluate.choices import Entry
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.tables import failed_lines
from soda_jax.evaluate.wer import normalize, word_errors
from tokenize_pipeline.readers import DocumentSource, librispeech

_BLOCK = 64
_LONGEST_EXAMPLE = 8.0  # seconds


def _lines(task: str, scores: Mapping[str, Any]) -> list[str]:
    return [
        f"\n{task}: {scores['word_error_rate']:.1%} corpus WER over {scores['scored']:,} of "
        f"{scores['items']:,} recordings, {scores['decoding']}, {scores['shots']} shots, "
        f"{scores['finished_share']:.1%} of the transcripts end",
        *failed_lines(scores["failed"], "failed"),
    ]


@evaluator("librispeech", packages=("jiwer",), needs_speech=True, needs_data=True, lines=_lines)
def score_librispeech(context: EvaluationContext) -> dict[str, Any]:
    """Transcribes the recordings and compares the texts normalized by `normalize`.

    A recording that cannot be transcribed counts as all errors; one whose reference has no word counts
    only in `failed`.

    Returns:
      a JSON-able dict with items, scored, failed, word_error_rate (corpus), mean_word_error_rate, shots,
      decoding, finished_share (of transcripts that end with `text_end`) and examples.
    """
    context.require("librispeech", "audio", "text")
    options, every = context.options, read(context.data_folder("librispeech"))
    entries = context.first(every)
    spoken = [entry for entry in entries if normalize(entry.content[1])]
    shots = _shots(context, every)
    dtype = context.speech_model.engine.dtype
    results = context.partial(
        "librispeech", entries=every, shots=[name for name, _ in shots], weights_dtype=dtype
    )
    if not spoken:
        raise UserError(f"{context.data_folder('librispeech')}: no transcript has words")
    rows = results.fill(
        spoken,
        lambda block: zip(block, _transcribe(context, block, shots), strict=True),
        _BLOCK,
        "recordings",
        keep=lambda row: "failed" not in row,
    )
    references = [entry.content[1] for entry in spoken]
    errors = word_errors(references, [row["text"] for row in rows])
    failed = [
        {"name": entry.name, "reason": row["failed"]}
        for entry, row in zip(spoken, rows, strict=True)
        if "failed" in row
    ]
    known = {entry.name for entry in spoken}
    empty = [entry.name for entry in entries if entry.name not in known]
    return {
        "items": len(entries),
        "scored": len(spoken),
        "failed": failed
        + [{"name": name, "reason": "the reference has no words"} for name in empty],
        "decoding": "greedy",
        "weights_dtype": dtype,
        "shots": options.shots,
        "word_error_rate": errors.corpus,
        "mean_word_error_rate": errors.mean,
        "finished_share": float(np.mean([row.get("finished", False) for row in rows])),
        "data": options.benchmarks["librispeech"],
        "examples": [
            {"name": entry.name, "reference": text, "hypothesis": row["text"]}
            for entry, text, row in list(zip(spoken, references, rows, strict=True))[:20]
        ],
    }


def read(folder: Path) -> list[Entry]:
    """Returns the utterances of test-clean; the content is (path of the recording, transcript).

    Raises:
      UserError: if there is none, or a line of a transcript file is damaged.
    """
    roots = [folder / "LibriSpeech" / "test-clean", folder / "test-clean", folder]
    root = next((r for r in roots if any(r.glob("*/*/*.trans.txt"))), None)
    if root is None:
        raise UserError(f"{folder} has no test-clean/SPEAKER/CHAPTER/*.trans.txt")
    found, files = [], sorted(root.glob("*/*/*.trans.txt"))
    data = librispeech.data_root(files)
    for document in librispeech.read(files):
        if not isinstance(document, DocumentSource):
            raise UserError(f"{document.where}: {document.message}")
        for utterance in document.utterances:
            path = data / (utterance.audio or "")
            found.append(Entry(path.stem, path.stem, "", (str(path), utterance.text)))
    return found


def _shots(context: EvaluationContext, entries: Sequence[Entry]) -> list[tuple[str, np.ndarray]]:
    """Returns (name, spans) of one example more than `shots`, for an item that is an example itself.

    They are drawn from all utterances of at most 8 s that can be read, so they do not depend on `--limit`.
    """
    count, model = context.options.shots, context.speech_model
    found: list[tuple[str, np.ndarray]] = []
    rng = np.random.default_rng(context.options.seed)
    order = rng.permutation(len(entries)).tolist() if count else []
    for entry in (entries[n] for n in order if normalize(entries[n].content[1])):
        if len(found) > count:
            break
        try:
            clip = read_audio(entry.content[0], model.codec.sample_rate)
            if len(clip) <= _LONGEST_EXAMPLE * model.codec.sample_rate:
                spans = model.example(model.encode([clip])[0], entry.content[1])
                found.append((entry.name, spans))
        except UserError:  # reported where it is transcribed
            continue
    if count and len(found) <= count:
        raise UserError(f"shots {count} needs at least {count + 1} recordings, not {len(found)}")
    return found


def _transcribe(
    context: EvaluationContext, block: Sequence[Entry], shots: Sequence[tuple[str, np.ndarray]]
) -> list[dict[str, Any]]:
    model = context.speech_model
    rows: dict[str, dict[str, Any]] = {}
    clips, usable = [], []
    for entry in block:
        try:
            clips.append(read_audio(entry.content[0], model.codec.sample_rate))
            usable.append(entry)
        except UserError as error:
            rows[entry.name] = {"text": "", "failed": str(error)}
    prompts, names = [], []
    limit = model.metadata["data"]["sequence_length"]
    for entry, codes in zip(usable, model.encode(clips), strict=True):
        others = [spans for name, spans in shots if name != entry.name][: context.options.shots]
        prompt = model.audio_prompt(codes, *others)
        if len(prompt) >= limit:
            reason = f"the prompt has {len(prompt)} tokens, the context {limit}"
            rows[entry.name] = {"text": "", "failed": reason}
        else:
            prompts.append(prompt)
            names.append(entry.name)
    for name, transcript in zip(names, model.transcribe_prompts(prompts), strict=True):
        rows[name] = {"text": transcript.text, "finished": transcript.finished}
    return [rows[entry.name] for entry in block]
