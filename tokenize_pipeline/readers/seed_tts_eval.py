"""Reads Seed-TTS-eval: voice prompts, and texts to be spoken in the voice of each prompt.

https://github.com/BytedanceSpeech/seed-tts-eval

    seedtts_testset/en/meta.lst    NAME|text of the prompt|prompt-wavs/….wav|text to be spoken
    seedtts_testset/en/prompt-wavs/common_voice_en_10119832.wav
    seedtts_testset/en/wavs/NAME.wav

Paths are relative to the folder of the list. A line may have a fifth field, the path of a recording
of the text to be spoken, as in `non_para_reconstruct_meta.lst`; without it, the recording is
`wavs/NAME.wav`. The inputs are lists, or `seedtts_testset.tar`, of which `en/meta.lst` is read
(1,088 items). The data root is the folder that contains `seedtts_testset` or the archive.

A document consists of the prompt, then the text to be spoken with its recording. Without a
recording, the document has only the prompt, because a speech data set has no text without audio.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._corpus import Layout
from tokenize_pipeline.readers._rows import RowError, no_row, parse_rows

KIND = "speech"
_LAYOUT = Layout(
    "Seed-TTS-eval",
    "seedtts_testset/LANGUAGE/*.lst",
    r"[^/]+/[^/]+/[^/]+\.lst",
    ("/en/meta.lst",),
    wav_rate=24_000,  # assumed; the rate is not documented
)

data_root = _LAYOUT.data_root


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields one document per item, in the order of the lists."""
    for _, (file, *_), sounds in _LAYOUT.open(inputs):
        folder, _, name = file.name.rpartition("/")
        language, stem = folder.rpartition("/")[2], name.removesuffix(".lst")
        for number, row in parse_rows(file.lines, _row, text_is_last=True):
            where = f"{language}/{name}:{number}"
            if isinstance(row, RowError):
                yield row.rejected(where)
                continue
            item, prompt_text, prompt, text, *named = row
            recording = named[0] if named else f"wavs/{item}.wav"
            spoken = [(prompt_text, f"{folder}/{prompt}")]
            if named or sounds.exists(f"{folder}/{recording}"):
                spoken.append((text, f"{folder}/{recording}"))
            utterances = (
                sounds.utterance(sound, words, where, language=language) for words, sound in spoken
            )
            yield DocumentSource(f"seed_tts_eval/{language}/{stem}/{item}", tuple(utterances))


def _row(line: str) -> list[str]:
    fields = [field.strip() for field in line.split("|")]
    if len(fields) in (4, 5) and fields[0] and fields[2]:
        return fields
    message = f"{len(fields)} fields, not NAME|PROMPT TEXT|PROMPT|TEXT[|RECORDING]"
    raise no_row(line, message, attempt=len(fields) > 1)
