"""What a model card tells: what the run's own files say, and nothing that they do not."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.checked_json import parse_checked_json
from soda_jax.convert.tokenizer_files import special_names
from soda_jax.errors import UserError
from soda_jax.tokens.text import load_tokenizer
from soda_jax.tokens.vocabulary import VocabularyLayout


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a run's data.

    Attributes:
      name: in the config.
      weight: its share of the windows, of 1.
      view: composition, and the order where it has one.
      tokens: under that view; None if the run did not note it.
      denied: the file of documents left out, "" if there is none.
      excluded_documents: how many it took out; None if the run did not note it.
    """

    name: str
    weight: float
    view: str
    tokens: int | None
    denied: str
    excluded_documents: int | None


@dataclasses.dataclass(frozen=True)
class Losses:
    """A loss vector in nats a token.

    Attributes:
      step: at which it was measured.
      values: by class name ("all" first).
      sources: the same by source.
    """

    step: int
    values: Mapping[str, float]
    sources: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card tells. None and empty: not known.

    Attributes:
      name: of the model.
      step: optimizer steps of the checkpoint.
      parameters: how many.
      dtype: of the exported weights.
      code_version: of soda_jax that trained it.
      layout: the vocabulary.
      bos: how BOS is written in a prompt.
      tokenizer_fingerprint, codec_fingerprint: of the front end.
      config: model and optimizer part of the training config, and steps, batch size and length.
      windows: of training data read so far.
      data_digest: of the data and the way it was mixed.
      sources: of the training data.
      training, validation: the loss vector of a training batch and of the held-out split.
      contamination: lines of a report on evaluation data within the training data.
      origin: the model that training started from, or that was converted.
    """

    name: str
    step: int
    parameters: int
    dtype: str
    code_version: str | None
    layout: VocabularyLayout
    bos: str
    tokenizer_fingerprint: str | None = None
    codec_fingerprint: str | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    windows: int | None = None
    data_digest: str | None = None
    sources: tuple[Source, ...] = ()
    training: Losses | None = None
    validation: Losses | None = None
    contamination: str | None = None
    origin: str | None = None


def facts_of_run(
    workdir: Path,
    metadata: Mapping[str, Any],
    step: int,
    *,
    name: str,
    parameters: int,
    dtype: str,
    contamination: str | Path | None = None,
) -> CardFacts:
    """Collects what a run's folder and its checkpoint know.

    Args:
      workdir: the run's folder; data.json and metrics.jsonl there may be missing.
      metadata: of the checkpoint (`soda_jax.train.run_files.run_metadata`); only "layout" must be there.
      step: of the checkpoint; metrics of later steps are not looked at.
      name: of the model.
      parameters: how many it has.
      dtype: of the exported weights.
      contamination: a file of `soda inspect --contamination … --report=FILE.jsonl`, or a text.

    Raises:
      UserError: if `contamination` cannot be read, a file of the run is damaged, or the run has no
        tokenizer.
    """
    config = metadata.get("config") or {}
    windows = metadata.get("windows")
    rows = _metrics(workdir / "metrics.jsonl", step)
    sources = (metadata.get("data") or {}).get("sources") or {}
    converted = metadata.get("converted_from")
    if converted is None:
        summary = _summary(workdir / "data.json", metadata.get("data_digest"))
        told = _sources(sources, summary)
    else:
        told = tuple(Source(**source) for source in converted.get("sources") or ())
    bos, _ = special_names(load_tokenizer(workdir / "tokenizer"))
    return CardFacts(
        name=name,
        step=step,
        parameters=parameters,
        dtype=dtype,
        code_version=metadata.get("soda_jax"),
        layout=VocabularyLayout.from_json(metadata["layout"]),
        bos=bos,
        tokenizer_fingerprint=metadata.get("tokenizer_fingerprint"),
        codec_fingerprint=metadata.get("codec_fingerprint"),
        config=_config(config),
        windows=windows,
        data_digest=metadata.get("data_digest"),
        sources=told,
        origin=_origin(metadata),
        training=_losses(rows, "loss/", sources),
        validation=_losses(rows, "validation/loss/", sources),
        contamination=None if contamination is None else _contamination(Path(contamination)),
    )


def _origin(metadata: Mapping[str, Any]) -> str | None:
    if "converted_from" in metadata:
        about = metadata["converted_from"]
        rows = (
            " with rows for markers and audio, not trained since" if about.get("extended") else ""
        )
        return f"{about['name']}, converted{rows}"
    if "started_from" in metadata:
        about = metadata["started_from"]
        return f"{Path(about['path']).name}, step {about['step']:,}"
    return None


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names of what a reader of the card asks for first."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{prefix}.{key}", inner)
        else:
            flat[prefix] = value

    for key in ("model", "optimizer", "steps", "batch_size", "seed"):
        if key in config:
            add(key, config[key])
    if "sequence_length" in (config.get("data") or {}):
        flat["data.sequence_length"] = config["data"]["sequence_length"]
    return flat


def _sources(
    config: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Mapping[str, Any]]
) -> tuple[Source, ...]:
    total = sum(float(source["weight"]) for source in config.values())
    found = []
    for name, source in sorted(config.items()):
        composition = str(source.get("composition", "S+A+T"))
        view = [composition]
        if composition == "S+A+T" and source.get("order"):
            view.append(str(source["order"]).replace("_", "-"))
        if source.get("codebooks"):
            view.append(f"codebooks: {source['codebooks']}")
        noted = summary.get(name, {})
        found.append(
            Source(
                name,
                float(source["weight"]) / total,
                ", ".join(view),
                noted.get("tokens"),
                Path(source.get("exclude_documents") or "").name,  # a card tells no paths
                noted.get("excluded_documents"),
            )
        )
    return tuple(found)


def _summary(path: Path, digest: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Counts by source, if the file is of the data that the checkpoint was trained on."""
    if not path.is_file():
        return {}
    try:
        value = parse_checked_json(path.read_bytes())
        same = digest is not None and value["digest"] == digest
        return dict(value["sources"]) if same else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): restore it, or remove it to go without"
        ) from None


def _metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to `step`, newest first; lines cut short by a kill are left out."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if row["step"] <= step:
                rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [rows[number] for number in sorted(rows, reverse=True)]


def _losses(rows: list[dict[str, Any]], prefix: str, sources: Mapping[str, Any]) -> Losses | None:
    """The newest loss vector whose names begin with `prefix`."""
    for row in rows:
        vector = {
            name.removeprefix(prefix): float(value)
            for name, value in row.items()
            if name.startswith(prefix) and value is not None
        }
        if vector:
            by_source = {
                source: {
                    name.removeprefix(f"{source}/"): value
                    for name, value in vector.items()
                    if name.startswith(f"{source}/")
                }
                for source in sorted(sources)
            }
            values = {name: value for name, value in vector.items() if "/" not in name}
            return Losses(int(row["step"]), values, {k: v for k, v in by_source.items() if v})
    return None


def _contamination(path: Path) -> str:
    """A text as it stands; of a report, how many utterances and documents it names."""
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
        f"found in {len(trained):,} documents of the training data; the shares of their n-grams found "
        f"are {min(shares):.2f}–{max(shares):.2f}."
    )
