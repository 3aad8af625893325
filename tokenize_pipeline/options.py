"""The options of `soda tokenize`, and which of them decide the bytes of the data set."""

import dataclasses
import difflib
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from tokenize_pipeline.readers import Reader
from tokenize_pipeline.readers._corpus import is_mac_metadata


@dataclasses.dataclass(frozen=True)
class TokenizeOptions:
    """The options of `soda tokenize`, under the names of the command line.

    Attributes:
      input: path or glob pattern of the corpus; see its reader.
      output: folder of the data set.
      format: name of the reader.
      codec: spec such as "mel:DIR". Required for speech. With it, text gets a layout that can be
        mixed with speech of that codec.
      tokenizer: spec of the text tokenizer; None for "bytes", or for the data set's own when appending.
      data_root: folder that audio paths are relative to; None for the folder of the first input.
      shards: number of training shards; 0 = chosen by the amount of work.
      validation_fraction: share of documents held out.
      max_audio_seconds: longest utterance.
      max_bad_fraction: share of bad utterances above which the job fails at its end.
      append: add a generation to a finished data set.
      workers: processes on this machine; 1 = this process, 0 = one per core.
      runner: "dask" or a Beam runner, for a cluster; None for this machine.
      beam_options: further options for Beam; only with a runner.
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
    workers: int = 1
    runner: str | None = None
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("validation_fraction", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name}={getattr(self, name)} must be between 0 and 1")
        for name in ("shards", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name}={getattr(self, name)} must not be negative")
        if not self.max_audio_seconds > 0:
            raise UserError(f"--max_audio_seconds={self.max_audio_seconds} must be positive")
        if self.runner and self.workers != 1:
            raise UserError(
                f"--workers={self.workers} is for this machine: leave it out, and set the number of "
                f"workers of --runner={self.runner} with its own option"
            )
        if self.beam_options and not self.runner:
            name = self.beam_options[0].split("=")[0]
            ours = [f"--{field.name}" for field in dataclasses.fields(self)]
            similar = difflib.get_close_matches(name, ours, 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise UserError(
                f"option {name} is unknown to soda tokenize (options of Beam need --runner){hint}"
            )


def find_inputs(pattern: str) -> list[Path]:
    """Returns the files that `pattern` (a path or glob pattern) matches, sorted.

    Files that macOS adds to folders (`._NAME`, `.DS_Store`) are ignored.

    Raises:
      UserError: if there is no file.
    """
    paths = [Path(pattern)] if Path(pattern).exists() else map(Path, sorted(glob.glob(pattern)))
    files = [path for path in paths if path.is_file() and not is_mac_metadata(path.name)]
    if not files:
        raise UserError(f"--input={pattern} matches no file: give a file or a pattern of files")
    return files


def find_data_root(options: TokenizeOptions, reader: Reader, inputs: Sequence[Path]) -> Path:
    """Returns the absolute folder that audio paths are relative to.

    It is --data_root, or the folder of the first input. A reader of a corpus with a fixed layout
    derives it from the inputs with a function `data_root(inputs) -> Path`.

    Raises:
      UserError: if it is not a folder, or --data_root differs from the reader's.
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
    options: TokenizeOptions, before: Manifest, inputs: Sequence[Path], root: Path, generation: int
) -> dict[str, Any]:
    """Returns the settings that the plan records, under the names of the options.

    Options that do not change the bytes (runner, workers, --max_bad_fraction) are not recorded.
    """
    codec = before.codec
    return {
        "format": options.format,
        "kind": before.kind,
        "codec": f"{codec['name']} {codec['fingerprint']}" if codec else None,
        "tokenizer": before.tokenizer_fingerprint,
        "layout": before.layout.fingerprint,
        # Relative to the corpus: the bytes of the data set must not depend on its location.
        "data_root": os.path.relpath(root, inputs[0].parent),
        "shards": options.shards,
        "validation_fraction": options.validation_fraction,
        "max_audio_seconds": options.max_audio_seconds,
        "after": before.digest if generation else None,
    }
