"""The inputs, codec, tokenizer and settings of a job, checked before anything is written."""

import dataclasses
import importlib
import logging
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.shards import index_path, read_index
from soda_jax.data.storage.locations import refuse_url
from soda_jax.errors import UserError
from soda_jax.file_sums import check_folder
from soda_jax.tokens.front_end import FrontEnd
from soda_jax.tokens.text import TextTokenizer, load_tokenizer, make_layout
from tokenize_pipeline.options import TokenizeOptions, find_data_root, find_inputs, plan_settings
from tokenize_pipeline.plan import SPLITS, Plan
from tokenize_pipeline.planner import make_plan, speech_weight, text_weight
from tokenize_pipeline.readers import DocumentSource, Reader, find_reader
from tokenize_pipeline.sweep import shard_number
from tokenize_pipeline.worker import Job, load_codec_once


@dataclasses.dataclass(frozen=True)
class Request:
    """A job before it is planned.

    Attributes:
      options: the user's options.
      inputs: the files of the corpus.
      reader: reader of the corpus.
      dataset: folder of the data set.
      generation: generation that the job makes: 0, or the newest plus one when appending.
      tokenizer: text tokenizer.
      before: manifest of the previous generation, or an empty one.
      root: absolute folder that audio paths are relative to.
    """

    options: TokenizeOptions
    inputs: Sequence[Path]
    reader: Reader
    dataset: Path
    generation: int
    tokenizer: TextTokenizer
    before: Manifest
    root: Path

    @property
    def first_numbers(self) -> dict[str, int]:
        """Number of the first new shard of each split."""
        taken = {s: [shard_number(i.file) for i in self.before.splits.get(s, ())] for s in SPLITS}
        return {split: max(numbers, default=-1) + 1 for split, numbers in taken.items()}

    @property
    def weigh(self) -> Callable[[DocumentSource], float]:
        """Expected work of a document: seconds of audio, or bytes of text."""
        return speech_weight(self.root) if self.reader.KIND == "speech" else text_weight

    def settings(self, generation: int) -> dict[str, Any]:
        """Returns the settings that the plan of `generation` records."""
        return plan_settings(self.options, self.before, self.inputs, self.root, generation)

    def make_plan(self, folder: Path) -> Plan:
        """Reads the corpus and writes the plan into `folder`; see `planner.make_plan`."""
        return make_plan(
            folder,
            self.generation,
            self.reader,
            self.inputs,
            self.settings(self.generation),
            weigh=self.weigh,
            known=_known_documents(self.dataset, self.before),
            first_numbers=self.first_numbers,
        )

    def job(self, dataset: Path, plan: Plan) -> Job:
        """Returns the settings for the workers of `plan`, which write to `dataset`."""
        return Job(
            str(dataset.absolute()),
            self.generation,
            plan.digest,
            self.options.codec if self.reader.KIND == "speech" else None,
            self.before.layout.codebook_sizes,
            str(self.root),
            self.options.max_audio_seconds,
        )


def read_request(options: TokenizeOptions) -> Request:
    """Resolves and checks `options`.

    Raises:
      UserError: for wrong settings or inputs, or a data set that does not match them.
    """
    inputs = find_inputs(options.input)
    reader = find_reader(options.format)
    refuse_url(options.output, "soda tokenize writes")
    dataset = Path(options.output)
    _check_folder(dataset)
    if options.runner:
        import_beam().check_options(options.runner, options.beam_options)
    generation = _generation(dataset, options.append)
    if options.append:
        check_folder(
            dataset, Manifest.load(dataset).front_end_files, "tokenizer"
        )  # the workers read it
    if options.tokenizer is None and options.append:
        tokenizer = load_tokenizer(dataset / "tokenizer")
    else:
        tokenizer = load_tokenizer(options.tokenizer or "bytes")
    before = _before(options, reader, tokenizer, dataset, generation)
    root = find_data_root(options, reader, inputs)
    return Request(options, inputs, reader, dataset, generation, tokenizer, before, root)


def import_beam() -> ModuleType:
    """Imports the module `beam_graph`, without Beam's warnings about missing cloud libraries."""
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("tokenize_pipeline.beam_graph")
    finally:
        logging.disable(logging.NOTSET)


def newest_generation(dataset: Path) -> int:
    """Returns the newest finished generation of a data set, or -1."""
    return Manifest.load(dataset).generation if (dataset / "manifest.json").exists() else -1


def _check_folder(dataset: Path) -> None:
    if dataset.exists() and not dataset.is_dir():
        raise UserError(f"--output={dataset} is a file: give a folder")
    ours = (dataset / "plan").is_dir() or (dataset / "manifests").is_dir()
    if dataset.is_dir() and any(dataset.iterdir()) and not ours:
        raise UserError(f"--output={dataset} contains other files: give a new or empty folder")


def _generation(dataset: Path, append: bool) -> int:
    if not append:
        return 0
    newest = newest_generation(dataset)
    if newest < 0:
        raise UserError(f"--append needs a finished data set: {dataset} has no manifest")
    return newest + 1


def _before(
    options: TokenizeOptions,
    reader: Reader,
    tokenizer: TextTokenizer,
    dataset: Path,
    generation: int,
) -> Manifest:
    """Returns the manifest of the previous generation, or an empty one."""
    if reader.KIND == "speech" and not options.codec:
        raise UserError(
            f"--format={options.format} is speech: give a codec, as in --codec=mel:DIR or mimi:DIR"
        )
    codec = load_codec_once(options.codec) if options.codec else None
    layout = make_layout(tokenizer, codec.codebook_sizes if codec else ())
    described = None
    if codec and reader.KIND == "speech":
        described = {
            "name": codec.name,
            "fingerprint": codec.fingerprint,
            "sample_rate": codec.sample_rate,
            "frame_rate": codec.frame_rate,
            "samples_per_frame": codec.samples_per_frame,
        }
    empty = Manifest(reader.KIND, layout, described, tokenizer.fingerprint, {})
    if not generation:
        return empty
    newest = Manifest.load(dataset)
    if newest.kind != empty.kind:
        raise UserError(
            f"{dataset} is a {newest.kind} data set, --format={options.format} is {empty.kind}: "
            "give another --output"
        )
    wanted = FrontEnd(layout, tokenizer.fingerprint, codec.fingerprint if codec else None)
    newest.front_end.check_same(
        wanted,
        str(dataset),
        "this command",
        fixes={
            "tokenizer": "leave --tokenizer out to use the tokenizer of the data set",
            "codec": "pass the codec of the data set, or another --output",
            "vocabulary layout": "pass the codec of the data set, or another --output",
        },
    )
    return newest


class _Hashes(Container[int]):
    """Hashes of documents in a sorted array: 8 bytes each, a tenth of a set's memory."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self._sorted = np.sort(np.concatenate([np.zeros(0, np.uint64), *parts]))

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int):
            return False
        index = int(np.searchsorted(self._sorted, np.uint64(value)))
        return index < len(self._sorted) and int(self._sorted[index]) == value


def _known_documents(dataset: Path, before: Manifest) -> Container[int]:
    return _Hashes(
        [
            read_index(index_path(dataset / split / info.file), info.index_crc32c).document_hashes
            for split, shards in before.splits.items()
            for info in shards
        ]
    )
