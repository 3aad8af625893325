"""Validation NLL: the six losses of the paper, and the bits per second of audio that they amount to.

The validation split of the sources is rendered under four views, whether or not the run trained on them:

    text_first    BOS ( text_start T text_end audio_start A audio_end )+ EOS
    audio_first   BOS ( audio_start A audio_end text_start T text_end )+ EOS
    audio_only    BOS ( audio_start A audio_end )+ EOS
    text_only     BOS T EOS

*Audio* tokens are the tokens of A of all codebooks (semantic and acoustic), *text* tokens those of T; markers,
BOS and EOS count only in `audio_first_all`.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from soda_jax.data.dataset import documents, open_splits
from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import EvaluationContext, evaluator
from soda_jax.evaluate.windows import Sums, Windows, open_windows, with_split
from soda_jax.schema import DataConfig, SourceConfig, to_dict
from soda_jax.tokens import VocabularyLayout
from soda_jax.tokens.documents import View, most_codebooks

VIEWS = {
    "text_first": View("text_first", "S+A+T"),
    "audio_first": View("audio_first", "S+A+T"),
    "audio_only": View("text_first", "S+A"),
    "text_only": View("text_first", "text"),
}


class Variant(NamedTuple):
    """The view of a loss, and the tokens over which it is the mean: all, audio, semantic or text."""

    view: str
    tokens: str


VARIANTS = {
    "audio_first_all": Variant("audio_first", "all"),
    "text_first_audio": Variant("text_first", "audio"),
    "text_first_semantic": Variant("text_first", "semantic"),
    "audio_only_audio": Variant("audio_only", "audio"),
    "audio_first_text": Variant("audio_first", "text"),
    "text_only_text": Variant("text_only", "text"),
}
# The variants that are also given in bits per second of audio, and in bits per byte of text.
PER_SECOND = ("audio_only_audio", "text_first_audio")
PER_BYTE = ("audio_first_text", "text_only_text")
_BATCH = 8
# Documents of a source from which the bytes per token of its texts are measured.
_DOCUMENTS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class _Scored:
    """The sums of a view by normalizer, and the windows over which they were computed."""

    windows: Windows
    sums: Mapping[str, Sums]
    count: int


def _lines(task: str, scores: Mapping[str, Any]) -> list[str]:
    heads = scores["heads"]

    def cells(values: Mapping[str, Any]) -> str:
        return " ".join(f"{values[head]:>10.3f}" for head in heads)

    columns = " ".join(f"{head + ' ids':>10}" for head in heads)
    lines = [
        f"\n{task}: nats per token over {scores['windows']:,} windows of {scores['sequence_length']:,} tokens",
        f"{'':20} {columns} {'tokens':>12}  sources",
    ]
    for name in VARIANTS:
        if name in scores["variants"]:
            row = scores["variants"][name]
            sources = ", ".join(
                source if part["trained"] else f"{source} (the run does not train on this view)"
                for source, part in row["sources"].items()
            )
            lines.append(f"{name:20} {cells(row['nll'])} {row['tokens']:>12,}  {sources}")
        else:
            lines.append(f"{name:20} not available: {scores['not_available'][name]}")
    for kind, unit, amount in (
        ("bits_per_second", "bits per second of audio", "seconds"),
        ("bits_per_byte", "bits per byte of text", "bytes"),
    ):
        for name, row in scores[kind].items():
            lines.append(f"{name:20} {cells(row)} {unit}, over {row[amount]:,.0f} {amount}")
    return lines


def _metrics(scores: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {"items": scores["windows"]}
    for head in scores["heads"]:
        found |= {f"{head}/{name}": row["nll"][head] for name, row in scores["variants"].items()}
        for kind in ("bits_per_second", "bits_per_byte"):
            found |= {f"{head}/{kind}/{name}": row[head] for name, row in scores[kind].items()}
    return found


@evaluator("nll", lines=_lines, metrics=_metrics)
def score_nll(context: EvaluationContext) -> dict[str, Any]:
    """Returns the six losses of `VARIANTS`, normalized over all ids, with the legal head also over legal ids.

    With `options.limit`, each view reads about this number of windows, evenly spaced and at least 8 per source;
    otherwise all.

    Returns:
      a JSON-able dict with windows (number that was read, over all views), sequence_length, heads,
      compute_dtype, weights_dtype, codebooks and frame_rate (Hz) of the audio, and
      - variants: by name a dict with tokens, nll (nats per token by head), and sources, a dict by name with
        tokens, nll and trained (whether the run trains on this view of the source);
      - not_available: reasons of the variants that no source can give;
      - left_out: reasons of the sources that a view leaves out, by view and source;
      - bits_per_second: by variant Σ −log2 p over the audio tokens / seconds of audio, by head, and seconds
        (scored tokens / codebooks / frame rate);
      - bits_per_byte: by variant Σ −log2 p over the text tokens / UTF-8 bytes, by head, and bytes (scored
        tokens × bytes per token of the first 1,000 documents of each source);
      - loss_vectors: the loss vector by view and head.

    Raises:
      UserError: if no source has a validation split, or a loss is not finite.
    """
    options, layout = context.options, context.model.layout
    config, without_split = with_split(context.data, "validation")
    codebooks = most_codebooks(map(to_dict, context.data.sources.values()), layout)
    trained_head = context.model.model.config.head
    heads = (options.head,) if options.head else tuple(dict.fromkeys(("full", trained_head)))
    scored: dict[str, _Scored] = {}
    left_out: dict[str, dict[str, str]] = {}
    for view in VIEWS:
        chosen, left_out[view] = _sources(config, view, layout, codebooks)
        left_out[view] |= dict.fromkeys(without_split, "it has no validation split")
        if chosen.sources:
            scored[view] = _score(context, chosen, heads)
    result: dict[str, Any] = {
        "windows": sum(view.count for view in scored.values()),
        "sequence_length": config.sequence_length,
        "limit": options.limit,
        "heads": list(heads),
        "compute_dtype": context.scored_model.model.config.compute_dtype,
        "weights_dtype": context.weights_dtype,
        "codebooks": codebooks,
        "frame_rate": None,
        "variants": {},
        "not_available": {},
        "left_out": {view: reasons for view, reasons in left_out.items() if reasons},
        "bits_per_second": {},
        "bits_per_byte": {},
        "loss_vectors": {
            view: {head: found.windows.loss_vector(sums) for head, sums in found.sums.items()}
            for view, found in scored.items()
        },
    }
    ratios: dict[str, float] = {}
    for name, variant in VARIANTS.items():
        found = scored.get(variant.view)
        row = _variant(found, variant, context.data) if found else None
        if row is None or found is None:
            reasons = sorted(left_out[variant.view].items())
            result["not_available"][name] = (
                f"the windows have no {variant.tokens} tokens"
                if found
                else "; ".join(f"{source}: {reason}" for source, reason in reasons)
            )
            continue
        result["variants"][name] = row
        if name in PER_SECOND:
            result["frame_rate"] = _frame_rate(found.windows)
            seconds = row["tokens"] / codebooks / result["frame_rate"]
            result["bits_per_second"][name] = _bits(row, seconds) | {"seconds": seconds}
        if name in PER_BYTE:
            for source in row["sources"]:
                if source not in ratios:
                    ratios[source] = _bytes_per_token(config, source)
            sizes = [part["tokens"] * ratios[source] for source, part in row["sources"].items()]
            if total := sum(sizes):
                result["bits_per_byte"][name] = _bits(row, total) | {"bytes": total}
    return result


def _sources(
    config: DataConfig, view: str, layout: VocabularyLayout, codebooks: int
) -> tuple[DataConfig, dict[str, str]]:
    """Returns the `data` settings with the sources that can give a view, and the reasons of the others.

    Sources with fewer than `codebooks` codebooks are left out of views with audio.
    """
    wanted, reasons = VIEWS[view], {}
    chosen: dict[str, SourceConfig] = {}
    names: dict[Any, str] = {}
    for name, source in config.sources.items():
        if reason := _reason_against(source, wanted, layout, codebooks):
            reasons[name] = reason
        elif _documents(source) in names:
            reasons[name] = f"it has the documents of {names[_documents(source)]}"
        else:
            names[_documents(source)] = name
            chosen[name] = dataclasses.replace(
                source, composition=wanted.composition, order=wanted.order
            )
    return dataclasses.replace(config, sources=chosen), reasons


def _documents(source: SourceConfig) -> tuple[Any, ...]:
    """Returns what determines the documents of a source and the codebooks that it shows."""
    return source.path, source.generation, source.exclude_documents, source.codebooks


def _reason_against(
    source: SourceConfig, wanted: View, layout: VocabularyLayout, codebooks: int
) -> str:
    """Returns why a source cannot give a view; "" if it can."""
    composition = source.composition
    if wanted.composition == "text":
        return "" if composition == "text" else "its texts are transcripts, not documents of text"
    if composition == "text":
        return "it is used without audio"
    if composition == "S":
        return "it is used without acoustic tokens"
    if wanted.has_text and composition == "S+A":
        return "it is used without text"
    shown = View(composition=composition, codebooks=source.codebooks).shown_codebooks(layout)
    if shown < codebooks:
        return f"it is used with {shown} of {codebooks} codebooks"
    return ""


def _score(context: EvaluationContext, config: DataConfig, heads: Sequence[str]) -> _Scored:
    # A batch is split over devices.
    ways = context.model.placement.ways("batch", 2**30)
    size = -(-_BATCH // ways) * ways
    limit = -(-(context.options.limit or 0) // size)
    sums, opened = {}, None
    for head in heads:
        opened = open_windows(config, legal_sets=head == "legal")
        sums[head] = context.loss_sums("nll", opened, size, limit)
    assert opened is not None
    return _Scored(opened, sums, opened.window_count(size, limit))


def _variant(scored: _Scored, variant: Variant, trained: DataConfig) -> dict[str, Any] | None:
    """Returns the loss of a variant, see `score_nll`; None if there is no such token."""
    windows, columns = scored.windows, _columns(scored.windows.layout, variant.tokens)
    counts = next(iter(scored.sums.values()))["count"][:, columns].sum(axis=1)
    nll = {head: sums["nll"][:, columns].sum(axis=1) for head, sums in scored.sums.items()}
    total = counts.sum()
    if not total:
        return None
    return {
        "tokens": int(total),
        "nll": {head: float(values.sum() / total) for head, values in nll.items()},
        "sources": {
            name: {
                "tokens": int(counts[row]),
                "nll": {head: float(values[row] / counts[row]) for head, values in nll.items()},
                "trained": _trains_on(trained, name, variant.view),
            }
            for row, name in enumerate(windows.source_names)
            if counts[row]
        },
    }


def _columns(layout: VocabularyLayout, tokens: str) -> np.ndarray:
    """Returns which target classes belong to a kind of tokens, bool `[classes]`."""
    names = layout.class_names
    if tokens == "audio":
        return np.array([name not in ("text", "marker") for name in names])
    return np.array([tokens in ("all", name) for name in names])


def _trains_on(config: DataConfig, name: str, view: str) -> bool:
    """Returns whether a source, or another one with the same documents, is used under a view."""
    wanted, documents_of = VIEWS[view], _documents(config.sources[name])
    orders = (wanted.order, "both")
    return any(
        source.composition == wanted.composition
        and (source.composition != "S+A+T" or source.order in orders)
        for source in config.sources.values()
        if _documents(source) == documents_of
    )


def _bits(row: Mapping[str, Any], amount: float) -> dict[str, float]:
    """Returns the bits of the scored tokens per unit of `amount`, by head."""
    return {head: nll * row["tokens"] / math.log(2) / amount for head, nll in row["nll"].items()}


def _frame_rate(windows: Windows) -> float:
    """Returns the frame rate of the codec in Hz."""
    codec = next(iter(windows.datasets.values())).codec
    if codec is None:
        raise UserError("the manifests of the data name no codec: the frame rate is unknown")
    return float(codec["frame_rate"])


def _bytes_per_token(config: DataConfig, source: str) -> float:
    """Returns the UTF-8 bytes per text token in the first documents of a source; 0 without tokens."""
    only = dataclasses.replace(config, sources={source: config.sources[source]})
    size = tokens = 0
    for document in itertools.islice(documents(open_splits(only)), _DOCUMENTS):
        for utterance in document.utterances:
            size += len(utterance.text.encode())
            tokens += len(utterance.text_ids)
    return size / tokens if tokens else 0.0
