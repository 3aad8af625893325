"""Writes the model card of an export: the template exported/card.md with facts from a run's files.

The front matter has no license: the publisher of the weights chooses one. A fact that no
file contains is written as "not known".
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from soda_jax.checked_json import parse_checked_json
from soda_jax.checkpoints.tree import flatten
from soda_jax.convert.tokenizer_files import FIRST_CHARACTER, special_names
from soda_jax.errors import UserError
from soda_jax.tokens.text import load_tokenizer
from soda_jax.tokens.vocabulary import VocabularyLayout

SOURCE_KEYS = ("name", "weight", "view", "tokens", "excluded_list", "excluded_documents")
_UNKNOWN = "not known"
# Characters that represent audio ids and are also common in real text.
_FREQUENT_CHARACTERS = {
    0xFE0F: "U+FE0F after an emoji",
    0xFF0C: "the full-width comma U+FF0C",
    0xFFFD: "U+FFFD, which replaces invalid characters",
}
_TEMPLATES = Path(__file__).parent / "exported"


def model_card(
    workdir: Path,
    metadata: Mapping[str, Any],
    step: int,
    *,
    name: str,
    parameters: int,
    dtype: str,
    contamination: str | Path | None = None,
) -> str:
    """Returns the README.md of an export: YAML front matter for the hub, then Markdown.

    Args:
      workdir: folder of the run; its data.json and metrics.jsonl are optional.
      metadata: metadata of the checkpoint (`soda_jax.train.run_files.run_metadata`); only "layout"
        is required.
      step: step of the checkpoint; metrics of later steps are ignored.
      name: name of the model.
      parameters: number of parameters.
      dtype: dtype of the exported tensors.
      contamination: JSONL file written by `soda inspect --contamination … --report=FILE.jsonl`, or
        a text file, which is copied.

    Raises:
      UserError: if `contamination` or the tokenizer cannot be read, or a file of the run is
        damaged.
    """
    layout = VocabularyLayout.from_json(metadata["layout"])
    bos = special_names(load_tokenizer(workdir / "tokenizer"))[0]
    version, digest = metadata.get("soda_jax"), metadata.get("data_digest")
    config = metadata.get("config") or {}
    length = (config.get("data") or {}).get("sequence_length")
    windows = metadata.get("windows")
    chosen = {
        key: config[key]
        for key in ("model", "optimizer", "steps", "batch_size", "seed")
        if key in config
    }
    chosen |= {"data": {"sequence_length": length}} if length else {}
    settings = flatten(chosen).items()
    overview = {
        "step": f"{step:,}",
        "parameters": f"{parameters:,}",
        "weights": dtype,
        "tokens seen in training": _count(windows * length if windows and length else None),
        "vocabulary": f"{layout.size:,} ids: {layout.text_size:,} of text, codebooks "
        + (" · ".join(map(str, layout.codebook_sizes)) or "none"),
        "tokenizer": metadata.get("tokenizer_fingerprint") or _UNKNOWN,
        "codec": metadata.get("codec_fingerprint") or _UNKNOWN,
        "started from": _origin(metadata),
        "data digest": digest or _UNKNOWN,
        "code": f"soda_jax {version}" if version else _UNKNOWN,
    }
    example = f"The model has no audio ids: a prompt is `{bos}` followed by text."
    if layout.codebooks:
        example = _filled(
            "card_example.md",
            bos=bos,
            new_tokens=180 * layout.codebooks + 1,
            offsets=[int(first) - layout.audio_base for first in layout.codebook_offsets],
            codebooks=layout.codebooks,
        ).rstrip()
    names = sorted((metadata.get("data") or {}).get("sources") or {})
    metrics = _read_metrics(workdir / "metrics.jsonl", step)
    sources = data_sources(workdir, metadata)
    return _filled(
        "card.md",
        name=_text(name),
        bos=bos,
        overview=_table(("", ""), (row for row in overview.items() if row[1])),
        example=example,
        characters=_audio_characters(layout, bool(version)) if layout.codebooks else "",
        data=f"Data digest: {f'`{digest}`' if digest else _UNKNOWN}.\n\n{_sources(sources)}",
        contamination=_contamination(contamination, sources),
        validation=_losses("Validation split", metrics, "validation/loss/", names),
        training=_losses("Training batch", metrics, "loss/", names),
        config=_table(("key", "value"), ((f"`{k.replace('/', '.')}`", v) for k, v in settings))
        if settings
        else f"The config is {_UNKNOWN}.",
    )


def _filled(template: str, **values: Any) -> str:
    return Template((_TEMPLATES / template).read_text("utf-8")).substitute(values)


def data_sources(workdir: Path, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the sources of a run's data, sorted by name, with the keys `SOURCE_KEYS`.

    "weight" is the fraction of the windows, 0–1. "tokens" and "excluded_documents" are None if
    data.json does not contain them.

    Raises:
      UserError: if data.json is damaged.
    """
    converted = metadata.get("converted_from")
    if converted is not None:
        return list(converted.get("sources") or ())
    counts = _read_counts(workdir / "data.json", metadata.get("data_digest"))
    sources = (metadata.get("data") or {}).get("sources") or {}
    total = sum(float(source["weight"]) for source in sources.values())
    found = []
    for name in sorted(sources):
        source, count = sources[name], counts.get(name, {})
        view = [str(source.get("composition", "S+A+T"))]
        if view == ["S+A+T"] and source.get("order"):
            view.append(str(source["order"]).replace("_", "-"))
        if source.get("codebooks"):
            view.append(f"codebooks: {source['codebooks']}")
        values = (
            name,
            float(source["weight"]) / total,
            ", ".join(view),
            count.get("tokens"),
            Path(source.get("exclude_documents") or "").name,  # an export contains no paths
            count.get("excluded_documents"),
        )
        found.append(dict(zip(SOURCE_KEYS, values, strict=True)))
    return found


def _origin(metadata: Mapping[str, Any]) -> str | None:
    if about := metadata.get("converted_from"):
        rows = ", extended by rows for markers and audio, not trained since"
        return f"{about['name']}, converted{rows if about.get('extended') else ''}"
    if about := metadata.get("started_from"):
        return f"{Path(about['path']).name}, step {about['step']:,}"
    return None


def _audio_characters(layout: VocabularyLayout, trained_by_soda: bool) -> str:
    last = FIRST_CHARACTER + layout.size - layout.audio_base - 1
    frequent = [name for code, name in _FREQUENT_CHARACTERS.items() if code <= last]
    occurrence = (
        f"Real text contains some of them: {', '.join(frequent)}."
        if frequent
        else "They are in Unicode's private use area and rare in real text."
    )
    ours = " The text encoder of soda_jax does not have this problem." if trained_by_soda else ""
    return (
        f"\n\nEach audio id is written as one character, U+{FIRST_CHARACTER:X}–U+{last:X}. {occurrence} "
        "This tokenizer always converts them to audio ids: remove them from text before you put it into a "
        f"prompt.{ours}"
    )


def _sources(sources: list[dict[str, Any]]) -> str:
    if not sources:
        return f"The sources are {_UNKNOWN}."
    rows = []
    for source in sources:
        name, weight, view, tokens, excluded, documents = (source[key] for key in SOURCE_KEYS)
        excluded = f"`{excluded}`: {_count(documents)}" if excluded else "none"
        rows.append((name, f"{weight:.4f}", view, _count(tokens), excluded))
    return _table(("source", "weight", "view", "tokens", "excluded documents"), rows)


def _contamination(file: str | Path | None, sources: list[dict[str, Any]]) -> str:
    report = (
        "No report: whether the training data contains evaluation data is "
        f"{_UNKNOWN} (`soda inspect --contamination` searches for it)."
    )
    if file is not None:
        report = _read_report(Path(file))
        fence = "```" if "```" not in report else "~~~~"
        report = f"{fence}\n{report}\n{fence}" if "\n" in report else _text(report)
    lists = [
        f"`{source['excluded_list']}` ({_text(source['name'])})"
        for source in sources
        if source["excluded_list"]
    ]
    if lists:
        return f"{report}\n\nThe documents excluded from training are listed in {', '.join(lists)}."
    if sources:
        return f"{report}\n\nNo documents were excluded from the training data."
    return report


def _losses(label: str, metrics: list[dict[str, Any]], prefix: str, names: Iterable[str]) -> str:
    """Returns the newest losses whose names begin with `prefix` as Markdown, or "not known"."""
    for row in metrics:
        losses = _with_prefix(row, prefix)
        if not losses:
            continue
        columns = {"all sources": {n: x for n, x in losses.items() if "/" not in n}}
        columns |= {name: x for name in names if (x := _with_prefix(losses, f"{name}/"))}
        rows = [
            [
                kind,
                *(f"{values[kind]:.4f}" if kind in values else "" for values in columns.values()),
            ]
            for kind in dict.fromkeys(kind for values in columns.values() for kind in values)
        ]
        return f"{label}, step {row['step']:,}:\n\n" + _table(("class", *columns), rows)
    return f"{label}: {_UNKNOWN}."


def _with_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): float(value)
        for name, value in values.items()
        if name.startswith(prefix) and value is not None
    }


def _table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines: list[Iterable[object]] = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines)


def _text(value: object) -> str:
    """Returns one line of Markdown that is valid in a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _read_counts(path: Path, digest: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Returns the counts by source; empty if `path` is missing or has another data digest."""
    if not path.is_file():
        return {}
    try:
        value = parse_checked_json(path.read_bytes())
        return dict(value["sources"]) if digest is not None and value["digest"] == digest else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): restore it, or remove it to export without counts"
        ) from None


def _read_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Returns the rows up to `step`, newest first, skipping lines that a killed run truncated."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if row["step"] <= step:
                rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [rows[number] for number in sorted(rows, reverse=True)]


def _read_report(path: Path) -> str:
    """Returns the content of a text file, or a summary of a JSONL report."""
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--contamination={path} cannot be read ({error}): give the file of soda inspect --report"
        ) from None
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        documents = {row["document"] for row in rows}
        shares = [float(row["share"]) for row in rows]
    except (ValueError, KeyError, TypeError):
        return text
    if not rows:
        return f"{path.name}: no utterance of the evaluation data was found in the training data."
    trained = {row.get("train_document") for row in rows}
    return (
        f"{path.name}: {len(rows):,} utterances of {len(documents):,} documents of evaluation data were "
        f"found in {len(trained):,} documents of the training data; the fractions of their n-grams "
        f"found are {min(shares):.2f}–{max(shares):.2f}."
    )
