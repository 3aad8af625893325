"""Another text tokenizer for a finished data set: text ids and index anew, codes as they are.

The documents, their order and their shards stay; only where a long document is cut into records may
move, because that goes by tokens. An utterance whose text the new tokenizer does not represent is
quarantined as `soda tokenize` would do it: it is left out and its document keeps the others.
"""

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from soda_jax.data.manifest import SPLITS, Manifest
from soda_jax.data.reading import read_records
from soda_jax.data.records import DamagedRecordError, RecordData
from soda_jax.data.shards import ShardInfo, ShardWriter
from soda_jax.data.splitting import join_records, split_document
from soda_jax.errors import UserError
from soda_jax.file_sums import check_folder, file_sum, folder_sums
from soda_jax.files import write_atomic
from soda_jax.progress import track
from soda_jax.tokens import Utterance, VocabularyLayout
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.merge import QUARANTINE, TooManyBadInputsError, quarantine_of
from tokenize_pipeline.quarantine import (
    BadInputError,
    QuarantineRow,
    count_by_reason,
    json_lines,
)
from tokenize_pipeline.worker import text_ids

# What a `retext` that was stopped leaves behind.
_MADE = {"tokenizer", "codec", "manifests", QUARANTINE, *SPLITS}


def retext(
    source: str | Path,
    tokenizer: str | Path,
    output: str | Path,
    max_bad_fraction: float = 0.01,
) -> Manifest:
    """Writes the newest generation of `source` to `output` under another text tokenizer.

    The manifest is written last; a job that was stopped is begun again by running it again.

    Args:
      source: folder of a finished data set.
      tokenizer: spec of the text tokenizer.
      output: folder of the new data set: absent, empty, or left by a stopped `retext`.
      max_bad_fraction: share of quarantined utterances above which no manifest is written.

    Returns:
      The manifest of the new data set, generation 0; its `quarantined` has the counts of `source`
      too, and its quarantine.jsonl the rows.

    Raises:
      TooManyBadInputsError: if the tokenizer does not represent the texts of more utterances.
      UserError: if `output` holds something else, or a file of `source` is damaged.
    """
    old = Manifest.load(source)
    check_folder(source, old.front_end, "codec")
    quarantine = quarantine_of(Path(source), old)
    folder = Path(output)
    if (folder / "manifest.json").exists():
        raise UserError(f"--output={folder} is a finished data set: name a new folder")
    if folder.exists() and {path.name for path in folder.iterdir()} - _MADE:
        raise UserError(f"--output={folder} holds other files: name a new or empty folder")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"--max_bad_fraction={max_bad_fraction} must be from 0 to 1")
    encoder = load_tokenizer(tokenizer)
    layout = make_layout(encoder, old.layout.codebook_sizes)
    for name in _MADE - {QUARANTINE}:
        shutil.rmtree(folder / name, ignore_errors=True)
    encoder.save(folder / "tokenizer")
    if (Path(source) / "codec").is_dir():
        shutil.copytree(Path(source) / "codec", folder / "codec")
    work = [(split, info) for split in SPLITS for info in old.splits.get(split, ())]
    new: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    rows: list[QuarantineRow] = []
    for split, info in track(work, "giving new text ids, shards"):
        path = Path(source) / split / info.file
        with contextlib.ExitStack() as stack:
            writer: ShardWriter | None = None
            for document, utterances in _documents(path, old.layout):
                again = list(_encode(document, utterances, encoder, f"{split}/{info.file}", rows))
                for record in split_document(document, again, layout) if again else ():
                    # A shard of which nothing is usable has no file.
                    writer = writer or stack.enter_context(
                        ShardWriter(folder / split / info.file, layout)
                    )
                    writer.write(record)
            if writer:
                new[split].append(writer.close())
    write_atomic(folder / QUARANTINE, quarantine + json_lines(rows))
    _check_share(old, rows, max_bad_fraction, folder)
    manifest = dataclasses.replace(
        old,
        layout=layout,
        tokenizer_fingerprint=encoder.fingerprint,
        splits={split: tuple(shards) for split, shards in new.items()},
        generation=0,
        quarantined=dict(Counter(old.quarantined) + Counter(count_by_reason(rows))),
        quarantine=file_sum(folder / QUARANTINE),
        front_end={
            name: total for name, total in old.front_end.items() if name.startswith("codec/")
        }
        | folder_sums(folder, "tokenizer"),
    )
    manifest.save(folder)
    return manifest


def _documents(path: Path, layout: VocabularyLayout) -> Iterator[tuple[str, Iterable[Utterance]]]:
    """(document id, utterances) of a shard, in stored order; ids are unique in a data set."""
    for document, records in groupby(_sound(path, layout), lambda r: r.document_id):
        yield document, join_records(list(records))


def _sound(path: Path, layout: VocabularyLayout) -> Iterator[RecordData]:
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
    """Yields the utterances with their new ids; `rows` receives those that have none."""
    for number, utterance in enumerate(utterances):
        try:
            text, ids = text_ids(utterance.text, encoder)
        except BadInputError as error:
            rows.append(QuarantineRow(document, number, None, where, error.reason, str(error)))
        else:
            yield Utterance(text, ids, utterance.codes)


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
        f"{len(rows)} of {total} utterances are not in the tokenizer (the first: document "
        f"{first.document}, utterance {first.utterance}: {first.message}), --max_bad_fraction="
        f"{max_bad_fraction:g}: see {folder / QUARANTINE}; {fix}"
    )
