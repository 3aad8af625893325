"""What the user asks for, and which of it decides the bytes of the data set."""

import dataclasses
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_jax.data.manifest import Manifest
from soda_jax.errors import UserError
from tokenize_pipeline.readers import Reader
from tokenize_pipeline.readers._folders import is_mac_metadata


@dataclasses.dataclass(frozen=True)
class Options:
    """What `soda tokenize` is told; the names are those of the command line.

    Attributes:
      input: path or glob pattern of the corpus, as its reader wants it.
      output: folder of the data set.
      format: name of the reader.
      codec: spec such as "mel:DIR". Speech needs it; with it, text gets a layout that can be mixed
        with speech of that codec.
      tokenizer: spec of the text tokenizer; None for "bytes", or the data set's own when appending.
      data_root: folder that audio paths are relative to; None for the folder of the first input.
      shards: number of training shards; 0 chooses by the amount of work.
      validation_fraction: share of documents held out.
      max_audio_seconds: longest utterance.
      max_bad_fraction: share of bad utterances above which the job fails at its end.
      append: add a generation to a finished data set.
      runner: Beam runner.
      beam_options: further options for Beam.
    """

    input: str
    output: str
    format: str = "manifest"
    codec: str | None = None
    tokenizer: str | None = None
    data_root: str | None = None
    shards: int = 0
    validation_fraction: float = 0.01
    max_audio_seconds: float = 3600.0
    max_bad_fraction: float = 0.01
    append: bool = False
    runner: str = "DirectRunner"
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name}={getattr(self, name)} must lie between 0 and 1")
        if self.shards < 0:
            raise UserError(f"--shards={self.shards} must not be negative")
        if not self.max_audio_seconds > 0:
            raise UserError(f"--max_audio_seconds={self.max_audio_seconds} must be positive")


def find_inputs(pattern: str) -> list[Path]:
    """The files that `pattern` (a path or a glob pattern) names, sorted; UserError if there is none.

    What macOS adds to folders (`._NAME`, `.DS_Store`) is left out.
    """
    paths = [Path(pattern)] if Path(pattern).exists() else map(Path, sorted(glob.glob(pattern)))
    files = [path for path in paths if path.is_file() and not is_mac_metadata(path.name)]
    if not files:
        raise UserError(f"--input={pattern} names no file: give a file or a pattern of files")
    return files


def find_data_root(options: Options, reader: Reader, inputs: Sequence[Path]) -> Path:
    """The absolute folder that audio paths are relative to: --data_root, or the folder of the first input.

    A reader of a corpus with a layout of its own may hold `data_root(inputs) -> Path`, which says where the
    corpus begins; there nothing is left to choose.

    Raises:
      UserError: if the folder is none, or --data_root is not that of the corpus.
    """
    of_corpus = getattr(reader, "data_root", None)
    if of_corpus is None:
        root = Path(os.path.abspath(options.data_root or inputs[0].parent))
    else:
        root = Path(os.path.abspath(of_corpus(inputs)))
        if options.data_root and os.path.abspath(options.data_root) != str(root):
            raise UserError(
                f"--data_root={options.data_root}: --format={options.format} finds its audio by the "
                f"inputs, in {root}; leave --data_root out"
            )
    if not root.is_dir():
        raise UserError(f"--data_root={root} is not a folder")
    return root


def plan_settings(
    options: Options, before: Manifest, inputs: Sequence[Path], root: Path, generation: int
) -> dict[str, Any]:
    """The settings recorded in the plan, under the names of the options where there is one.

    What only changes how the work is done (runner, processes, --max_bad_fraction) is not among them.
    """
    codec = before.codec
    return {
        "format": options.format,
        "kind": before.kind,
        "codec": f"{codec['name']} {codec['fingerprint']}" if codec else None,
        "tokenizer": before.tokenizer_fingerprint,
        "layout": before.layout.fingerprint,
        # Relative to the corpus: the data set must not depend on where the corpus lies.
        "data_root": os.path.relpath(root, inputs[0].parent),
        "shards": options.shards,
        "validation_fraction": options.validation_fraction,
        "max_audio_seconds": options.max_audio_seconds,
        "after": before.digest if generation else None,
    }
