"""WebDataset archives of speech: uncompressed tars with a sound file and a JSON file per utterance.

    EN-B000000.tar    EN_B00000_S00000_W000000.mp3, EN_B00000_S00000_W000000.json, …

Both files of an utterance have the same stem, PREFIX_WNUMBER. Utterances with the same prefix form a
document. Only the headers and the JSON files are read; the sounds are skipped.

A document that continues in a later archive is recognized only within one command. Give all archives of a
corpus together unless each prefix is in one archive only: with `--append`, the rest of a document has an id
that the data set already contains, so it is skipped and counted as `already_in_dataset`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._folders import common_folder, relative_path
from tokenize_pipeline.readers._lines import RowError, json_object, optional_string, utf8_text
from tokenize_pipeline.readers._rows import repeat_error
from tokenize_pipeline.readers._tar import members

SOUNDS = ("mp3", "flac", "wav", "ogg", "opus", "m4a")


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the deepest folder that contains all archives."""
    return common_folder(path.parent for path in inputs)


def documents(inputs: Sequence[Path], identity: str) -> Iterator[DocumentSource | Rejected]:
    """Yields the documents of each archive in the order of their first utterances.

    A prefix that occurred in an earlier archive gives another document, named PREFIX+ARCHIVE. If its first
    utterance was also in that archive, the archives are copies and the document gets the same id. Memory:
    the metadata of one archive, and two 8-byte hashes per document (about 200 MB per million).

    Args:
      inputs: `.tar` files.
      identity: field of the JSON files with the id of the utterance, which must be the stem of its files.
    """
    root = data_root(inputs)
    before: set[int] = set()
    archives: dict[int, str | None] = {}  # first utterance -> archive in the id, if any
    for path in inputs:
        audio = relative_path(root, path)
        groups: dict[str, list[tuple[str, UtteranceSource]]] = {}
        for item in _utterances(path, audio, identity):
            if isinstance(item, Rejected):
                yield item
            else:
                groups.setdefault(item[0].rpartition("_")[0], []).append(item)
        for prefix, utterances in groups.items():
            utterances.sort(key=lambda utterance: utterance[0])
            key, first = _key(prefix), _key(utterances[0][0])
            archive = archives.setdefault(first, path.stem if key in before else None)
            before.add(key)
            name = prefix if archive is None else f"{prefix}+{archive}"
            yield DocumentSource(name, tuple(utterance for _, utterance in utterances))


def _key(prefix: str) -> int:
    """Returns an 8-byte hash that does not depend on the process."""
    digest = hashlib.blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _utterances(
    path: Path, audio: str, identity: str
) -> Iterator[tuple[str, UtteranceSource] | Rejected]:
    """Yields (stem, utterance) when both files of an utterance are read; finally the incomplete ones."""
    sounds: dict[str, str] = {}
    rows: dict[str, bytes] = {}
    # For each stem, the number of its member and a hash of the content (JSON) or name and size (sound).
    known_sounds: dict[str, tuple[int, int]] = {}
    known_rows: dict[str, tuple[int, int]] = {}
    for number, (name, size, content) in enumerate(_members(path), 1):
        stem, _, suffix = name.rpartition("/")[2].rpartition(".")
        is_row = suffix == "json"
        if not stem or (not is_row and suffix.lower() not in SOUNDS):
            continue
        known, what = (known_rows, hash(content)) if is_row else (known_sounds, hash((name, size)))
        first, first_what = known.setdefault(stem, (number, what))
        if first != number:
            # A repeated sound adds nothing: the JSON file describes the utterance.
            if is_row or what != first_what:
                repeated = f"member {number}, {name},"
                error = repeat_error(repeated, f"member {first}", same=what == first_what)
                yield Rejected(error.reason, str(error), f"{audio}:{name}")
            continue
        if is_row:
            rows[stem] = content
        else:
            sounds[stem] = name
        if stem in rows and stem in sounds:
            where = f"{audio}:{stem}.json"
            row, sound = rows.pop(stem), sounds.pop(stem)
            try:
                found = json_object(utf8_text(row))
                yield stem, _utterance(found, stem, audio, sound, identity, where)
            except RowError as error:
                yield Rejected(error.reason, str(error), where)
    for stem in rows:
        yield Rejected("missing", f"no sound file for {stem}", f"{audio}:{stem}.json")
    for stem, name in sounds.items():
        yield Rejected("malformed_row", f"no JSON file for {stem}", f"{audio}:{name}")


def _members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yields (name, size, content) of the files of a tar; content is empty except for JSON files."""
    if path.suffix != ".tar":
        raise UserError(f"{path} is not a .tar file: give the archives as published")
    for name, size, content in members(path, lambda name: name.endswith(".json")):
        yield name, size, content or b""


def _utterance(
    row: dict[str, Any], stem: str, audio: str, member: str, identity: str, where: str
) -> UtteranceSource:
    name, text = optional_string(row, identity), row.get("text")
    if name != stem:
        raise RowError(f"{identity!r} is {name!r}, its files are named {stem!r}")
    if "_" not in stem:
        raise RowError(f"{identity!r} is {name!r}, not PREFIX_WNUMBER")
    if not isinstance(text, str):
        raise RowError("'text' is missing" if text is None else f"'text' is {text!r}, not a string")
    return UtteranceSource(
        text,
        audio,
        speaker=optional_string(row, "speaker"),
        language=optional_string(row, "language"),
        member=member,
        seconds=_seconds(row.get("duration")),
        where=where,
    )


def _seconds(duration: Any) -> float | None:
    """Returns the duration if it is valid; it is used for planning only, so others are ignored."""
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        return None
    return float(duration) if duration > 0 and math.isfinite(duration) else None
