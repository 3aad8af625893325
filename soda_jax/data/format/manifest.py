"""The manifest of a data set: its shards, vocabulary, tokenizer and codec.

    DATASET/manifest.json            the newest generation
    DATASET/manifests/0000.json …    every generation; these files never change

Appending writes new shards and the next generation; a reader of an older generation still reads the
same data. Each file contains the SHA-256 of its other bytes (`soda_jax.checked_json`). All commands
read manifests with `Manifest.load`, which raises an error if a bit has changed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_jax.checked_json import (
    DamagedError,
    checked_json,
    parse_checked_json,
    write_checked_json,
)
from soda_jax.data.format.shards import ShardInfo
from soda_jax.data.storage.locations import Location, join
from soda_jax.data.storage.remote import read_bytes
from soda_jax.errors import UserError
from soda_jax.file_sums import FileSums
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.vocabulary import VocabularyLayout

FORMAT_VERSION = 2
KINDS = ("speech", "text")
SPLITS = ("train", "validation")
_MANIFEST, _GENERATION = "manifest.json", "manifests/{:04d}.json"
_CODEC_KEYS = ("name", "fingerprint", "sample_rate", "frame_rate")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One generation of a data set.

    Attributes:
      kind: "speech" or "text".
      layout: vocabulary layout of the records.
      codec: the codec that made the codes, with at least "name", "fingerprint", "sample_rate" (Hz)
        and "frame_rate" (frames per second); None for text.
      tokenizer_fingerprint: fingerprint of the text tokenizer in DATASET/tokenizer.
      splits: shards of "train" and "validation", in order.
      settings_digest: hash of the settings that the data set was tokenized with.
      generation: number of the generation, from 0; each append increments it.
      quarantined: number of quarantined inputs by reason, in this and all earlier generations.
      front_end_files: size and crc32c of every file in DATASET/tokenizer and DATASET/codec; the
        same in all generations.
      quarantine: size and crc32c of DATASET/quarantine.jsonl up to the last row of this generation.
    """

    kind: str
    layout: VocabularyLayout
    codec: Mapping[str, Any] | None
    tokenizer_fingerprint: str
    splits: Mapping[str, tuple[ShardInfo, ...]]
    settings_digest: str = ""
    generation: int = 0
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)
    front_end_files: FileSums = dataclasses.field(default_factory=dict)
    quarantine: tuple[int, str] = (0, "00000000")

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as a JSON object with totals."""
        # The codec may contain tuples; they are converted to lists, as in a manifest read from a
        # file.
        return {
            "format_version": FORMAT_VERSION,
            "generation": self.generation,
            "kind": self.kind,
            "layout": self.layout.to_json(),
            "layout_fingerprint": self.layout.fingerprint,
            "codec": json.loads(json.dumps(self.codec)) if self.codec else None,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "settings_digest": self.settings_digest,
            "quarantined": dict(sorted(self.quarantined.items())),
            "quarantine": list(self.quarantine),
            "front_end": {
                name: list(total) for name, total in sorted(self.front_end_files.items())
            },
            "totals": {split: self.totals(split) for split in SPLITS},
            "splits": {
                split: [dataclasses.asdict(shard) for shard in self.splits.get(split, ())]
                for split in SPLITS
            },
        }

    @property
    def front_end(self) -> FrontEnd:
        """Tokenizer, codec and layout of the records."""
        codec = self.codec["fingerprint"] if self.codec else None
        return FrontEnd(self.layout, self.tokenizer_fingerprint, codec)

    def totals(self, split: str) -> dict[str, int]:
        """Returns the number of shards of a split, and the sums of their counts and bytes."""
        shards = self.splits.get(split, ())
        fields = ("records", "documents", "utterances", "text_tokens", "frames", "bytes")
        sums = {field: sum(getattr(shard, field) for shard in shards) for field in fields}
        return {"shards": len(shards), **sums}

    @property
    def digest(self) -> str:
        """A hash of `to_json`, 64 hexadecimal digits; equal data sets have equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the file of the generation, then manifest.json.

        Raises:
          UserError: if this generation exists with different content; a generation never changes.
        """
        path = generation_path(directory, self.generation)
        if path.exists() and path.read_bytes() != checked_json(self.to_json()).encode():
            raise UserError(
                f"{path} exists and differs; append to the data set or choose an empty directory"
            )
        write_checked_json(path, self.to_json())
        write_checked_json(Path(directory) / _MANIFEST, self.to_json())

    @classmethod
    def load(cls, directory: Location, generation: int = -1) -> "Manifest":
        """Reads a generation of a data set, -1 for the newest; `directory` is a path or a URL.

        Raises:
          UserError: if the manifest is missing or damaged, or has another format version.
        """
        path = join(directory, _MANIFEST)
        if generation >= 0:
            path = join(directory, *_GENERATION.format(generation).split("/"))
        value = _read(path)
        try:
            manifest = cls(
                kind=value["kind"],
                layout=VocabularyLayout.from_json(value["layout"]),
                codec=value["codec"],
                tokenizer_fingerprint=value["tokenizer_fingerprint"],
                splits={
                    split: tuple(ShardInfo(**shard) for shard in shards)
                    for split, shards in value["splits"].items()
                },
                settings_digest=value["settings_digest"],
                generation=value["generation"],
                quarantined=value["quarantined"],
                front_end_files={
                    name: (size, crc) for name, (size, crc) in value["front_end"].items()
                },
                quarantine=tuple(value["quarantine"]),
            )
            missing = [key for key in _CODEC_KEYS if key not in (value["codec"] or _CODEC_KEYS)]
            if missing or manifest.kind not in KINDS:
                raise ValueError(f"kind is {manifest.kind!r}, missing codec keys are {missing}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a valid manifest: {error!r}; {_fix(path)}") from None
        if manifest.to_json() != value:
            raise UserError(f"{path} has inconsistent entries; {_fix(path)}")
        if generation not in (-1, manifest.generation):
            raise UserError(f"{path} contains generation {manifest.generation}; {_fix(path)}")
        return manifest


def tokens_by_view(kind: str, codebooks: int, totals: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of tokens by composition, including BOS and EOS.

    Both orders of S+A+T have the same number of tokens.

    Args:
      kind: "speech" or "text".
      codebooks: number of codebooks per frame.
      totals: documents, utterances, text_tokens and frames, see `Manifest.totals`.
    """
    text, ends = totals["text_tokens"], 2 * totals["documents"]
    if kind == "text":
        return {"text": text + ends}
    spans, frames = 2 * totals["utterances"], totals["frames"]
    return {
        "S+A+T": text + frames * codebooks + 2 * spans + ends,
        "S+A": frames * codebooks + spans + ends,
        "S": frames + spans + ends,
        "text": text + ends,
    }


def generation_path(directory: str | os.PathLike[str], generation: int) -> Path:
    """Returns the path of the manifest of a generation."""
    return Path(directory) / _GENERATION.format(generation)


def _read(path: Location) -> dict[str, Any]:
    """Returns the JSON object of a manifest; raises UserError if it is missing or damaged."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the manifest ({error.strerror}); pass a folder that "
            "`soda tokenize` has finished writing"
        ) from None
    try:
        value = parse_checked_json(content)
    except DamagedError as error:
        raise UserError(f"{path}: {error}; {_fix(path)}") from None
    if value.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {value.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; tokenize the corpus again or use the program that wrote it"
        )
    return value


def _fix(path: Location) -> str:
    source = "the newest file in manifests/" if str(path).endswith(_MANIFEST) else "a backup"
    return f"restore it from {source}, or tokenize the corpus again"
