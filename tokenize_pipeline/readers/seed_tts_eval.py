"""Seed-TTS-eval: prompts, and texts to be spoken in their voice. https://github.com/BytedanceSpeech/seed-tts-eval

    seedtts_testset/en/meta.lst    NAME|text of the prompt|prompt-wavs/….wav|text to be spoken
    seedtts_testset/en/prompt-wavs/common_voice_en_10119832.wav
    seedtts_testset/en/wavs/NAME.wav

Paths are relative to the folder of the list. A line may name a recording of the text to be spoken in a
fifth field, as in `non_para_reconstruct_meta.lst`; for the other lists it is `wavs/NAME.wav`. The inputs are lists, or
`seedtts_testset.tar`, of which `en/meta.lst` is read (1,088 items). The data root is the folder that contains
`seedtts_testset`, or the archive.

A document is the prompt, then the text to be spoken with its recording. Without a recording, the document is
the prompt only, because a speech data set has no text without audio.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._folders import common_folder, relative_path
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import no_row, reject_split_rows
from tokenize_pipeline.readers._tar import Sounds, find_metadata, is_tar

KIND = "speech"
_LIST = "en/meta.lst"
_WAV_RATE = 24_000  # Hz; assumed, not published; used for planning only


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the folder that contains `seedtts_testset` or the archive; UserError for other files."""
    return common_folder(path.parent if is_tar(path) else _top(path) for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields one document per item, in the order of the lists."""
    root = data_root(inputs)
    for path in inputs:
        if is_tar(path):
            yield from _archive(path, relative_path(root, path))
        else:
            folder = path.absolute().parent

            def exists(sound: str) -> bool:
                return (root / sound).is_file()

            rows = lines(path)
            yield from _items(
                relative_path(root, folder), path.stem, rows, Sounds(None, {}), exists
            )


def _top(path: Path) -> Path:
    absolute = path.absolute()
    if path.suffix != ".lst" or len(absolute.parents) < 3:
        raise UserError(
            f"{path} is neither seedtts_testset/LANGUAGE/*.lst nor a tar of the test set"
        )
    return absolute.parents[2]


def _archive(path: Path, archive: str) -> Iterator[DocumentSource | Rejected]:
    name, content, sizes = find_metadata(path, _LIST, "the test set")
    sounds = Sounds(archive, sizes, _WAV_RATE)
    rows = content_lines(content, f"{path}: {name}")
    yield from _items(name.rpartition("/")[0], "meta", rows, sounds, sizes.__contains__)


def _items(
    folder: str,
    stem: str,
    rows: Iterable[tuple[int, str]],
    sounds: Sounds,
    exists: Callable[[str], bool],
) -> Iterator[DocumentSource | Rejected]:
    language = folder.rpartition("/")[2]
    for number, fields in reject_split_rows(_rows(rows)):
        where = f"{language}/{stem}.lst:{number}"
        if isinstance(fields, RowError):
            yield Rejected(fields.reason, str(fields), where)
            continue
        name, prompt_text, prompt, text = fields[:4]
        recording = fields[4] if len(fields) == 5 else f"wavs/{name}.wav"
        spoken = [(prompt_text, f"{folder}/{prompt}")]
        if len(fields) == 5 or exists(f"{folder}/{recording}"):
            spoken.append((text, f"{folder}/{recording}"))
        utterances = (
            sounds.utterance(sound, words, where, language=language) for words, sound in spoken
        )
        yield DocumentSource(f"seed_tts_eval/{language}/{stem}/{name}", tuple(utterances))


def _rows(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str] | RowError]]:
    """Yields (number, fields) of the lines that are not empty."""
    for number, line in rows:
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) in (4, 5) and fields[0] and fields[2]:
            yield number, fields
        else:
            message = f"{len(fields)} fields, not NAME|PROMPT TEXT|PROMPT|TEXT or one more"
            yield number, no_row(line, message, attempt=len(fields) > 1)
