"""Formats the results of `soda evaluate` as text tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from soda_jax.registry import EVALUATORS


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """Held-out losses of a class in nats per token.

    A baseline that was not measured with the normalizer of the model is None.
    """

    name: str
    model: float
    unigram: float | None
    bigram: float | None

    @property
    def margin(self) -> float | None:
        """Loss of the better baseline minus loss of the model, in nats; None without baselines."""
        baselines = [value for value in (self.unigram, self.bigram) if value is not None]
        return min(baselines) - self.model if baselines else None


def class_rows(evaluation: Mapping[str, Any]) -> list[ClassRow]:
    """Returns a row for each token class in the held-out windows, and a last row for all tokens."""
    loss, baselines = evaluation["loss"], evaluation.get("baselines", {})
    if _head(baselines) != _head(loss):
        baselines = {}
    rows = []
    for name in [*loss["classes"], "all"]:
        key = f"loss/{name}"
        if key in loss["model"]:
            unigram, bigram = (baselines.get(kind, {}).get(key) for kind in ("unigram", "bigram"))
            rows.append(ClassRow(name, loss["model"][key], unigram, bigram))
    return rows


def _head(scores: Mapping[str, Any]) -> str:
    # Results that do not name their normalizer are older, and over all ids.
    return str(scores.get("head", "full"))


def not_below(rows: list[ClassRow]) -> list[str]:
    """Returns the classes for which the loss of the model is not below both baselines."""
    return [row.name for row in rows if row.margin is not None and row.margin <= 0]


# Items that could not be scored, in the output of the command.
_SHOWN = 5
_WITH_LINES = ("loss", "baselines", "asr", "tts", "grammar")


def text_report(evaluation: Mapping[str, Any]) -> str:
    """Returns the scores as text for a terminal."""
    lines = [f"step {evaluation['step']:,}"]
    if "loss" in evaluation:
        lines += _loss_lines(evaluation)
    elif "baselines" in evaluation:
        for kind in ("unigram", "bigram"):
            lines.append(f"{kind}: {evaluation['baselines'][kind]['loss/all']:.3f} nats per token")
    if "asr" in evaluation:
        lines += _asr_lines(evaluation["asr"])
    if "tts" in evaluation:
        lines += _tts_lines(evaluation["tts"])
    if "grammar" in evaluation:
        lines += _grammar_lines(evaluation["grammar"])
    for task in evaluation.get("tasks", ()):
        if task in EVALUATORS and getattr(EVALUATORS.get(task, "tasks"), "lines", None):
            lines += EVALUATORS.get(task, "tasks").lines(task, evaluation[task])  # type: ignore[attr-defined]
        elif task not in _WITH_LINES:
            lines += ["", f"{task}:", *_score_lines(evaluation[task])]
    return "\n".join(lines)


def choice_lines(task: str, scores: Mapping[str, Any]) -> list[str]:
    """Returns a table with a line for each normalizer, kind of tokens and part of a benchmark."""
    lines = [
        f"\n{task}: {scores['scored']:,} of {scores['items']:,} items scored by {scores['scorer']}",
        f"{'normalized over':16} {'tokens':9} {'part':24} {'accuracy':>8} {'95% interval':>15} {'items':>7}",
    ]
    for head, kinds in scores["accuracy"].items():
        for kind, parts in kinds.items():
            for part, row in parts.items():
                bounds = f"{row['low']:.1%} to {row['high']:.1%}"
                lines.append(
                    f"{head + ' ids':16} {kind:9} {part:24} {row['accuracy']:>8.1%} {bounds:>15} "
                    f"{row['items']:>7,}"
                )
    if scores.get("missing_parts"):
        lines.append(f"parts without data: {', '.join(scores['missing_parts'])}")
    return lines + failed_lines(scores["failed"])


def failed_lines(failed: Sequence[Mapping[str, str]], what: str = "not scored") -> list[str]:
    """Returns a line for each of the first items that were not scored."""
    lines = [f"  {what}: {row['name']}: {row['reason']}" for row in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"  and {len(failed) - _SHOWN:,} more, all in the JSON file")
    return lines


def limited_lines(scores: Mapping[str, Any]) -> list[str]:
    """Returns the number of items that the context of the model ended and the first of them; empty without one."""
    limited = scores.get("limited", ())
    if not limited:
        return []
    return [
        f"{len(limited):,} reach the end of the context of the model",
        *failed_lines(limited, "limited"),
    ]


def _score_lines(scores: Mapping[str, Any]) -> list[str]:
    """Returns one line per number or string in the scores of an evaluator that has no table."""
    shown = {name: value for name, value in scores.items() if isinstance(value, int | float | str)}
    return [
        f"  {name}: {value:,.4g}" if isinstance(value, float) else f"  {name}: {value}"
        for name, value in shown.items()
    ]


def _loss_lines(evaluation: Mapping[str, Any]) -> list[str]:
    loss, rows = evaluation["loss"], class_rows(evaluation)
    counts = f"{loss['tokens']:,} tokens, {loss['windows']} windows"
    title = f"\nheld-out loss in nats per token ({counts})"
    if _head(loss) == "legal":
        title += "\nprobabilities over the legal ids"
    if "baselines" in evaluation and _head(evaluation["baselines"]) != _head(loss):
        title += "; the baselines have another normalizer: measure them again"
    lines = [title, f"{'':12} {'model':>8} {'unigram':>8} {'bigram':>8} {'margin':>8}"]
    for row in rows:
        cells = [row.model, row.unigram, row.bigram, row.margin]
        text = " ".join(f"{'–' if cell is None else format(cell, '.3f'):>8}" for cell in cells)
        lines.append(f"{row.name:12} {text}")
    if missed := not_below(rows):
        lines.append(f"model loss NOT below both baselines: {', '.join(missed)}")
    if loss["left_out"]:
        lines.append(f"no validation split: {', '.join(loss['left_out'])}")
    return lines


def _asr_lines(asr: Mapping[str, Any]) -> list[str]:
    return [
        f"\nASR: {asr['word_error_rate']:.1%} corpus WER over {asr['utterances']} held-out "
        f"utterances, {asr['decoding']}, {asr['finished_share']:.1%} of the transcripts end",
        *failed_lines(asr.get("failed", ()), "failed"),
        *limited_lines(asr),
        *(f"  {row['reference']!r} → {row['hypothesis']!r}" for row in asr["examples"][:5]),
    ]


def _grammar_lines(grammar: Mapping[str, Any]) -> list[str]:
    lines = [
        f"\nwithout the grammar, {grammar['utterances']} utterances, {grammar['sampling']}, at most "
        f"{grammar['max_seconds']:g} s",
        f"{'':12} {'legal':>8} {'finished':>9} {'finished with the grammar':>26}",
    ]
    for kind in ("speech", "text"):
        row = grammar[kind]
        lines.append(
            f"{kind:12} {row['legal_share']:>8.1%} {row['finished_share_without']:>9.1%} "
            f"{row['finished_share']:>26.1%}"
        )
    for kind in ("speech", "text"):
        lines += failed_lines(grammar[kind].get("failed", ()), f"{kind} left out")
        lines += limited_lines(grammar[kind])
    return lines


def _tts_lines(tts: Mapping[str, Any]) -> list[str]:
    return [
        f"\nTTS: {tts['mean_word_error_rate']:.1%} mean WER by {tts['recognizer']} over "
        f"{tts['utterances']} texts of held-out documents ({tts['word_error_rate']:.1%} corpus), "
        f"{tts['complete_share']:.1%} of them generated completely",
        "codec reconstructions of the recordings: "
        f"{tts['codec_mean_word_error_rate']:.1%} mean WER, "
        f"{tts['codec_word_error_rate']:.1%} corpus",
        *failed_lines(tts.get("failed", ()), "failed"),
        *limited_lines(tts),
        *(f"  {row['reference']!r} → {row['heard']!r}" for row in tts["examples"][:5]),
    ]
