"""The model card of an export: facts from the files of a run, and the text that states them.

A fact that no file contains is stated as "not known".
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from soda_jax.checked_json import parse_checked_json
from soda_jax.convert.tokenizer_files import FIRST_CHARACTER, special_names
from soda_jax.errors import UserError
from soda_jax.tokens.text import load_tokenizer
from soda_jax.tokens.vocabulary import VocabularyLayout

_UNKNOWN = "not known"
# Characters of audio ids that are common in real text.
_FREQUENT_CHARACTERS = {
    0xFE0F: "U+FE0F after an emoji",
    0xFF0C: "the full-width comma U+FF0C",
    0xFFFD: "U+FFFD in place of invalid characters",
}
# The front matter states no license: the publisher of the weights decides.
_CARD = Template("""---
library_name: transformers
pipeline_tag: text-generation
tags:
- soda
- audio
- speech
- text-to-speech
- automatic-speech-recognition
- qwen3
---

# $name

An audio language model of the SODA family: a decoder that reads and writes interleaved text, semantic \
and acoustic tokens. The architecture is Qwen3's.

$overview

## Use

$example

The tokenizer adds nothing to a prompt, not even `$bos`, and the parts of a prompt have no spaces or line \
breaks between them. `soda_grammar.py` restricts `generate` to legal tokens: codebooks in their order, \
closed spans, whole frames. Without it, long generations may become invalid.$characters

## Voices

The model continues the voice in its prompt. Use the voice of a person only with their consent, tell \
listeners that the speech is synthetic, and do not use it to impersonate anyone.

## License

The publisher of the weights chooses their license and states it here.

## Training data

$data

## Contamination

$contamination

## Loss

In nats per token, by the class of the target.

$validation

$training

## Training config

$config
""")
_EXAMPLE = Template("""```python
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # the folder of this file
sys.path.insert(0, folder)
from soda_grammar import SodaGrammar

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = "$bos<|text_start|>Hello there.<|text_end|><|audio_start|>"
inputs = tokenizer(prompt, return_tensors="pt")
ids = model.generate(
    **inputs,
    logits_processor=[SodaGrammar.from_pretrained(folder, max_frames=180)],
    eos_token_id=tokenizer.convert_tokens_to_ids("<|audio_end|>"),
    pad_token_id=tokenizer.pad_token_id,
    do_sample=True,
    temperature=0.9,
    top_p=0.8,
    max_new_tokens=$new_tokens,
)

spoken = tokenizer.decode(ids[0]).split("<|audio_start|>")[-1].split("<|audio_end|>")[0]
offsets = $offsets  # first audio index of each codebook
indices = [ord(character) - 0xE000 for character in spoken]
codes = [  # [frames, codebooks], the input of the codec's decoder
    [index - offset for index, offset in zip(indices[start:], offsets)]
    for start in range(0, len(indices), $codebooks)
]
```""")


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of a run's data.

    Attributes:
      name: its key in the config.
      weight: fraction of the windows, 0–1.
      view: composition, and the order if it has one.
      tokens: number of tokens in this view; None if the run did not record it.
      excluded_list: name of the file with excluded documents; "" if none are excluded.
      excluded_documents: number of excluded documents; None if the run did not record it.
    """

    name: str
    weight: float
    view: str
    tokens: int | None
    excluded_list: str
    excluded_documents: int | None


@dataclasses.dataclass(frozen=True)
class Losses:
    """A loss vector in nats per token.

    Attributes:
      step: step of the measurement.
      values: by class name, "all" first.
      sources: the same for each source.
    """

    step: int
    values: Mapping[str, float]
    sources: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The facts of a card; None and empty values are unknown.

    Attributes:
      name: of the model.
      step: optimizer steps of the checkpoint.
      parameters: number of parameters.
      dtype: of the exported tensors.
      code_version: version of soda_jax that trained the model.
      layout: the vocabulary.
      bos: the string of BOS in a prompt.
      tokenizer_fingerprint, codec_fingerprint: of the front end.
      config: dotted names and values of the training config.
      windows: number of training windows consumed.
      data_digest: of the data and its mixture.
      sources: of the training data.
      training, validation: loss vectors of a training batch and of the validation split.
      contamination: summary of evaluation data found in the training data, one or more lines.
      origin: the model that training started from or that was converted.
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


def model_card(facts: CardFacts) -> str:
    """Returns the README.md of an export: front matter for the hub, then Markdown."""
    layout = facts.layout
    offsets = [int(first) - layout.audio_base for first in layout.codebook_offsets]
    if layout.codebooks:
        example = _EXAMPLE.substitute(
            bos=facts.bos,
            new_tokens=180 * layout.codebooks + 1,
            offsets=offsets,
            codebooks=layout.codebooks,
        )
    else:
        example = f"The model has no audio ids: a prompt is `{facts.bos}` followed by text."
    config = ((f"`{key}`", value) for key, value in facts.config.items())
    return _CARD.substitute(
        name=_text(facts.name),
        bos=facts.bos,
        overview=_overview(facts),
        example=example,
        characters=_audio_characters(facts) if layout.codebooks else "",
        data=_data(facts),
        contamination=_contamination(facts),
        validation=_losses("Validation split", facts.validation),
        training=_losses("Training batch", facts.training),
        config=_table(("key", "value"), config) if facts.config else f"The config is {_UNKNOWN}.",
    )


def _overview(facts: CardFacts) -> str:
    layout, length = facts.layout, facts.config.get("data.sequence_length")
    seen = facts.windows * length if facts.windows is not None and length else None
    sizes = " · ".join(map(str, layout.codebook_sizes)) or "none"
    rows = {
        "step": f"{facts.step:,}",
        "parameters": f"{facts.parameters:,}",
        "weights": facts.dtype,
        "tokens seen in training": _count(seen),
        "vocabulary": f"{layout.size:,} ids: {layout.text_size:,} of text, codebooks {sizes}",
        "tokenizer": facts.tokenizer_fingerprint or _UNKNOWN,
        "codec": facts.codec_fingerprint or _UNKNOWN,
        "started from": facts.origin,
        "data digest": facts.data_digest or _UNKNOWN,
        "code": f"soda_jax {facts.code_version}" if facts.code_version else _UNKNOWN,
    }
    return _table(("", ""), (row for row in rows.items() if row[1] is not None))


def _audio_characters(facts: CardFacts) -> str:
    last = FIRST_CHARACTER + facts.layout.size - facts.layout.audio_base - 1
    frequent = [name for code, name in _FREQUENT_CHARACTERS.items() if code <= last]
    where = (
        f"Real text contains some of them: {', '.join(frequent)}."
        if frequent
        else "They are in Unicode's private use area and rare in real text."
    )
    ours = " The text encoder of soda_jax does not have this problem." if facts.code_version else ""
    return (
        f"\n\nEach audio id is written as one character, U+{FIRST_CHARACTER:X}–U+{last:X}. {where} This "
        "tokenizer always converts them to audio ids: remove them from text before you put it into a "
        f"prompt.{ours}"
    )


def _data(facts: CardFacts) -> str:
    digest = f"`{facts.data_digest}`" if facts.data_digest else _UNKNOWN
    sources = f"The sources are {_UNKNOWN}."
    if facts.sources:
        rows = (
            (
                source.name,
                f"{source.weight:.4f}",
                source.view,
                _count(source.tokens),
                f"`{source.excluded_list}`: {_count(source.excluded_documents)}"
                if source.excluded_list
                else "none",
            )
            for source in facts.sources
        )
        sources = _table(("source", "weight", "view", "tokens", "excluded documents"), rows)
    return f"Data digest: {digest}.\n\n{sources}"


def _contamination(facts: CardFacts) -> str:
    if facts.contamination is None:
        report = (
            "No report: whether the training data contains evaluation data is "
            f"{_UNKNOWN} (`soda inspect --contamination`)."
        )
    elif "\n" in facts.contamination:
        fence = "```" if "```" not in facts.contamination else "~~~~"
        report = f"{fence}\n{facts.contamination}\n{fence}"
    else:
        report = _text(facts.contamination)
    lists = [f"`{x.excluded_list}` ({_text(x.name)})" for x in facts.sources if x.excluded_list]
    if lists:
        return f"{report}\n\nThe documents excluded from training are listed in {', '.join(lists)}."
    if facts.sources:
        return f"{report}\n\nNo documents were excluded from the training data."
    return report


def _losses(label: str, losses: Losses | None) -> str:
    if losses is None:
        return f"{label}: {_UNKNOWN}."
    columns: dict[str, Mapping[str, float]] = {"all sources": losses.values, **losses.sources}
    classes = dict.fromkeys(name for column in columns.values() for name in column)
    rows = (
        (name, *(f"{column[name]:.4f}" if name in column else "" for column in columns.values()))
        for name in classes
    )
    return f"{label}, step {losses.step:,}:\n\n" + _table(("class", *columns), rows)


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines: list[Iterable[object]] = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in line) + " |" for line in lines)


def _text(value: object) -> str:
    """Returns one line of Markdown that is valid in a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


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
    """Reads the facts of a card from the folder of a run and the metadata of its checkpoint.

    Args:
      workdir: folder of the run; its data.json and metrics.jsonl are optional.
      metadata: of the checkpoint (`soda_jax.train.run.run_metadata`); only "layout" is required.
      step: of the checkpoint; metrics of later steps are ignored.
      name: of the model.
      parameters: number of parameters.
      dtype: of the exported tensors.
      contamination: a report of `soda inspect --contamination … --report=FILE.jsonl`, or a text file.

    Raises:
      UserError: if `contamination` cannot be read, a file of the run is damaged, or the run has no
        tokenizer.
    """
    config = metadata.get("config") or {}
    rows = _read_metrics(workdir / "metrics.jsonl", step)
    sources = (metadata.get("data") or {}).get("sources") or {}
    converted = metadata.get("converted_from")
    if converted is None:
        counts = _read_counts(workdir / "data.json", metadata.get("data_digest"))
        listed = tuple(
            _source(source, sources[source], sources, counts) for source in sorted(sources)
        )
    else:
        listed = tuple(Source(**source) for source in converted.get("sources") or ())
    return CardFacts(
        name=name,
        step=step,
        parameters=parameters,
        dtype=dtype,
        code_version=metadata.get("soda_jax"),
        layout=VocabularyLayout.from_json(metadata["layout"]),
        bos=special_names(load_tokenizer(workdir / "tokenizer"))[0],
        tokenizer_fingerprint=metadata.get("tokenizer_fingerprint"),
        codec_fingerprint=metadata.get("codec_fingerprint"),
        config=_flat_config(config),
        windows=metadata.get("windows"),
        data_digest=metadata.get("data_digest"),
        sources=listed,
        origin=_origin(metadata),
        training=_newest_losses(rows, "loss/", sources),
        validation=_newest_losses(rows, "validation/loss/", sources),
        contamination=None if contamination is None else _read_report(Path(contamination)),
    )


def _origin(metadata: Mapping[str, Any]) -> str | None:
    if about := metadata.get("converted_from"):
        rows = ", extended by rows for markers and audio, not trained since"
        return f"{about['name']}, converted{rows if about.get('extended') else ''}"
    if about := metadata.get("started_from"):
        return f"{Path(about['path']).name}, step {about['step']:,}"
    return None


def _flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the main fields of a training config by dotted name."""
    from soda_jax.checkpoints.tree import flatten

    chosen = {
        key: config[key]
        for key in ("model", "optimizer", "steps", "batch_size", "seed")
        if key in config
    }
    data = config.get("data") or {}
    if "sequence_length" in data:
        chosen["data"] = {"sequence_length": data["sequence_length"]}
    return {name.replace("/", "."): value for name, value in flatten(chosen).items()}


def _source(
    name: str,
    source: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, Mapping[str, Any]],
) -> Source:
    view = [str(source.get("composition", "S+A+T"))]
    if view == ["S+A+T"] and source.get("order"):
        view.append(str(source["order"]).replace("_", "-"))
    if source.get("codebooks"):
        view.append(f"codebooks: {source['codebooks']}")
    total = sum(float(each["weight"]) for each in sources.values())
    count = counts.get(name, {})
    return Source(
        name=name,
        weight=float(source["weight"]) / total,
        view=", ".join(view),
        tokens=count.get("tokens"),
        excluded_list=Path(source.get("exclude_documents") or "").name,  # a card contains no paths
        excluded_documents=count.get("excluded_documents"),
    )


def _read_counts(path: Path, digest: str | None) -> Mapping[str, Mapping[str, Any]]:
    """Returns the counts by source, if `path` describes the data of the checkpoint."""
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
    """Returns the rows up to `step`, newest first, without lines that a killed run truncated."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if row["step"] <= step:
                rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            continue
    return [rows[number] for number in sorted(rows, reverse=True)]


def _newest_losses(
    rows: list[dict[str, Any]], prefix: str, sources: Iterable[str]
) -> Losses | None:
    """Returns the newest loss vector whose metric names begin with `prefix`."""
    for row in rows:
        vector = _with_prefix(row, prefix)
        if vector:
            by_source = {name: _with_prefix(vector, f"{name}/") for name in sorted(sources)}
            values = {name: value for name, value in vector.items() if "/" not in name}
            return Losses(int(row["step"]), values, {k: v for k, v in by_source.items() if v})
    return None


def _with_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): float(value)
        for name, value in values.items()
        if name.startswith(prefix) and value is not None
    }


def _read_report(path: Path) -> str:
    """Returns a text file unchanged, and a summary of a JSONL report."""
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
