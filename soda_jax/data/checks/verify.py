"""Verifies all files of a data set: manifests, tokenizer, codec, shards, indexes and documents.

Every checksum is recomputed and every value that is stored twice is compared, so a changed byte in
a shard, an index or a manifest is found. Each document is also rendered with the training code, and
the tokens are parsed and compared with the stored utterances.
"""

import contextlib
import dataclasses
import functools
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.data.format.manifest import SPLITS, Manifest, generation_path
from soda_jax.data.format.reading import open_shard
from soda_jax.data.format.records import (
    FIRST,
    OPENS,
    PARTS,
    DamagedRecordError,
    Header,
    RecordData,
    check_record,
    decode_record,
    read_header,
)
from soda_jax.data.format.rendering import Renderer
from soda_jax.data.format.shards import (
    ShardIndex,
    ShardInfo,
    document_hash,
    file_crc32c,
    index_path,
    read_index,
)
from soda_jax.data.format.splitting import join_records
from soda_jax.data.source import rendered_order
from soda_jax.data.storage.record_offsets import read_record_offsets
from soda_jax.errors import UserError
from soda_jax.file_sums import FRONT_END, differences
from soda_jax.progress import progress
from soda_jax.tokens.documents import Utterance, View, parse
from soda_jax.tokens.text import load_tokenizer, make_layout

_VIEWS = {
    "speech": (
        View("text_first"),
        View("audio_first"),
        View(composition="S+A"),
        View(composition="S"),
        View(composition="text"),
    ),
    "text": (View(composition="text"),),
}
# Fields of the manifest that are equal in all generations of a data set.
_CONSTANT = ("kind", "layout", "codec", "tokenizer_fingerprint", "front_end_files")
# Exceptions that reading a record with changed bytes may raise.
_UNREADABLE = (UserError, RuntimeError, ValueError, IndexError, struct.error, zlib.error)
_COLUMNS = ("flags", "utterances", "text_tokens", "frames")
_COUNTED = ("documents", "utterances", "text_tokens", "frames")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A defect of a data set.

    Attributes:
      file: path of the file relative to the data set, with "/".
      message: what is wrong with the file.
      records: indices of the unusable records of the shard `file`.
    """

    file: str
    message: str
    records: tuple[int, ...] = ()

    def describe(self) -> str:
        """Returns the lines of a `mask_records` file: a comment, and one line for each record."""
        comment = f"# {self.file}: {' '.join(self.message.split())}"
        return "\n".join([comment, *(f"{self.file} {number}" for number in self.records)])


def verify(directory: str | Path, generation: int = -1) -> Iterator[Fault]:
    """Yields the defects of a data set and shows progress; an intact data set has none.

    Args:
      directory: folder of the data set.
      generation: generation whose shards are read, -1 for the newest; the manifests of all earlier
        generations are checked too.

    Raises:
      UserError: if there is no data set, or none of its manifests can be read.
    """
    directory = Path(directory)
    manifests, faults = _read_manifests(directory, generation)
    yield from faults
    newest = manifests[max(manifests)]
    yield from _front_end_faults(directory, newest)
    shards = [(split, shard) for split in SPLITS for shard in newest.splits.get(split, ())]
    verifier = _ShardVerifier(directory, newest)
    with progress("verifying, records", sum(shard.records for _, shard in shards)) as bar:
        for number, (split, shard) in enumerate(shards):
            note = f"shard {number + 1} of {len(shards)}"
            yield from verifier.faults(split, shard, functools.partial(bar.advance, 1, note))
    yield from _repeated_documents(verifier.hashes)


def _read_manifests(directory: Path, last: int) -> tuple[dict[int, Manifest], list[Fault]]:
    """Returns the readable generations up to `last` by number, and the defects of the manifests."""
    manifests: dict[int, Manifest] = {}
    faults: list[Fault] = []
    newest = None
    if last >= 0 and not generation_path(directory, last).exists():
        Manifest.load(directory, last)  # raises the error for a missing file
    try:
        newest = Manifest.load(directory)
        last = newest.generation if last < 0 else last
    except UserError as error:
        if not (directory / "manifests").is_dir():
            raise
        faults.append(Fault("manifest.json", str(error)))
    paths = sorted((directory / "manifests").glob("[0-9]*.json"))
    numbers = [int(path.stem) for path in paths if path.stem.isdecimal()]
    # A later generation is not an error: an append that was killed between two renames leaves one.
    for number in range(last + 1) if last >= 0 else numbers:
        file = generation_path(directory, number)
        name = f"manifests/{file.name}"
        if not file.exists():
            faults.append(
                Fault(name, f"it is missing, although generation {last} of the data set exists")
            )
            continue
        try:
            manifests[number] = Manifest.load(directory, number)
        except UserError as error:
            faults.append(Fault(name, str(error)))
    if newest is not None:
        faults += _newest_faults(newest, manifests.get(newest.generation))
        if last not in manifests and newest.generation == last:
            manifests[last] = newest
    if not manifests:
        raise UserError(f"{directory} has no readable manifest: {faults[0].message}")
    faults += _succession_faults(manifests)
    return manifests, faults


def _newest_faults(newest: Manifest, copy: Manifest | None) -> Iterator[Fault]:
    """Compares manifest.json with the manifest file of its generation."""
    if copy is None or copy.digest == newest.digest:
        return
    ours, theirs = newest.to_json(), copy.to_json()
    keys = ", ".join(key for key in ours if ours[key] != theirs[key])
    name = f"manifests/{newest.generation:04d}.json"
    yield Fault("manifest.json", f"it differs from {name} in {keys}: one of the two is damaged")


def _succession_faults(manifests: dict[int, Manifest]) -> Iterator[Fault]:
    """Checks that each generation has the shards and the constant fields of the previous one."""
    for number, manifest in manifests.items():
        previous = manifests.get(number - 1)
        if previous is None:
            continue
        name = f"manifests/{number:04d}.json and {number - 1:04d}.json"
        for split in SPLITS:
            earlier = previous.splits.get(split, ())
            if manifest.splits.get(split, ())[: len(earlier)] != earlier:
                yield Fault(name, f"the first does not start with the {split} shards of the second")
        for field in _CONSTANT:
            if getattr(manifest, field) != getattr(previous, field):
                yield Fault(name, f"they differ in {field}, which never changes")


def _front_end_faults(directory: Path, manifest: Manifest) -> Iterator[Fault]:
    """Compares the tokenizer and codec files, fingerprint and layout with the manifest."""
    damaged = [
        Fault(name, message)
        for folder in FRONT_END
        for name, message in differences(directory, manifest.front_end_files, folder)
    ]
    yield from damaged
    if not (directory / "tokenizer").exists() or any(
        fault.file.startswith("tokenizer/") for fault in damaged
    ):
        return
    try:
        tokenizer = load_tokenizer(directory / "tokenizer")
    except UserError as error:
        yield Fault("tokenizer", str(error))
        return
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        yield Fault(
            "tokenizer",
            f"its fingerprint is {tokenizer.fingerprint}, the manifest has "
            f"{manifest.tokenizer_fingerprint}",
        )
    elif make_layout(tokenizer, manifest.layout.codebook_sizes) != manifest.layout:
        yield Fault("tokenizer", "its token ids differ from the layout in the manifest")


def _repeated_documents(hashes: dict[str, np.ndarray]) -> Iterator[Fault]:
    """Yields a defect for each document that is stored twice, in one split or in both splits."""
    if not hashes:
        return
    names, every = list(hashes), np.concatenate(list(hashes.values()))
    shards = np.repeat(np.arange(len(names)), [len(hashes[name]) for name in names])
    order = np.argsort(every, kind="stable")
    every, shards = every[order], shards[order]
    for number in np.flatnonzero(every[1:] == every[:-1]).tolist():
        first, second = names[shards[number]], names[shards[number + 1]]
        yield Fault(second, f"one of its documents (hash {every[number]:016x}) is also in {first}")


@dataclasses.dataclass(frozen=True)
class _Record:
    """A stored record: its index in the shard, its bytes and its decoded content."""

    number: int
    content: bytes
    header: Header
    data: RecordData


class _ShardVerifier:
    """Checks the shards of one data set.

    Attributes:
      hashes: document hashes of each shard whose index is intact, uint64, by name of the shard.
    """

    def __init__(self, directory: Path, manifest: Manifest):
        """Sets up a renderer for each view of the data set."""
        self._directory, self._layout = directory, manifest.layout
        self._renderers = [Renderer(manifest.layout, view) for view in _VIEWS[manifest.kind]]
        self.hashes: dict[str, np.ndarray] = {}

    def faults(self, split: str, shard: ShardInfo, advance: Callable[[], None]) -> Iterator[Fault]:
        """Yields the defects of a shard and its index.

        Args:
          split: split that contains the shard.
          shard: entry of the shard in the manifest.
          advance: called once for each record that the manifest counts.
        """
        path = self._directory / split / shard.file
        file = f"{split}/{shard.file}"
        reader = index = None
        try:
            size, crc32c = file_crc32c(path)
            if (size, crc32c) != (shard.bytes, shard.crc32c):
                yield Fault(
                    file,
                    f"it has {size} bytes with crc32c {crc32c}, the manifest has {shard.bytes} with "
                    f"{shard.crc32c}",
                )
            opened = open_shard(path)
            if opened.num_records() != shard.records:
                raise DamagedRecordError(
                    f"it has {opened.num_records()} records, the manifest has {shard.records}"
                )
            reader = opened
        except UserError as error:
            # Training cannot read any record of such a shard.
            yield Fault(file, str(error), tuple(range(shard.records)))
        try:
            index = self._read_index(path, shard)
            self.hashes[file] = index.document_hashes
        except UserError as error:
            yield Fault(f"{split}/{index_path(path).name}", str(error))
        if reader is not None:
            yield from self._record_faults(reader, file, shard, index, advance)
        else:
            for _ in range(shard.records):
                advance()

    def _read_index(self, path: Path, shard: ShardInfo) -> ShardIndex:
        """Returns a shard's index; raises UserError if it does not match manifest or shard."""
        index = read_index(index_path(path), shard.index_crc32c)
        lengths = {len(getattr(index, name)) for name in _COLUMNS}
        if lengths != {shard.records}:
            found = " and ".join(map(str, sorted(lengths)))
            raise UserError(f"it describes {found} records, the manifest has {shard.records}")
        first, named = int(np.count_nonzero(index.flags & FIRST)), len(index.document_hashes)
        if not first == named == shard.documents:
            raise UserError(
                f"it has {named} document hashes and {first} first records, the manifest has "
                f"{shard.documents} documents"
            )
        if path.is_file():
            with contextlib.suppress(ValueError):  # reported as a defect of the shard
                if not np.array_equal(index.record_offsets, read_record_offsets(path)):
                    raise UserError("its record offsets differ from those of the shard")
        return index

    def _record_faults(
        self,
        reader: Any,
        file: str,
        shard: ShardInfo,
        index: ShardIndex | None,
        advance: Callable[[], None],
    ) -> Iterator[Fault]:
        """Yields the defects of the records and documents of a shard, and wrong totals."""
        counts: Counter[str] = Counter()
        document: list[_Record] = []
        lost = False  # True from an unreadable record to the next document
        for number in range(shard.records):
            advance()
            try:
                record = self._read(reader, number)
            except _UNREADABLE as error:
                yield Fault(file, f"record {number}: {error}", (number,))
                document, lost = [], True
                counts["lost"] += 1
                continue
            _count(counts, record)
            if index is not None and (message := _index_difference(index, record.header, number)):
                yield Fault(file, f"record {number}: {message}", (number,))
            if record.data.first:
                if document:
                    yield _document_fault(file, document, "it has no last record")
                document, lost = [], False
            elif not document and not lost:
                yield Fault(file, f"record {number}: it is not part of a document", (number,))
                continue
            if lost:
                continue
            document.append(record)
            if record.data.last:
                if message := self._document_message(document, index):
                    yield _document_fault(file, document, message)
                document = []
        if document:
            yield _document_fault(file, document, "it has no last record")
        if counts["lost"]:
            return  # all counts are wrong because of the errors above
        for name in _COUNTED:
            if counts[name] != (expected := getattr(shard, name)):
                label = name.replace("_", " ")
                yield Fault(file, f"it has {counts[name]} {label}, the manifest has {expected}")

    def _read(self, reader: Any, number: int) -> _Record:
        content = reader.read([number])[0]
        header = read_header(content, self._layout)
        data = decode_record(content, self._layout)
        check_record(data, self._layout)
        return _Record(number, content, header, data)

    def _document_message(self, records: list[_Record], index: ShardIndex | None) -> str:
        """Returns the defect of a document, or "" if it is intact."""
        names = {record.data.document_id for record in records}
        if len(names) > 1:
            return f"its records belong to several documents: {', '.join(sorted(names))}"
        if index is not None:
            position = int(np.count_nonzero(index.flags[: records[0].number + 1] & FIRST)) - 1
            # -1 if the index lacks this first record, which has already been reported.
            if position >= 0 and index.document_hashes[position] != np.uint64(
                document_hash(*names)
            ):
                return f"document {position} in the index has another hash"
        try:
            utterances = join_records([record.data for record in records])
            for renderer in self._renderers:
                found = parse(_rendered(records, renderer), self._layout, renderer.codebooks)
                if not _same(found.utterances, utterances, renderer):
                    view = renderer.view
                    order = f", {view.order}" if view.composition == "S+A+T" else ""
                    return (
                        f"rendered as {view.composition}{order} it parses to different utterances"
                    )
        except (UserError, ValueError, IndexError) as error:
            return f"it cannot be rendered and parsed: {error}"
        return ""


def _document_fault(file: str, records: list[_Record], message: str) -> Fault:
    numbers = tuple(record.number for record in records)
    shown = f"record {numbers[0]}" + (f" to {numbers[-1]}" if len(numbers) > 1 else "")
    return Fault(file, f"{shown}, document {records[0].data.document_id}: {message}", numbers)


def _index_difference(index: ShardIndex, header: Header, number: int) -> str:
    """Returns a message with the columns in which a record and the index differ, or ""."""
    pairs = {name: (getattr(header, name), int(getattr(index, name)[number])) for name in _COLUMNS}
    differing = [
        f"{found} {name.replace('_', ' ')}, the index has {expected}"
        for name, (found, expected) in pairs.items()
        if found != expected
    ]
    return f"it has {', '.join(differing)}" if differing else ""


def _count(counts: Counter[str], record: _Record) -> None:
    counts["documents"] += record.data.first
    counts["text_tokens"] += record.header.text_tokens
    counts["frames"] += record.header.frames
    if record.data.part == "whole":
        counts["utterances"] += record.header.utterances
    elif record.data.part == "text":  # an utterance in pieces is counted at its first piece
        counts["utterances"] += bool(record.header.flags & (FIRST | OPENS))


def _rendered(records: Sequence[_Record], renderer: Renderer) -> np.ndarray:
    """Returns the token ids of a document, int32 `[tokens]`, as training windows contain them."""
    flags, *counts = (np.array([getattr(r.header, name) for r in records]) for name in _COLUMNS)
    part = np.array([PARTS.index(record.data.part) for record in records])
    order = rendered_order(part, flags, renderer.view.order)
    lengths = renderer.lengths(part, flags, *counts)[order]
    lengths[0] += 1  # BOS
    lengths[-1] += 1  # EOS
    stops = lengths.cumsum()
    out = np.empty(int(stops[-1]), np.int32)
    for position, number in enumerate(order.tolist()):
        first, last = position == 0, position == len(order) - 1
        length, stop = int(lengths[position]), int(stops[position])
        content, header = records[number].content, records[number].header
        renderer.tokens(content, header, first, last, 0, length, out[stop - length : stop])
    return out


def _same(found: Sequence[Utterance], stored: Sequence[Utterance], renderer: Renderer) -> bool:
    """Returns whether parsed and stored utterances are equal, ignoring parts that the view omits."""
    if not renderer.view.has_audio:  # the view concatenates the text of all utterances
        ids = np.concatenate([utterance.text_ids for utterance in stored])
        return len(found) == 1 and np.array_equal(found[0].text_ids, ids)
    return len(found) == len(stored) and all(
        np.array_equal(a.codes, b.codes[:, : renderer.codebooks])
        and (not renderer.view.has_text or np.array_equal(a.text_ids, b.text_ids))
        for a, b in zip(found, stored, strict=True)
    )
