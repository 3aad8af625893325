"""`soda inspect`: prints a data set's summary or records, or checks it."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from soda_jax.commands import _contamination
from soda_jax.commands._verify import print_faults
from soda_jax.errors import UserError

if TYPE_CHECKING:
    from soda_jax.data.format.manifest import Manifest
    from soda_jax.data.format.records import RecordData

SUMMARY = "show the contents of a data set, or check it"
EXAMPLE = "soda inspect data/speech --document=speaker-1/chapter-2"
_SPLITS = ("train", "validation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `soda inspect`."""
    parser.add_argument("dataset", nargs="?", help="folder written by `soda tokenize`")
    parser.add_argument("--record", metavar="SPLIT:NUMBER", help="print one record, e.g. train:0")
    parser.add_argument("--document", metavar="ID", help="print the records of one document")
    parser.add_argument("--generation", type=int, default=-1, help="-1 = the newest (default)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read and check everything; print damaged records as a `mask_records` file; exit 1 if any",
    )
    parser.add_argument(
        "--contamination",
        nargs=2,
        metavar=("TRAIN", "EVAL"),
        help="find utterances of EVAL in TRAIN; exit 1 if documents of TRAIN should be excluded",
    )
    parser.add_argument("--ngram", type=int, default=8, help="words per n-gram (default 8)")
    parser.add_argument(
        "--share",
        type=float,
        default=0.7,
        help="minimum share of an utterance's n-grams in one document (default 0.7)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write an `exclude_documents` file for TRAIN"
    )
    parser.add_argument("--report", metavar="FILE.jsonl", help="write all matching utterances")


def run(args: argparse.Namespace) -> int:
    """Prints the requested parts.

    Returns:
      1 if --verify finds errors or --contamination finds documents to exclude, else 0.
    """
    if bool(args.contamination) == bool(args.dataset):
        raise UserError("give one data set, or two with --contamination TRAIN EVAL")
    if args.contamination:
        return _contamination.run(args)
    if args.output or args.report:
        raise UserError("--output and --report need --contamination TRAIN EVAL")
    from soda_jax.data.format.manifest import Manifest
    from soda_jax.data.storage.locations import refuse_url

    if args.verify or args.record is not None or args.document is not None:
        refuse_url(args.dataset, "--verify, --record and --document read")
    if args.verify:
        return print_faults(args.dataset, args.generation)
    manifest = Manifest.load(args.dataset, args.generation)
    directory = Path(args.dataset)
    if args.record is None and args.document is None:
        print("\n".join(_summary(args.dataset, manifest)))
        return 0
    if args.record is not None:
        print("\n".join(_readable(*_record(directory, manifest, args.record), manifest)))
    if args.document is not None:
        for where, record in _document(directory, manifest, args.document):
            print("\n".join(_readable(where, record, manifest)))
    return 0


def _summary(directory: str, manifest: "Manifest") -> Iterator[str]:
    from soda_jax.data.format.manifest import tokens_by_view
    from soda_jax.data.format.shards import index_path
    from soda_jax.files import is_url

    layout, codec = manifest.layout, manifest.codec
    yield f"{directory}: {manifest.kind}, generation {manifest.generation}, digest {manifest.digest[:16]}"
    sizes = "·".join(map(str, layout.codebook_sizes)) or "none"
    yield f"layout     {layout.fingerprint}: {layout.text_size:,} text ids, codebooks {sizes}"
    yield f"tokenizer  {manifest.tokenizer_fingerprint}"
    if codec:
        rates = f"{codec['sample_rate']} Hz, {codec['frame_rate']:g} frames/s"
        yield f"codec      {codec['name']} {codec['fingerprint']}: {rates}"
    for split in _SPLITS:
        totals = manifest.totals(split)
        tokens = tokens_by_view(manifest.kind, layout.codebooks, totals)  # the same in both orders
        if not totals["shards"]:
            yield f"{split}: empty"
            continue
        counts = ("documents", "utterances", "records", "shards", "text_tokens", "frames")
        yield f"{split}: " + ", ".join(f"{totals[key]:,} {key.replace('_', ' ')}" for key in counts)
        if codec:
            yield f"  {totals['frames'] / codec['frame_rate'] / 3600:.2f} hours of audio"
        for view, count in tokens.items():
            both = f" in each order, {2 * count:,} in both" if view == "S+A+T" else ""
            yield f"  {view:<6} {count:,} tokens{both}"
        if is_url(directory):
            size = totals["bytes"]
            yield f"  {size:,} bytes, {size / max(tokens.values()):.3f} per token"
            continue
        shards = manifest.splits[split]
        indexes = [index_path(Path(directory, split, shard.file)) for shard in shards]
        stored = sum(shard.bytes for shard in shards)
        stored += sum(index.stat().st_size for index in indexes if index.is_file())
        yield f"  {stored:,} bytes with the index, {stored / max(tokens.values()):.3f} per token"
    yield f"quarantined inputs: {sum(manifest.quarantined.values())}"
    for reason, count in sorted(manifest.quarantined.items(), key=lambda item: (-item[1], item[0])):
        yield f"  {count:>6}  {reason}"


def _record(directory: Path, manifest: "Manifest", address: str) -> tuple[str, "RecordData"]:
    from soda_jax.data.format.reading import ShardReaders
    from soda_jax.data.format.records import DamagedRecordError, decode_record

    split, _, number = address.partition(":")
    if split not in _SPLITS or not number.isdecimal():
        raise UserError(f"--record={address} is not SPLIT:NUMBER, such as train:0")
    left = int(number)
    for shard in manifest.splits.get(split, ()):
        if left < shard.records:
            path = directory / split / shard.file
            where = f"{split}/{shard.file}, record {left}"
            try:
                data = ShardReaders().read(path, left, shard.records)
                return where, decode_record(data, manifest.layout)
            except DamagedRecordError as error:
                raise UserError(f"{where}: {error}") from None
        left -= shard.records
    count = manifest.totals(split)["records"]
    raise UserError(f"--record={address}: the {split} split has {count} records, counted from 0")


def _document(
    directory: Path, manifest: "Manifest", name: str
) -> Iterator[tuple[str, "RecordData"]]:
    import numpy as np

    from soda_jax.data.format.records import FIRST
    from soda_jax.data.format.shards import document_hash, index_path, read_index

    wanted = np.uint64(document_hash(name))
    for split in _SPLITS:
        base = 0
        for shard in manifest.splits.get(split, ()):
            index = read_index(index_path(directory / split / shard.file), shard.index_crc32c)
            starts = np.append(np.flatnonzero(index.flags & FIRST), shard.records)
            for document in np.flatnonzero(index.document_hashes == wanted).tolist():
                for number in range(int(starts[document]), int(starts[document + 1])):
                    yield _record(directory, manifest, f"{split}:{base + number}")
                return
            base += shard.records
    raise UserError(f"{directory} has no document {name!r}; ids are case-sensitive")


def _readable(where: str, record: "RecordData", manifest: "Manifest") -> Iterator[str]:
    marks = [word for word in ("first", "last") if getattr(record, word)]
    if record.part != "whole":
        marks += [word for word in ("opens", "closes") if getattr(record, word)]
    yield f"{where}: document {record.document_id} ({', '.join([record.part, *marks])})"
    rate = manifest.codec["frame_rate"] if manifest.codec else 1.0
    for number, utterance in enumerate(record.utterances):
        frames = len(utterance.codes)
        yield f"  [{number}] {utterance.text!r}"
        yield f"      {len(utterance.text_ids)} text ids: {_some(utterance.text_ids)}"
        if frames:
            yield f"      {frames} frames ({frames / rate:.2f} s): {_some(utterance.codes)}"


def _some(values: object, count: int = 4) -> str:
    shown = values[:count].tolist()  # type: ignore[index]
    return " ".join(map(str, shown)) + (" …" if len(values) > count else "")  # type: ignore[arg-type]
