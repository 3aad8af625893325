"""Retrieval by likelihood on held-out utterances: which of N recordings belongs to a text, and the reverse.

Every pair of a text T and a recording A is the stream `BOS text_start T text_end audio_start A audio_end`, whose
score is log p(A | T), the sum over the audio tokens inside the markers. A text is asked for its recording in
two ways:

    likelihood    log p(A | T) / tokens of A
    ratio         log p(A | T) − log p(A), with p(A) from `BOS audio_start A audio_end`

The ratio does not prefer recordings that are likely with any text. A recording is asked for its text by log p(A | T).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.evaluate.choices import TIE
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.likelihood import ScoredSequence
from soda_jax.evaluate.speech import HeldOutUtterance
from soda_jax.evaluate.tables import failed_lines
from soda_jax.evaluate.wer import normalize
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.documents import audio_span, most_codebooks, text_span

RANKS = (1, 5, 10)
_BLOCK = 4  # texts, each with all recordings


def _lines(task: str, scores: Mapping[str, Any]) -> list[str]:
    count = scores["scored"]
    ranks = [k for k in RANKS if k <= count]
    head_cells = " ".join(format(f"recall@{k}", ">10") for k in ranks)
    chance = " ".join(format(k / count, ">10.1%") for k in ranks)
    lines = [
        f"\n{task}: {count:,} texts and their recordings, of {scores['items']:,} held-out utterances",
        f"{'':28} {'normalized over':16} {head_cells} {'median rank':>12}",
    ]
    for head, kinds in scores["recall"].items():
        for kind, row in kinds.items():
            cells = " ".join(format(row[f"recall@{k}"], ">10.1%") for k in ranks)
            lines.append(f"{kind:28} {head + ' ids':16} {cells} {row['median_rank']:>12.1f}")
    lines.append(f"{'by chance':45} {chance}")
    return lines + failed_lines(scores["failed"], "left out")


@evaluator("retrieval", lines=_lines)
def score_retrieval(context: EvaluationContext) -> dict[str, Any]:
    """Ranks the recordings of the first `options.limit` held-out utterances (64 by default) for each text.

    The number of scored streams is the square of that of the utterances. Of utterances with the same normalized
    text only the first is used.

    Returns:
      a JSON-able dict with items, scored, failed (name and reason of those left out), and recall: by head
      and kind ("text to audio, likelihood", "text to audio, ratio", "audio to text") the values of `recalls`.

    Raises:
      UserError: if fewer than two utterances remain, or a log-probability is not finite.
    """
    context.require("retrieval", "audio", "text")
    layout, metadata = context.model.layout, context.model.metadata["data"]
    codebooks = most_codebooks(metadata.get("sources", {}).values(), layout)
    items, failed = _usable(context.held_out, layout, codebooks, metadata["sequence_length"])
    if len(items) < 2:
        raise UserError(
            f"retrieval needs two different utterances, the held-out ones have {len(items)}"
        )
    results = context.partial(
        "retrieval", entries=[_content(item) for item in items],
        weights_dtype=context.weights_dtype, head=context.options.head,
    )  # fmt: skip
    likelihood, audio = context.likelihood, [_audio(item, layout, codebooks) for item in items]
    tokens = np.array([len(span) - 2.0 for span in audio])
    alone = [_sequence(layout, [], span) for span in audio]
    prior = _log_probabilities(likelihood, alone)
    for block in results.pending(items, _BLOCK, "texts"):
        texts = [text_span(item.utterance.text_ids, layout) for item in block]
        found = _log_probabilities(
            likelihood, [_sequence(layout, [text], span) for text in texts for span in audio]
        )
        for row, item in enumerate(block):
            part = slice(row * len(items), (row + 1) * len(items))
            scores = {head: values[part].tolist() for head, values in found.items()}
            results.add(item.name, {"scores": scores})
    recall = {}
    for head in likelihood.heads:
        matrix = np.array([results[item.name]["scores"][head] for item in items])
        rounding = TIE * np.abs(matrix)
        recall[head] = {
            "text to audio, likelihood": recalls(matrix / tokens, rounding / tokens),
            "text to audio, ratio": recalls(matrix - prior[head], rounding),
            "audio to text": recalls(matrix.T, rounding.T),
        }
    return {
        "items": len(context.held_out),
        "scored": len(items),
        "failed": failed,
        "recall": recall,
    }


def recalls(scores: np.ndarray, rounding: np.ndarray | float = 0.0) -> dict[str, float]:
    """Returns how often the right candidate is among the first k, for the k of `RANKS`, and its median rank.

    Equal scores are in random order: the recalls are expected values and the rank is the mean of the equal ones.

    Args:
      scores: f64 `[queries, candidates]`, finite; candidate i is the right one of query i.
      rounding: scores that differ by at most this from that of the right candidate are equal to it, f64
        `[queries, candidates]`.

    Returns:
      a dict with recall@1, recall@5, recall@10 and median_rank (from 1).
    """
    right = np.diagonal(scores)[:, None]
    close = np.abs(scores - right) <= rounding
    better, equal = ((scores > right) & ~close).sum(axis=1), close.sum(axis=1)
    found = {f"recall@{k}": float(np.clip((k - better) / equal, 0, 1).mean()) for k in RANKS}
    return found | {"median_rank": float(np.median(better + (equal + 1) / 2))}


def _usable(
    held_out: Sequence[HeldOutUtterance], layout: VocabularyLayout, codebooks: int, context: int
) -> tuple[list[HeldOutUtterance], list[dict[str, str]]]:
    """Returns the utterances with different texts that fit, and the reasons of the others."""
    names: dict[str, str] = {}
    kept, failed = [], []
    texts = np.array([2 + len(item.utterance.text_ids) for item in held_out])
    sounds = np.array([2 + codebooks * len(item.utterance.codes) for item in held_out])
    # Every text is scored with every recording: the longest text is chosen that leaves most utterances.
    fitting = [((texts <= n) & (sounds <= context - 1 - n)).sum() for n in texts]
    longest = int(texts[np.argmax(fitting)])
    for item, length, size in zip(held_out, texts.tolist(), sounds.tolist(), strict=True):
        text = normalize(item.utterance.text)
        if not len(item.utterance.text_ids):
            reason = "it has no text tokens"
        elif 1 + length + size > context:
            reason = f"its {1 + length + size} tokens exceed the context of {context} tokens"
        elif length > longest or size > context - 1 - longest:
            reason = (
                f"its {length} text tokens or {size} audio tokens do not fit into the context of {context} "
                "tokens with those of the others"
            )
        elif text in names:
            reason = f"it has the text of {names[text]}"
        else:
            names[text] = item.name
            kept.append(item)
            continue
        failed.append({"name": item.name, "reason": reason})
    return kept, failed


def _content(item: HeldOutUtterance) -> tuple[str, list[int], bytes]:
    """Returns the name and the tokens of an utterance."""
    return item.name, item.utterance.text_ids.tolist(), item.utterance.codes.tobytes()


def _audio(item: HeldOutUtterance, layout: VocabularyLayout, codebooks: int) -> np.ndarray:
    return audio_span(item.utterance.codes, layout, codebooks)


def _sequence(
    layout: VocabularyLayout, before: Sequence[np.ndarray], audio: np.ndarray
) -> ScoredSequence:
    """Returns BOS, the spans `before` and the audio span, whose tokens inside the markers are scored."""
    ids = np.concatenate([[layout.bos], *before, audio]).astype(np.int32)
    return ScoredSequence(ids, len(ids) - len(audio) + 1, len(ids) - 1)


def _log_probabilities(
    likelihood: Any, sequences: Sequence[ScoredSequence]
) -> dict[str, np.ndarray]:
    """Returns Σ log p of the scored tokens in nats, f64 `[sequences]`, by head; UserError unless finite."""
    found = {head: np.zeros(len(sequences)) for head in likelihood.heads}
    for indices, by_head in likelihood(sequences):
        for head, sums in by_head.items():
            found[head][indices] = [-one.nll.sum() for one in sums]
            if not np.isfinite(found[head][indices]).all():
                raise UserError(
                    "retrieval: a log-probability is not finite: the parameters of this checkpoint are damaged "
                    "or the training diverged"
                )
    return found
