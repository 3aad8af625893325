"""Reads the JSON of `soda evaluate` into rows of the tables of a report."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from soda_jax.evaluate.evaluators import FORMAT_VERSION
from soda_jax.evaluate.tables import ClassRow, class_rows
from soda_jax.report.comparable import differences
from soda_jax.report.published import COLUMNS, Column
from soda_jax.report.rows import FailedItems, PartRow, Results, Score, SpeechRow

# How texts are normalized before word errors are counted.
_PAPER_TEXT, _NUMBER_TEXT = "the paper's: no punctuation, lower case", "numbers as digits"
_SPEECH = ("asr", "tts", "librispeech", "seed_tts_eval")
_WITH_TABLES = ("loss", "baselines", *_SPEECH, *(column.task for column in COLUMNS))
_LONGEST_TEXT = 80  # of the settings of a task that has no table, such as its normalizer


def read_results(path: Path) -> Results:
    """Reads a JSON file that `soda evaluate` wrote.

    Raises:
      UserError: if the file cannot be read, is damaged, or has another format version.
    """
    again = "write it again with soda evaluate"
    try:
        evaluation = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, it is not JSON ({error}): {again}") from None
    if isinstance(evaluation, dict) and evaluation.get("failed") and path.stem.isdigit():
        # If every task failed during training, the file has only the reasons.
        nothing = {"format_version": FORMAT_VERSION, "step": int(path.stem), "tasks": []}
        evaluation = nothing | evaluation
    if not isinstance(evaluation, dict) or "format_version" not in evaluation:
        raise UserError(
            f"{path} has no format_version, so it is not an evaluation: give a JSON file of soda evaluate"
        )
    if (version := evaluation["format_version"]) != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {version}, not {FORMAT_VERSION}: {again} of this version"
        )
    try:
        return results_of(evaluation)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged or incomplete ({what}): {again}") from None


def results_of(evaluation: Mapping[str, Any]) -> Results:
    """Returns the rows of an evaluation; raises KeyError, TypeError or ValueError if it is not valid."""
    tasks = [str(task) for task in evaluation["tasks"]]
    limit = evaluation.get("limit")
    checked = {"step": int(evaluation["step"]), "limit": None if limit is None else int(limit)}
    return Results(
        settings={key: value for key, value in evaluation.items() if key not in tasks} | checked,
        scores=tuple(_scores(evaluation)),
        parts=tuple(_parts(evaluation)),
        speech=tuple(_speech(evaluation)),
        failed=tuple(_failed(evaluation)),
        losses=tuple(_losses(evaluation)),
        loss_settings=_loss_settings(evaluation.get("loss", {})),
        numbers=tuple(
            (f"{task} {name}".replace("_", " "), value)
            for task in tasks
            if task not in _WITH_TABLES
            for name, value in _numbers(evaluation[task])
        ),
        stopped=tuple((str(k), str(v)) for k, v in evaluation.get("failed", {}).items()),
    )


def _scores(evaluation: Mapping[str, Any]) -> Iterator[Score]:
    limit = evaluation.get("limit")
    for column in COLUMNS:
        if column.task not in evaluation:
            continue
        scores = {"weights_dtype": evaluation.get("weights_dtype"), **evaluation[column.task]}
        if "accuracy" in scores:
            yield from _accuracies(column, scores, limit)
            continue
        key, scorer = {
            "ASR WER": ("word_error_rate", "the model's own transcripts"),
            "TTS WER": ("mean_word_error_rate", scores.get("recognizer")),
            "SIM": ("similarity", scores.get("speaker_encoder")),
        }[column.name]
        yield Score(
            column.name,
            column.task,
            _number(scores[key], 1 if column.name == "SIM" else 100),
            *(None, None),
            items=int(scores["scored"]),
            normalizer="" if column.name == "SIM" else _PAPER_TEXT,
            tokens="",
            scorer=str(scorer),
            differences=differences(column, scores, limit),
        )
    for task, key in (("asr", "word_error_rate"), ("tts", "mean_word_error_rate")):
        if task in evaluation:
            scores = evaluation[task]
            benchmark = {"asr": "LibriSpeech", "tts": "Seed-TTS-eval"}[task]
            yield Score(
                f"{task.upper()} WER, held-out",
                task,
                _number(scores[key], 100),
                *(None, None),
                items=int(scores["utterances"]),
                normalizer=_PAPER_TEXT if task == "asr" else _NUMBER_TEXT,
                tokens="",
                scorer=str(scores.get("recognizer", "the model's own transcripts")),
                differences=(f"held-out documents of the run, not {benchmark}",),
            )


def _accuracies(column: Column, scores: Mapping[str, Any], limit: int | None) -> Iterator[Score]:
    for normalizer, kinds in scores["accuracy"].items():
        for tokens, parts in kinds.items():
            row = parts["all"]
            value, low, high = (_number(row[key], 100) for key in ("accuracy", "low", "high"))
            yield Score(
                *(column.name, column.task, value, low, high, int(row["items"])),
                normalizer=f"{normalizer} ids",
                tokens=tokens,
                scorer=str(scores["scorer"]),
                differences=differences(
                    column, scores, limit, normalizer=normalizer, tokens=tokens
                ),
            )


def _parts(evaluation: Mapping[str, Any]) -> Iterator[PartRow]:
    for task in dict.fromkeys(column.task for column in COLUMNS):
        for normalizer, kinds in evaluation.get(task, {}).get("accuracy", {}).items():
            for tokens, parts in kinds.items():
                for part, row in parts.items():
                    value, low, high = (
                        100 * float(row[key]) for key in ("accuracy", "low", "high")
                    )
                    items = int(row["items"])
                    yield PartRow(task, f"{normalizer} ids", tokens, part, value, low, high, items)


def _speech(evaluation: Mapping[str, Any]) -> Iterator[SpeechRow]:
    for task in _SPEECH:
        if task not in evaluation:
            continue
        scores = evaluation[task]
        spoken = task in ("tts", "seed_tts_eval")
        settings = (
            f"{scores['sampling']}, at most {float(scores['max_seconds']):g} s"
            if spoken
            else str(scores["decoding"])
        )
        if scores.get("shots"):
            settings += f", {scores['shots']} shots"
        remarks = {
            "codec reconstructions, mean WER": (
                _number(scores.get("codec_mean_word_error_rate")),
                ".1%",
            ),
            f"SIM by {scores.get('speaker_encoder')}": (_number(scores.get("similarity")), ".3f"),
            "SIM of the complete ones": (_number(scores.get("similarity_complete")), ".3f"),
            **{
                f"{scores.get('naturalness_scorer')} {kind}": (_number(value), ".2f")
                for kind, value in scores.get("naturalness", {}).items()
            },
            "length / recording": (_number(scores.get("length_ratio")), ".2f"),
        }
        yield SpeechRow(
            task,
            items=int(scores["scored"] if "scored" in scores else scores["utterances"]),
            corpus=float(scores["word_error_rate"]),
            mean=float(scores["mean_word_error_rate"]),
            finished=_number(scores.get("complete_share" if spoken else "finished_share")),
            scorer=str(scores["recognizer"]) if spoken else "",
            settings=settings,
            text=_NUMBER_TEXT if task == "tts" else _PAPER_TEXT,
            remarks=tuple(
                f"{name} {value:{style}}"
                for name, (value, style) in remarks.items()
                if value is not None
            ),
        )


def _failed(evaluation: Mapping[str, Any]) -> Iterator[FailedItems]:
    for task in evaluation["tasks"]:
        scores = evaluation[task]
        # A registered evaluator may use the name for something else, such as a number.
        if (
            isinstance(scores, Mapping)
            and isinstance(scores.get("failed"), list)
            and scores["failed"]
        ):
            rows = tuple((str(row["name"]), str(row["reason"])) for row in scores["failed"])
            yield FailedItems(str(task), int(scores["items"]), rows)


def _losses(evaluation: Mapping[str, Any]) -> Iterator[ClassRow]:
    for row in class_rows(evaluation) if "loss" in evaluation else ():
        baselines = (None if value is None else float(value) for value in (row.unigram, row.bigram))
        yield ClassRow(row.name, float(row.model), *baselines)


def _loss_settings(loss: Mapping[str, Any]) -> str:
    if not loss:
        return ""
    normalizer, dtype = loss.get("head", "full"), loss.get("weights_dtype", "float32")
    return (
        f"{int(loss['tokens']):,} tokens in {int(loss['windows']):,} windows, normalized over {normalizer} "
        f"ids, weights {dtype}"
    )


def _numbers(scores: Any, prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Yields (name, value) of the numbers and short texts in nested dicts."""
    if isinstance(scores, Mapping):
        for key, value in scores.items():
            yield from _numbers(value, f"{prefix} {key}".strip())
    elif isinstance(scores, int | float) and not isinstance(scores, bool):
        yield prefix, float(scores)
    elif isinstance(scores, str) and len(scores) <= _LONGEST_TEXT:
        yield prefix, scores


def _number(value: Any, scale: float = 1) -> float | None:
    """Returns a finite number times `scale`; None for None and for numbers that are not finite."""
    return scale * float(value) if value is not None and math.isfinite(float(value)) else None
