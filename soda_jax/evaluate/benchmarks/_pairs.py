"""Builds the sequences of benchmarks that compare recordings or texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from soda_jax.evaluate.choices import ALL, SEMANTIC, Choice, Entry, Item, score_choices
from soda_jax.evaluate.evaluators import EvaluationContext
from soda_jax.evaluate.likelihood import ScoredSequence
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.documents import audio_span, text_span


def audio_sequence(codes: np.ndarray, layout: VocabularyLayout, codebooks: int) -> ScoredSequence:
    """Returns BOS and the audio span of codes `[frames, codebooks]`; the audio tokens are scored."""
    return _inside_markers(audio_span(codes, layout, codebooks), layout)


def text_sequence(text_ids: np.ndarray, layout: VocabularyLayout) -> ScoredSequence:
    """Returns BOS and the span of a text; the text tokens are scored."""
    return _inside_markers(text_span(text_ids, layout), layout)


def _inside_markers(span: np.ndarray, layout: VocabularyLayout) -> ScoredSequence:
    ids = np.concatenate([[layout.bos], span]).astype(np.int32)
    return ScoredSequence(ids, 2, len(ids) - 1)


def score_audio(context: EvaluationContext, task: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Scores entries whose content is the paths of recordings, the right one first."""
    model = context.speech_model

    def build(block: Sequence[Entry]) -> list[Item | str]:
        clips: list[np.ndarray] = []
        found: list[str] = []
        for entry in block:
            try:
                read = [read_audio(path, model.codec.sample_rate) for path in entry.content]
            except UserError as error:
                found.append(str(error))
                continue
            found.append("")
            clips += read
        codes = iter(model.encode(clips))
        return [
            reason or Item(tuple(_audio_choice(model, next(codes)) for _ in entry.content))
            for reason, entry in zip(found, block, strict=True)
        ]

    return score(context, task, entries, build, (ALL, SEMANTIC))


def _audio_choice(model: SpeechModel, codes: np.ndarray) -> Choice:
    return Choice(audio_sequence(codes, model.layout, model.codebooks))


def score_texts(context: EvaluationContext, task: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Scores entries whose content is texts, the right one first."""
    layout = context.model.layout

    def item(entry: Entry) -> Item:
        ids = [context.tokenizer.encode(text.strip()) for text in entry.content]
        if not all(map(len, ids)):
            raise UserError("a text is empty")
        return Item(tuple(Choice(text_sequence(i, layout)) for i in ids))

    def build(block: Sequence[Entry]) -> list[Item | str]:
        return [or_reason(item, entry) for entry in block]

    return score(context, task, entries, build, (ALL,))


def score(
    context: EvaluationContext,
    task: str,
    entries: Sequence[Entry],
    build: Any,
    kinds: Sequence[str],
) -> dict[str, Any]:
    """Scores the first `context.options.limit` entries, see `score_choices`."""
    context.require(task, "audio" if SEMANTIC in kinds else "text")
    entries = context.first(entries)
    options = context.options
    results = context.partial(
        task,
        entries=entries,
        weights_dtype=context.weights_dtype,
        head=options.head,
        kinds=list(kinds),
    )

    def build_readable(block: Sequence[Entry]) -> list[Item | str]:
        # The content of an entry that cannot be scored is the reason.
        readable = [entry for entry in block if not isinstance(entry.content, str)]
        items = iter(build(readable))
        return [e.content if isinstance(e.content, str) else next(items) for e in block]

    scores = score_choices(
        entries,
        build_readable,
        context.likelihood,
        results,
        kinds=kinds,
        context=context.model.metadata["data"]["sequence_length"],
        seed=options.seed,
    )
    return scores | {
        "scorer": "mean log-probability per token",
        "data": context.options.benchmarks[task],
    }


def or_reason(function: Callable[[Entry], Item], entry: Entry) -> Item | str:
    """Returns the item of an entry, or the message of the UserError."""
    try:
        return function(entry)
    except UserError as error:
        return str(error)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a UTF-8 file; raises UserError if it cannot be read."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None


def file_in(folder: Path, *names: str) -> Path:
    """Returns the first of the files `names` that exists in a folder; raises UserError if none does."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {' or '.join(names)}: give the folder of the benchmark")
