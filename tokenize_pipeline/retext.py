"""Copies a finished data set with another text tokenizer; the codes stay the same.

Documents, their order and their shards stay the same. A long document may be split into records at
other positions, which depend on the number of tokens. An utterance that the new tokenizer cannot
represent is quarantined, as in `soda tokenize`.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.reading import read_records
from soda_jax.data.format.records import DamagedRecordError, RecordData
from soda_jax.data.format.shards import ShardInfo
from soda_jax.data.format.splitting import join_records
from soda_jax.errors import UserError
from soda_jax.file_sums import check_folder, file_sum, folder_sums
from soda_jax.files import write_atomic
from soda_jax.progress import track
from soda_jax.tokens import Utterance, VocabularyLayout
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.merge import QUARANTINE, TooManyBadInputsError, quarantine_of
from tokenize_pipeline.quarantine import BadInputError, QuarantineRow, count_by_reason, json_lines
from tokenize_pipeline.worker import text_ids, write_documents

_FOLDERS = ("tokenizer", "codec", "manifests", *SPLITS)  # replaced if a stopped `retext` left them


def retext(
    source: str | Path, tokenizer: str | Path, output: str | Path, max_bad_fraction: float = 0.01
) -> Manifest:
    """Writes the newest generation of `source` to `output` with another text tokenizer.

    The manifest is written last. If the command is stopped, running it again starts from scratch.

    Args:
      source: folder of a finished data set.
      tokenizer: spec of the new text tokenizer.
      output: folder of the new data set. It may be missing, empty, or left by a stopped `retext`.
      max_bad_fraction: share of quarantined utterances above which no manifest is written.

    Returns:
      The manifest of the new data set (generation 0). `quarantined` and quarantine.jsonl include
      the entries of `source`.

    Raises:
      TooManyBadInputsError: if the share of utterances that the tokenizer cannot represent is
        larger than `max_bad_fraction`, or 1.
      UserError: if `output` contains other files, or a file of `source` is damaged.
    """
    source, folder = Path(source), Path(output)
    old = Manifest.load(source)
    check_folder(source, old.front_end_files, "codec")
    quarantine = quarantine_of(source, old)
    if (folder / "manifest.json").exists():
        raise UserError(f"--output={folder} is a finished data set: give a new folder")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names - {*_FOLDERS, QUARANTINE}:
        raise UserError(f"--output={folder} contains other files: give a new or empty folder")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"--max_bad_fraction={max_bad_fraction} must be between 0 and 1")
    encoder = load_tokenizer(tokenizer)
    layout = make_layout(encoder, old.layout.codebook_sizes)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    encoder.save(folder / "tokenizer")
    if (source / "codec").is_dir():
        shutil.copytree(source / "codec", folder / "codec")
    new: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    rows: list[QuarantineRow] = []
    work = [(split, info) for split in SPLITS for info in old.splits.get(split, ())]
    for split, info in track(work, "tokenizing texts, shards"):
        name = f"{split}/{info.file}"
        documents = (
            (document, list(_encode(document, utterances, encoder, name, rows)))
            for document, utterances in _documents(source / name, old.layout)
        )
        if made := write_documents(folder / name, layout, documents):
            new[split].append(made)
    write_atomic(folder / QUARANTINE, quarantine + json_lines(rows))
    _check_share(old, rows, max_bad_fraction, folder)
    codec_sums = {name: s for name, s in old.front_end_files.items() if name.startswith("codec/")}
    manifest = dataclasses.replace(
        old,
        layout=layout,
        tokenizer_fingerprint=encoder.fingerprint,
        splits={split: tuple(shards) for split, shards in new.items()},
        generation=0,
        quarantined=dict(Counter(old.quarantined) + Counter(count_by_reason(rows))),
        quarantine=file_sum(folder / QUARANTINE),
        front_end_files=codec_sums | folder_sums(folder, "tokenizer"),
    )
    manifest.save(folder)
    return manifest


def _documents(path: Path, layout: VocabularyLayout) -> Iterator[tuple[str, Iterable[Utterance]]]:
    """Yields (document id, utterances) of a shard in stored order; ids are unique in a data set."""
    for document, records in groupby(_intact_records(path, layout), lambda r: r.document_id):
        yield document, join_records(list(records))


def _intact_records(path: Path, layout: VocabularyLayout) -> Iterator[RecordData]:
    for record in read_records(path, layout):
        if isinstance(record, DamagedRecordError):
            raise record
        yield record


def _encode(
    document: str,
    utterances: Iterable[Utterance],
    encoder: TextTokenizer,
    where: str,
    rows: list[QuarantineRow],
) -> Iterator[Utterance]:
    """Yields the utterances with new ids; adds those that cannot be encoded to `rows`."""
    for number, utterance in enumerate(utterances):
        try:
            yield Utterance(*text_ids(utterance.text, encoder), utterance.codes)
        except BadInputError as error:
            rows.append(QuarantineRow(document, number, None, where, error.reason, str(error)))


def _check_share(
    old: Manifest, rows: list[QuarantineRow], max_bad_fraction: float, folder: Path
) -> None:
    total = sum(old.totals(split)["utterances"] for split in SPLITS)
    if not rows or (len(rows) < total and len(rows) <= max_bad_fraction * total):
        return
    first = rows[0]
    fix = "choose another tokenizer"
    if len(rows) < total:
        fix += ", or run again with a larger --max_bad_fraction to leave them out"
    raise TooManyBadInputsError(
        f"the tokenizer cannot represent {len(rows)} of {total} utterances (the first: document "
        f"{first.document}, utterance {first.utterance}: {first.message}), --max_bad_fraction="
        f"{max_bad_fraction:g}: see {folder / QUARANTINE}; {fix}"
    )
