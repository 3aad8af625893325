"""Reads WebDataset archives: uncompressed tars with a sound file and a JSON file per utterance.

    EN-B000000.tar    EN_B00000_S00000_W000000.mp3, EN_B00000_S00000_W000000.json, …

Both files of an utterance have the same stem, PREFIX_WNUMBER. Utterances with the same prefix form
a document. Only the headers and the JSON files are read; the sounds are skipped.

A document that continues in a later archive is recognized only within one command. Give all
archives of a corpus together unless each prefix is in only one archive. With `--append`, the rest
of a document would have an id that the data set already contains, so it would be skipped and
counted as `already_in_dataset`.
"""

import codecs
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._corpus import common_folder, members, relative_path
from tokenize_pipeline.readers._lines import other_encoding
from tokenize_pipeline.readers._rows import (
    RowError,
    json_object,
    optional_string,
    repeat_error,
    required_text,
)
from tokenize_pipeline.text_faults import decode_text

SOUNDS = ("mp3", "flac", "wav", "ogg", "opus", "m4a")


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the deepest folder that contains all archives."""
    return common_folder(path.parent for path in inputs)


def documents(inputs: Sequence[Path], identity: str) -> Iterator[DocumentSource | Rejected]:
    """Yields the documents of each archive in the order of their first utterances.

    If a prefix already occurred in an earlier archive, its utterances form another document, named
    PREFIX+ARCHIVE. If an earlier document has the same first utterance, the archives are treated as
    copies, and both documents get the same id. The metadata of one archive and two hashes per
    document (about 200 MB per million documents) are kept in memory.

    Args:
      inputs: `.tar` files.
      identity: JSON field with the utterance id, which must equal the stem of the files.
    """
    root = data_root(inputs)
    before: set[int] = set()
    archives: dict[int, str | None] = {}  # hash of first utterance -> archive in the id, or None
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
    """Returns an 8-byte hash of a prefix or stem, which is the same in all processes."""
    digest = hashlib.blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _utterances(
    path: Path, audio: str, identity: str
) -> Iterator[tuple[str, UtteranceSource] | Rejected]:
    """Yields (stem, utterance) of each pair of files, and finally rejects files without a pair."""
    if path.suffix != ".tar":
        raise UserError(f"{path} is not a .tar file: give the archives as published")
    sounds: dict[str, str] = {}
    rows: dict[str, bytes] = {}
    # (stem, whether it is a sound) -> (number of the member, hash). The hash is of the content, or
    # of the name and size of a sound.
    firsts: dict[tuple[str, bool], tuple[int, int]] = {}
    files = members(path, lambda name: name.endswith(".json"))
    for number, (name, size, content) in enumerate(files, 1):
        stem, _, suffix = name.rpartition("/")[2].rpartition(".")
        is_sound = content is None
        if not stem or (is_sound and suffix.lower() not in SOUNDS):
            continue
        what = hash((name, size) if is_sound else content)
        first, first_what = firsts.setdefault((stem, is_sound), (number, what))
        if first != number:
            # An exact repeat of a sound is not reported; the repeat of its JSON file is.
            if not is_sound or what != first_what:
                repeated = f"member {number}, {name},"
                error = repeat_error(repeated, f"member {first}", same=what == first_what)
                yield error.rejected(f"{audio}:{name}")
            continue
        if content is None:
            sounds[stem] = name
        else:
            rows[stem] = content
        if stem in rows and stem in sounds:
            where = f"{audio}:{stem}.json"
            row, sound = rows.pop(stem), sounds.pop(stem)
            try:
                yield stem, _utterance(_json(row), stem, audio, sound, identity, where)
            except RowError as error:
                yield error.rejected(where)
    for stem in rows:
        yield Rejected("missing", f"no sound file for {stem}", f"{audio}:{stem}.json")
    for stem, name in sounds.items():
        yield Rejected("malformed_row", f"no JSON file for {stem}", f"{audio}:{name}")


def _json(content: bytes) -> dict[str, Any]:
    """Parses a JSON object in UTF-8; raises RowError if it is not one."""
    if (encoding := other_encoding(content)) is not None:
        raise RowError(f"the file is {encoding} text, not UTF-8", "invalid_utf8")
    return json_object(decode_text(content.removeprefix(codecs.BOM_UTF8)))


def _utterance(
    row: dict[str, Any], stem: str, audio: str, member: str, identity: str, where: str
) -> UtteranceSource:
    name = optional_string(row, identity)
    if name != stem:
        raise RowError(f"{identity!r} is {name!r}, but its files are named {stem!r}")
    if "_" not in stem:
        raise RowError(f"{identity!r} is {name!r}, not PREFIX_WNUMBER")
    return UtteranceSource(
        required_text(row),
        audio,
        speaker=optional_string(row, "speaker"),
        language=optional_string(row, "language"),
        member=member,
        seconds=_seconds(row.get("duration")),
        where=where,
    )


def _seconds(duration: Any) -> float | None:
    """Returns the duration, or None if it is invalid; it is used for planning only."""
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        return None
    return float(duration) if duration > 0 and math.isfinite(duration) else None
