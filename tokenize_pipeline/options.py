"""The options of `soda tokenize`."""

import dataclasses
import difflib
import glob
from collections.abc import Iterable
from pathlib import Path

from soda_jax.errors import UserError
from soda_jax.schema_fields import setting
from tokenize_pipeline.readers._corpus import is_mac_metadata


@dataclasses.dataclass(frozen=True)
class TokenizeOptions:
    """The options of `soda tokenize`, whose command line is generated from these fields."""

    input: str = setting(doc="a file, or a quoted glob pattern")
    output: str = setting(doc="folder of the data set")
    format: str = setting(
        "manifest",
        "reader of the corpus: manifest (JSONL, CSV), text, or a published corpus such as yodas2",
    )
    codec: str | None = setting(
        None,
        "audio codec, as mel:DIR or mimi:DIR; required for speech. For text it sets the "
        "vocabulary, so that the text can be mixed with speech of this codec",
    )
    tokenizer: str | None = setting(
        None,
        "bytes, a tokenizer.json or its folder (default: bytes; with --append, that of the data set)",
    )
    data_root: str | None = setting(
        None, "folder that audio paths are relative to (default: the folder of the first input)"
    )
    shards: int = setting(0, "number of training shards (default: by the amount of audio or text)")
    validation_fraction: float = setting(0.01, "share of documents held out (default %(default)s)")
    max_audio_seconds: float = setting(3600.0, "longest utterance in seconds (default %(default)s)")
    max_bad_fraction: float = setting(
        0.01, "share of bad inputs above which the job fails at the end (default %(default)s)"
    )
    append: bool = setting(False, "add the new documents to a finished data set")
    workers: int = setting(
        1, "number of processes on this machine (default %(default)s; 0 = one per core)"
    )
    runner: str | None = setting(
        None, "run on a cluster: dask, or a runner of Beam such as FlinkRunner"
    )
    beam_options: tuple[str, ...] = ()  # further options for Beam; they need a runner

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
            raise unknown_option(
                self.beam_options[0], "soda tokenize (options of Beam need --runner)"
            )


def unknown_option(option: str, to: str, others: Iterable[str] = ()) -> UserError:
    """Returns the error for an option that `to` does not have.

    The message suggests the most similar option.

    Args:
      option: the option as given, with or without its value.
      to: name of the program in the message.
      others: known options besides those of `TokenizeOptions`.
    """
    name = option.split("=")[0]
    ours = [f"--{field.name}" for field in dataclasses.fields(TokenizeOptions)]
    similar = difflib.get_close_matches(name, [*ours, *others], 1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return UserError(f"option {name} is unknown to {to}{hint}")


def find_inputs(pattern: str) -> list[Path]:
    """Returns the files that `pattern` (a path or glob pattern) matches, sorted.

    Files that macOS adds to folders (`._NAME`, `.DS_Store`) are ignored.

    Raises:
      UserError: if no file matches.
    """
    paths = [Path(pattern)] if Path(pattern).exists() else map(Path, sorted(glob.glob(pattern)))
    files = [path for path in paths if path.is_file() and not is_mac_metadata(path.name)]
    if not files:
        raise UserError(f"--input={pattern} matches no file: give a file or a pattern of files")
    return files
