"""Runs a generation task on the rows of a manifest; an interrupted run continues where it stopped.

The output folder has `results.jsonl`, one row per item, `NAME.wav` of each item with audio, and `settings.json`. An item
is written when it is complete: first its audio, then its row.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
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
_SOUNDS = ("audio", "voice")
_NAME = re.compile(r"[^/\\\0-\x1f]{1,200}")
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
            f"{done:,} of {self.items:,} items, {self.seconds:,.1f} s of audio, {self.finished:,} ended by the "
            "model"
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
        wanted = {name: row.get(name) for name in ("name", *kind.needs, *kind.takes)}
        name = str(wanted.pop("name") or f"{len(requests) + 1:06d}")
        for column, value in wanted.items():
            if column in kind.needs and not value:
                raise UserError(f"{where}: {task} needs the column {column}")
            if value is not None and not isinstance(value, str):
                raise UserError(f"{where}: {column} is {value!r}: write a string")
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise UserError(
                f"{where}: name {name!r} cannot be a file name: leave out slashes and control characters"
            )
        if name.casefold() in requests:
            raise UserError(f"{where}: the name {name} occurs twice")
        given = {column: value for column, value in wanted.items() if value}
        for column in _SOUNDS:
            if column in given:
                given[column] = str(path.parent / given[column])
        if "voice" in kind.takes and voice[0] and not ("voice" in given or "voice_text" in given):
            given["voice"], given["voice_text"] = voice
        requests[name.casefold()] = Request(name, **given)
    if not requests:
        raise UserError(f"{path} has no rows")
    return list(requests.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of a manifest."""
    if path.suffix not in (".jsonl", ".tsv"):
        raise UserError(f"{path} is not a manifest: its name must end in .jsonl or .tsv")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if path.suffix == ".tsv":
        lines = text.split("\n")
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}:{reader.line_num} has not {len(reader.fieldnames or ())} columns"
                )
            yield reader.line_num, {k.strip(): v.strip() for k, v in row.items()}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
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

    Items that failed before are tried again, and items whose row or sound file has changed are generated again.

    Raises:
      UserError: if the folder has the results of other settings, or other files.
    """
    folder = Path(output)
    rows = _open(folder, _settings(model, batch))
    keys = {request.name: _key(request) for request in requests}
    known = {
        row["name"]: row
        for row in rows
        if row.get("input") == keys.get(row["name"]) and "error" not in row
    }
    if len(known) < len(rows):
        write_atomic(folder / RESULTS, "".join(map(json_line, known.values())))
    todo = [request for request in requests if request.name not in known]
    if len(todo) < len(requests):
        print(f"{folder}: {len(known):,} items are complete already", file=sys.stderr)
    label = batch.task if len(todo) == len(requests) else f"{batch.task}, resumed"
    with progress(label, len(requests), start=len(requests) - len(todo)) as bar:
        for request, row in _results(model, todo, folder, batch):
            row = {"name": request.name, "input": keys[request.name], **row}
            append_json_line(folder / RESULTS, row)
            known[request.name] = row
            bar.advance()
    ordered = [known[request.name] for request in requests]
    write_atomic(folder / RESULTS, "".join(map(json_line, ordered)))
    return _summary(ordered, batch)


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
        elif result.parts:
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
    options = dataclasses.asdict(batch.options)
    options["examples"] = [[*file_state(str(a)), text] for a, text in batch.options.examples]
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
        write_json(path, settings)
        return []
    try:
        before = json.loads(path.read_text("utf-8"))
        rows = read_json_lines(folder / RESULTS) if (folder / RESULTS).exists() else []
        for row in rows:
            _ = row["name"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is damaged ({error}): give a new folder") from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise UserError(
                f"{folder} has results with {name} {before.get(name)!r}, not {value!r}: give a new folder"
            )
    return rows


def _key(request: Request) -> str:
    """Returns a hash of a row and of the size and time of its sound files."""
    files = [file_state(str(s)) for s in (request.audio, request.voice) if s is not None]
    content = json.dumps([request.text, request.voice_text, files])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
