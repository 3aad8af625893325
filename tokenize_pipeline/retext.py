"""Another text tokenizer for a finished data set: text ids and index anew, codes as they are.

The documents, their order and their shards stay; only where a long document is cut into records may
move, because that goes by tokens.
"""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from soda_jax.data.manifest import SPLITS, Manifest
from soda_jax.data.reading import read_records
from soda_jax.data.records import DamagedRecordError, RecordData
from soda_jax.data.shards import ShardInfo, ShardWriter
from soda_jax.data.splitting import join_records, split_document
from soda_jax.errors import UserError
from soda_jax.file_sums import check_folder, folder_sums
from soda_jax.files import write_atomic
from soda_jax.progress import track
from soda_jax.tokens import Utterance, VocabularyLayout
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.merge import QUARANTINE, quarantine_of

# What a `retext` that was stopped leaves behind.
_MADE = {"tokenizer", "codec", "manifests", QUARANTINE, *SPLITS}


def retext(source: str | Path, tokenizer: str | Path, output: str | Path) -> Manifest:
    """Writes the newest generation of `source` to `output` under another text tokenizer.

    The manifest is written last; a job that was stopped is begun again by running it again.

    Args:
      source: folder of a finished data set.
      tokenizer: spec of the text tokenizer.
      output: folder of the new data set: absent, empty, or left by a stopped `retext`.

    Returns:
      The manifest of the new data set, generation 0.

    Raises:
      UserError: if `output` holds something else, a file of `source` is damaged, or the tokenizer
        cannot write a text, which is named.
    """
    old = Manifest.load(source)
    check_folder(source, old.front_end, "codec")
    quarantine = quarantine_of(Path(source), old)
    folder = Path(output)
    if (folder / "manifest.json").exists():
        raise UserError(f"--output={folder} is a finished data set: name a new folder")
    if folder.exists() and {path.name for path in folder.iterdir()} - _MADE:
        raise UserError(f"--output={folder} holds other files: name a new or empty folder")
    encoder = load_tokenizer(tokenizer)
    layout = make_layout(encoder, old.layout.codebook_sizes)
    for name in _MADE - {QUARANTINE}:
        shutil.rmtree(folder / name, ignore_errors=True)
    encoder.save(folder / "tokenizer")
    if (Path(source) / "codec").is_dir():
        shutil.copytree(Path(source) / "codec", folder / "codec")
    work = [(split, info) for split in SPLITS for info in old.splits.get(split, ())]
    new: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
    for split, info in track(work, "giving new text ids, shards"):
        path = Path(source) / split / info.file
        with ShardWriter(folder / split / info.file, layout) as writer:
            for document, utterances in _documents(path, old.layout):
                again = [_encode(document, utterance, encoder) for utterance in utterances]
                for record in split_document(document, again, layout):
                    writer.write(record)
            new[split].append(writer.close())
    write_atomic(folder / QUARANTINE, quarantine)
    manifest = dataclasses.replace(
        old,
        layout=layout,
        tokenizer_fingerprint=encoder.fingerprint,
        splits={split: tuple(shards) for split, shards in new.items()},
        generation=0,
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


def _encode(document: str, utterance: Utterance, encoder: TextTokenizer) -> Utterance:
    try:
        ids = encoder.encode(utterance.text)
        if not len(ids):
            raise UserError("the tokenizer makes no ids of it")
    except UserError as error:
        raise UserError(
            f"document {document}: {utterance.text[:40]!r}: {error}; choose another tokenizer"
        ) from None
    return Utterance(utterance.text, ids, utterance.codes)
