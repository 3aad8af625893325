"""WebDataset archives of speech: uncompressed tars with one sound file and one JSON file an utterance.

    EN-B000000.tar    EN_B00000_S00000_W000000.mp3, EN_B00000_S00000_W000000.json, …

The files of an utterance have one stem. An utterance is named PREFIX_WNUMBER, and all of one prefix are a
document. Only the headers and the JSON files are read; the sound between them is skipped.

Whether a document began in an earlier archive is known only of the archives of one command. Give all archives
of a corpus together, unless no prefix is in two of them: with `--append`, the rest of a document comes under
the id that the data set has already and is skipped, counted as `already_in_dataset`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._folders import common_folder, place_in
from tokenize_pipeline.readers._lines import RowError, json_object, optional_string, utf8_text
from tokenize_pipeline.readers._rows import repeat_error
from tokenize_pipeline.readers._tar import members

SOUNDS = ("mp3", "flac", "wav", "ogg", "opus", "m4a")


def data_root(inputs: Sequence[Path]) -> Path:
    """The deepest folder that holds all archives."""
    return common_folder(path.parent for path in inputs)


def documents(inputs: Sequence[Path], identity: str) -> Iterator[DocumentSource | Rejected]:
    """Yields the documents of the archives, by the place of their first utterance; one archive is held.

    A prefix that an earlier archive had, next to this one or not, makes a further document, named
    PREFIX+ARCHIVE. If its first utterance was in that archive too, the archives are copies, and the document
    gets the id that it had there. For each document two hashes of eight bytes are kept, about 200 MB for a
    million.

    Args:
      inputs: `.tar` files.
      identity: field of the JSON files that names the utterance and must be the stem of its files.
    """
    root = data_root(inputs)
    before: set[int] = set()
    archives: dict[int, str | None] = {}  # by first utterance, where it is part of the id
    for path in inputs:
        audio = place_in(root, path)
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
    """Eight bytes for a prefix or utterance; they do not depend on the process."""
    digest = hashlib.blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _utterances(
    path: Path, audio: str, identity: str
) -> Iterator[tuple[str, UtteranceSource] | Rejected]:
    """Yields (stem, utterance) of an archive once both files of it were met, then the incomplete ones."""
    sounds: dict[str, str] = {}
    rows: dict[str, bytes] = {}
    # Member in which the sound or the row of each stem is, and a hash of what it is.
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
            # The JSON file describes the utterance: its sound, there twice, adds nothing.
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
        yield Rejected("missing", f"there is no sound file of {stem}", f"{audio}:{stem}.json")
    for stem, name in sounds.items():
        yield Rejected("malformed_row", f"there is no JSON file of {stem}", f"{audio}:{name}")


def _members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yields (name, size, content) of the files of a tar; content is that of JSON files, else empty."""
    if path.suffix != ".tar":
        raise UserError(f"{path} is no .tar file: give the archives as they were published")
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
    """The stated duration if it is one; it serves planning alone, so another is no reason to refuse."""
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        return None
    return float(duration) if duration > 0 and math.isfinite(duration) else None
