"""Runs a generation task on the rows of a manifest; an interrupted run continues where it stopped.

The output folder has `results.jsonl`, one row per item, `NAME.wav` of each item with audio, and `settings.json`. An item
is written when it is complete: first its audio, then its row.
"""

import dataclasses
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from soda_jax.codecs.audio import write_wav
from soda_jax.errors import UserError
from soda_jax.files import file_state, write_atomic, write_json
from soda_jax.generate.pipeline import Pipeline, find_task
from soda_jax.generate.sampling import Sampling
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.generate.tasks import Request, Result, TaskOptions
from soda_jax.json_lines import append_json_line, json_line, read_json_lines
from soda_jax.progress import progress

FORMAT_VERSION = 1
RESULTS, SETTINGS = "results.jsonl", "settings.json"
_FIELDS = ("text", "audio", "voice", "voice_text")
_SOUNDS = ("audio", "voice")
_NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f]")
_NAME_BYTES = 200  # the suffix and a temporary name are added
_COMPARED = 64  # items that are generated with and without the grammar at the same time


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """What a batch generates; the result of an item depends on nothing else but its row and the checkpoint.

    Attributes:
      task: name of a task of `soda_jax.generate.tasks`.
      options: its options.
      sampling: by default that of the task.
      seed, best_of, constrained: see `Pipeline`.
    """

    task: str
    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)
    sampling: Sampling | None = None
    seed: int = 0
    best_of: int = 1
    constrained: bool = True


@dataclasses.dataclass(frozen=True)
class BatchSummary:
    """Counts of the items in the output folder after a batch.

    Attributes:
      items: rows of the manifest.
      failed: (name, reason) of the items without a result.
      finished: items whose every part was ended by the model.
      legal: items that are legal; equal to the results unless generated without the grammar.
      finished_with_grammar: of the results generated without it; None otherwise.
      seconds: total audio in seconds, generated or transcribed.
    """

    items: int
    failed: tuple[tuple[str, str], ...]
    finished: int
    legal: int
    finished_with_grammar: int | None
    seconds: float

    def lines(self) -> list[str]:
        """Returns the counts as text."""
        done = self.items - len(self.failed)
        lines = [
            f"{done:,} of {self.items:,} items, {self.finished:,} ended by the model"
            + (f", {self.seconds:,.1f} s of audio" if self.seconds else "")
        ]
        if self.finished_with_grammar is not None and done:
            lines.append(
                f"without the grammar {self.legal / done:.1%} are legal and {self.finished / done:.1%} ended; "
                f"with it {self.finished_with_grammar / done:.1%} ended"
            )
        return lines + [f"failed: {name}: {reason}" for name, reason in self.failed]


def read_manifest(
    path: str | Path, task: str, voice: tuple[str | None, str] = (None, "")
) -> list[Request]:
    """Reads a manifest: JSON objects, one per line, or a TSV file with a header.

    Columns: those of the task (`text`, `audio`, `voice`, `voice_text`) and `name`, by default the row's number.
    Paths are relative to the folder of the manifest. Further columns are ignored. `voice`, (recording, transcript), is
    used by rows that name none, if the task takes a voice.

    Raises:
      UserError: if the file cannot be read, or a row lacks a column, has a wrong value or repeats a name.
    """
    path = Path(path)
    kind = find_task(task)
    requests: dict[str, Request] = {}
    for number, row in _rows(path):
        where = f"{path}:{number}"
        wanted = {column: row.get(column) for column in ("name", *kind.needs, *kind.takes)}
        for column, value in wanted.items():
            if column in kind.needs and not value:
                raise UserError(f"{where}: {task} needs the column {column}")
            if value is not None and not (isinstance(value, str) and _writable(value)):
                raise UserError(f"{where}: {column} is {value!r}: write a string without NUL")
        name = wanted.pop("name") or f"{len(requests) + 1:06d}"
        if (
            _NOT_IN_NAMES.search(name)
            or name in (".", "..")
            or len(name.encode("utf-8")) > _NAME_BYTES
        ):
            raise UserError(
                f"{where}: name {name[:80]!r} cannot be a file name: leave out slashes and control "
                f"characters, and use at most {_NAME_BYTES} bytes"
            )
        if name.casefold() in requests:
            raise UserError(f"{where}: the name {name} occurs twice")
        given = {column: value for column, value in wanted.items() if value}
        for column in _SOUNDS:
            if column in given:
                given[column] = str(path.parent / given[column])
        if "voice" in kind.takes and voice[0] and not ("voice" in given or "voice_text" in given):
            given["voice"], given["voice_text"] = voice
        fields = {column: given.pop(column) for column in _FIELDS if column in given}
        requests[name.casefold()] = Request(name, **fields, more=given)
    if not requests:
        raise UserError(f"{path} has no rows")
    return list(requests.values())


def _writable(text: str) -> bool:
    """Returns whether a text can be written as UTF-8 and be part of a path."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of a manifest."""
    if path.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"{path} is not a manifest: its name must end in .jsonl or .tsv")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    columns: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if path.suffix == ".tsv":
            cells = [cell.strip() for cell in line.split("\t")]
            if not columns:
                columns = cells
                continue
            if len(cells) != len(columns):
                raise UserError(
                    f"{path}:{number} has {len(cells)} columns, the header {len(columns)}"
                )
            yield number, dict(zip(columns, cells, strict=True))
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is not a JSON object")
        yield number, row


def read_examples(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Reads few-shot examples, a manifest with the columns `audio` and `text`; see `read_manifest`."""
    examples = []
    for number, row in _rows(Path(path)):
        audio, text = row.get("audio"), row.get("text")
        if not (isinstance(audio, str) and audio and isinstance(text, str) and text.strip()):
            raise UserError(f"{path}:{number}: an example needs audio and text")
        examples.append((str(Path(path).parent / audio), text))
    if not examples:
        raise UserError(f"{path} has no rows")
    return tuple(examples)


def run_batch(
    model: SpeechModel, requests: Sequence[Request], output: str | Path, batch: BatchOptions
) -> BatchSummary:
    """Generates the items that the output folder lacks, and shows the progress.

    Items that failed before are tried again, and items whose row or sound file has changed, or whose audio is
    missing, are generated again. Results of
    items that are not requested are kept.

    Raises:
      UserError: if the folder has the results of other settings, or other files.
    """
    folder = Path(output)
    rows = _open(folder, _settings(model, batch))
    keys = {request.name: _key(request) for request in requests}

    def complete(row: Mapping[str, Any]) -> bool:
        if row.get("input") != keys[row["name"]] or "error" in row:
            return False
        return "audio" not in row or (folder / row["audio"]).is_file()

    known = {row["name"]: row for row in rows if row["name"] not in keys or complete(row)}
    for row in rows:
        if row["name"] not in known and "audio" in row:
            (folder / row["audio"]).unlink(missing_ok=True)
    _write_rows(folder, known.values())
    todo = [request for request in requests if request.name not in known]
    ready = len(requests) - len(todo)
    if ready:
        print(f"{folder}: {ready:,} of {len(requests):,} items are complete", file=sys.stderr)
    with progress(f"{batch.task}{', resumed' * bool(ready)}", len(requests), start=ready) as bar:
        for request, row in _results(model, todo, folder, batch):
            row = {"name": request.name, "input": keys[request.name], **row}
            append_json_line(folder / RESULTS, row)
            known[request.name] = row
            bar.advance()
    ordered = [known.pop(request.name) for request in requests]
    _write_rows(folder, [*ordered, *known.values()])
    return _summary(ordered, batch)


def _write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(folder / RESULTS, "".join(map(json_line, rows)))


def _results(
    model: SpeechModel, todo: Sequence[Request], folder: Path, batch: BatchOptions
) -> Iterator[tuple[Request, dict[str, Any]]]:
    """Yields (request, its row); the audio is written before."""

    def pipeline(constrained: bool) -> Pipeline:
        return Pipeline(
            model, batch.task, batch.options, sampling=batch.sampling, seed=batch.seed,
            best_of=batch.best_of, constrained=constrained,
        )  # fmt: skip

    def row(request: Request, result: Result | UserError) -> dict[str, Any]:
        if isinstance(result, UserError):
            return {"error": str(result)}
        found: dict[str, Any] = {"text": result.text, "finished": result.finished}
        if result.audio is not None:
            rate = model.codec.sample_rate
            if len(result.audio):
                write_wav(folder / f"{request.name}.wav", result.audio, rate)
                found["audio"] = f"{request.name}.wav"
            found["seconds"] = len(result.audio) / rate
        elif request.audio is not None:
            found["seconds"] = result.parts[-1].end
        return {**found, "parts": [dataclasses.asdict(part) for part in result.parts]}

    ours = pipeline(batch.constrained)
    if batch.constrained:
        for request, result in ours.run(todo):
            yield request, row(request, result)
        return
    with_grammar = pipeline(True)
    for block in _blocks(todo, _COMPARED):
        compared = {request.name: result for request, result in with_grammar.run(block)}
        for request, result in ours.run(block):
            found, other = row(request, result), compared[request.name]
            if isinstance(result, Result):
                found["legal"] = result.legal
                found["finished_with_grammar"] = isinstance(other, Result) and other.finished
            yield request, found


def _blocks(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    iterator = iter(requests)
    while block := list(itertools.islice(iterator, size)):
        yield block


def _summary(rows: Sequence[dict[str, Any]], batch: BatchOptions) -> BatchSummary:
    done = [row for row in rows if "error" not in row]
    with_grammar = sum(row.get("finished_with_grammar", False) for row in done)
    return BatchSummary(
        len(rows),
        tuple((row["name"], row["error"]) for row in rows if "error" in row),
        sum(row["finished"] for row in done),
        sum(row.get("legal", True) for row in done),
        None if batch.constrained else with_grammar,
        sum(row.get("seconds", 0.0) for row in done),
    )


def _settings(model: SpeechModel, batch: BatchOptions) -> dict[str, Any]:
    """Returns what the results depend on, JSON-able."""
    kind = find_task(batch.task)
    values = dataclasses.asdict(batch.options)
    values["examples"] = [[*_file_key(str(a)), text] for a, text in batch.options.examples]
    options = {name: values[name] for name in kind.options}
    settings = {
        "format_version": FORMAT_VERSION,
        "task": batch.task,
        "step": model.step,
        "checkpoint": model.digest,
        "codec": model.codec.fingerprint,
        "dtype": model.engine.dtype,
        **dataclasses.asdict(batch.sampling or kind.sampling),
        "seed": batch.seed,
        "best_of": batch.best_of,
        "grammar": batch.constrained,
        **options,
    }
    return json.loads(json.dumps(settings))


def _open(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Creates the output folder, or returns the rows of an earlier run with the same settings."""
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not the output of a batch: give a new folder")
        try:
            write_json(path, settings)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): give a folder that you may write to"
            ) from None
        return []
    try:
        before = dict(json.loads(path.read_text("utf-8")))
        rows = read_json_lines(folder / RESULTS) if (folder / RESULTS).exists() else []
        for row in rows:
            _ = row["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({error}): give a new folder") from None
    for name, value in settings.items():
        if before.get(name) != value:
            fix = "give a new folder" + f" or --step={before.get(name)}" * (name == "step")
            raise UserError(
                f"{folder} has results with {name} {before.get(name)!r}, not {value!r}: {fix}"
            )
    return rows


def _key(request: Request) -> str:
    """Returns a hash of a row and of the name, size and time of its sound files."""
    files = [_file_key(str(s)) for s in (request.audio, request.voice) if s is not None]
    content = json.dumps([request.text, request.voice_text, dict(request.more), files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _file_key(path: str) -> tuple[str, int, int]:
    # Without its folder, so that the same files from another working directory are the same input.
    return (Path(path).name, *file_state(path)[1:])
