"""Resolves and checks the user's options before a job writes anything."""

import dataclasses
import importlib
import logging
import os
from collections.abc import Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from soda_jax.data.format.manifest import SPLITS, Manifest
from soda_jax.data.format.shards import index_path, read_index
from soda_jax.data.storage.locations import refuse_url
from soda_jax.errors import UserError
from soda_jax.file_sums import check_folder
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.encoding import load_codec_once
from tokenize_pipeline.options import TokenizeOptions, find_inputs
from tokenize_pipeline.plan import Plan, remove_plan
from tokenize_pipeline.planner import make_plan
from tokenize_pipeline.readers import Reader, find_reader
from tokenize_pipeline.results import shard_number


@dataclasses.dataclass(frozen=True)
class Job:
    """The options of a job, and the values derived from them.

    Attributes:
      options: the user's options.
      inputs: the files of the corpus.
      generation: generation that the job writes; 0, or the newest one plus 1 when appending.
      before: manifest of the previous generation, or an empty one.
      data_root: absolute path of the folder that contains all audio; the base of audio paths.
      plan_digest: digest of the plan, set by `for_workers`; "" in other jobs.
    """

    options: TokenizeOptions
    inputs: Sequence[Path]
    generation: int
    before: Manifest
    data_root: str
    plan_digest: str = ""

    @property
    def dataset(self) -> Path:
        """Folder of the data set."""
        return Path(self.options.output)

    @property
    def first_numbers(self) -> dict[str, int]:
        """Number of the first new shard of each split."""
        taken = {s: [shard_number(i.file) for i in self.before.splits.get(s, ())] for s in SPLITS}
        return {split: max(numbers, default=-1) + 1 for split, numbers in taken.items()}

    def settings(self, generation: int) -> dict[str, Any]:
        """Returns the settings to record in the plan of `generation`, by name.

        Options that do not change the bytes (runner, workers, --max_bad_fraction) are not recorded.
        """
        options, codec = self.options, self.before.codec
        return {
            "format": options.format,
            "kind": self.before.kind,
            "codec": f"{codec['name']} {codec['fingerprint']}" if codec else None,
            "tokenizer": self.before.tokenizer_fingerprint,
            "layout": self.before.layout.fingerprint,
            # Relative to the inputs, so that a data set does not depend on where its corpus is.
            "data_root": os.path.relpath(self.data_root, self.inputs[0].parent),
            "shards": options.shards,
            "validation_fraction": options.validation_fraction,
            "max_audio_seconds": options.max_audio_seconds,
            "after": self.before.digest if generation else None,
        }

    def make_plan(self, folder: Path) -> Plan:
        """Reads the corpus and writes the plan into `folder`; see `planner.make_plan`.

        Raises:
          UserError: if the corpus of a new data set contains no document.
        """
        plan = make_plan(
            folder,
            self.generation,
            find_reader(self.options.format),
            self.inputs,
            self.settings(self.generation),
            data_root=self.data_root,
            known=_KnownDocuments(self.dataset, self.before),
            first_numbers=self.first_numbers,
        )
        if not self.generation and not plan.shards and not plan.counts["rejected_rows"]:
            remove_plan(folder)
            raise UserError(f"--input={self.options.input} contains no document")
        return plan

    def for_workers(self, plan: Plan, dataset: Path) -> "Job":
        """Returns a copy of the job for workers, which write the shards of `plan` to `dataset`.

        `inputs` and the splits of `before` are empty, because the copy is sent to each worker.
        """
        return dataclasses.replace(
            self,
            options=dataclasses.replace(self.options, output=str(dataset.absolute())),
            inputs=(),
            before=dataclasses.replace(self.before, splits={}),
            plan_digest=plan.digest,
        )


def read_job(options: TokenizeOptions) -> Job:
    """Resolves and checks `options`.

    Raises:
      UserError: for invalid settings or inputs, or a data set that does not match them.
    """
    inputs = find_inputs(options.input)
    reader = find_reader(options.format)
    refuse_url(options.output, "soda tokenize writes")
    dataset = Path(options.output)
    if dataset.exists() and not dataset.is_dir():
        raise UserError(f"--output={dataset} is a file: give a folder")
    ours = (dataset / "plan").is_dir() or (dataset / "manifests").is_dir()
    if dataset.is_dir() and any(dataset.iterdir()) and not ours:
        raise UserError(f"--output={dataset} contains other files: give a new or empty folder")
    if options.runner:
        import_beam().check_options(options.runner, options.beam_options)
    generation = 0
    if options.append:
        generation = newest_generation(dataset) + 1
        if not generation:
            raise UserError(f"--append needs a finished data set: {dataset} has no manifest")
        # The workers load the saved tokenizer.
        check_folder(dataset, Manifest.load(dataset).front_end_files, "tokenizer")
    before = _empty_manifest(options, reader, load_text_tokenizer(options))
    if generation:
        before = _check_append(options, dataset, before)
    return Job(options, inputs, generation, before, _find_data_root(options, reader, inputs))


def load_text_tokenizer(options: TokenizeOptions) -> TextTokenizer:
    """Returns the text tokenizer of the options.

    The default is bytes, or the tokenizer of the data set when appending.
    """
    default = Path(options.output) / "tokenizer" if options.append else "bytes"
    return load_tokenizer(options.tokenizer or default)


def import_beam() -> ModuleType:
    """Imports the module `beam_graph`, without Beam's warnings about missing cloud libraries.

    Local jobs do not call this, because importing apache_beam takes seconds.
    """
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("tokenize_pipeline.beam_graph")
    finally:
        logging.disable(logging.NOTSET)


def newest_generation(dataset: Path) -> int:
    """Returns the newest finished generation of a data set, or -1 if there is none."""
    return Manifest.load(dataset).generation if (dataset / "manifest.json").exists() else -1


def _find_data_root(options: TokenizeOptions, reader: Reader, inputs: Sequence[Path]) -> str:
    """Returns the absolute folder that audio paths are relative to.

    The folder is --data_root, by default the folder of the first input. A reader of a corpus with a
    fixed layout derives it from the inputs with a function `data_root(inputs) -> Path`; --data_root
    must then be omitted or the same.
    """
    root = os.path.abspath(options.data_root or inputs[0].parent)
    if (of_corpus := getattr(reader, "data_root", None)) is not None:
        found = os.path.abspath(of_corpus(inputs))
        if options.data_root and root != found:
            raise UserError(
                f"--data_root={options.data_root}: --format={options.format} derives the folder of "
                f"the audio from the inputs ({found}); leave --data_root out"
            )
        root = found
    if not os.path.isdir(root):
        raise UserError(f"--data_root={root} is not a folder")
    return root


def _empty_manifest(options: TokenizeOptions, reader: Reader, tokenizer: TextTokenizer) -> Manifest:
    """Returns the manifest of an empty data set with the tokenizer and codec of the options."""
    if reader.KIND == "speech" and not options.codec:
        raise UserError(
            f"--format={options.format} needs a codec: add --codec=mel:DIR or --codec=mimi:DIR"
        )
    codec = load_codec_once(options.codec) if options.codec else None
    layout = make_layout(tokenizer, codec.codebook_sizes if codec else ())
    described = None
    if codec and reader.KIND == "speech":
        names = ("name", "fingerprint", "sample_rate", "frame_rate", "samples_per_frame")
        described = {name: getattr(codec, name) for name in names}
    return Manifest(reader.KIND, layout, described, tokenizer.fingerprint, {})


def _check_append(options: TokenizeOptions, dataset: Path, empty: Manifest) -> Manifest:
    """Returns the newest manifest of a data set.

    Raises:
      UserError: if its kind, tokenizer, codec or vocabulary layout differs from that of `empty`.
    """
    newest = Manifest.load(dataset)
    if newest.kind != empty.kind:
        raise UserError(
            f"{dataset} is a {newest.kind} data set, --format={options.format} is {empty.kind}: "
            "give another --output"
        )
    other_codec = "pass the codec of the data set, or another --output"
    fixes = {
        "tokenizer": "leave --tokenizer out to use the tokenizer of the data set",
        "codec": other_codec,
        "vocabulary layout": other_codec,
    }
    newest.front_end.check_same(empty.front_end, str(dataset), "this command", fixes=fixes)
    return newest


class _KnownDocuments(Container[int]):
    """The document hashes of a data set in a sorted array, a tenth of the size of a `set`."""

    def __init__(self, dataset: Path, manifest: Manifest):
        hashes = [
            read_index(index_path(dataset / split / info.file), info.index_crc32c).document_hashes
            for split, shards in manifest.splits.items()
            for info in shards
        ]
        self._sorted = np.sort(np.concatenate([np.zeros(0, np.uint64), *hashes]))

    def __contains__(self, value: object) -> bool:
        index = int(np.searchsorted(self._sorted, np.uint64(value)))  # type: ignore[arg-type]
        return index < len(self._sorted) and int(self._sorted[index]) == value
