"""Reads CVSS-T, speech translated into English in the voice of the source speaker.

https://github.com/google-research-datasets/cvss

    cvss_t_de_en_v1.0/train.tsv         common_voice_de_1.mp3, tab, normalized English text; no header
    cvss_t_de_en_v1.0/train/common_voice_de_1.mp3.wav
    cv-corpus-4-2019-12-10/de/validated.tsv    with a header; columns client_id, path, sentence, …
    cv-corpus-4-2019-12-10/de/clips/common_voice_de_1.mp3

The source speech is release 4 of Common Voice (https://commonvoice.mozilla.org/datasets), which is
not part of CVSS. The inputs are `.tsv` files of CVSS-T, or its archives
(`cvss_t_de_en_v1.0.tar.gz`), of which the split `train` is read. The folder that contains the
archive or `cvss_t_de_en_v1.0` must also contain `cv-corpus-4-2019-12-10` with the folder `de` or
with `de.tar`. The published `de.tar.gz` must be decompressed with `gunzip`, because its clips are
not read in archive order. Reference: Jia et al., "CVSS corpus and massively multilingual
speech-to-speech translation", arXiv 2201.03713.

A document is a pair: the source speech with its sentence from Common Voice (`language` "de", for
example), then the translation with its text (`language` "en"). The texts are unchanged. SODA
trains on source speech, both texts with language tags, target speech; no view renders this order
yet. Ids are `cvss_t/LANGUAGE/SPLIT/CLIP`. The data root is the folder that
contains both corpora.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._corpus import Layout, Sounds, TextFile, read_tar, relative_path
from tokenize_pipeline.readers._lines import lines
from tokenize_pipeline.readers._rows import RowError, no_row, parse_rows, repeat_error, tsv_rows

KIND = "speech"
COMMON_VOICE = "cv-corpus-4-2019-12-10"
_NAME = r"cvss_t_[a-z]{2}_en_v1\.0"
_LAYOUT = Layout(
    "CVSS-T",
    "cvss_t_LANGUAGE_en_v1.0/SPLIT.tsv",
    rf"{_NAME}/[^/]+\.tsv",
    ("/train.tsv",),
    tar_pattern=rf"{_NAME}\.(tar|tar\.gz|tgz)",
    wav_rate=24_000,  # sample rate of the translations
)
_COMMON_VOICE_CODES = {"sv": "sv-SE", "zh": "zh-CN"}  # codes that differ from those of CVSS
_CLIP = re.compile(r"common_voice_[\w-]+\.mp3", re.ASCII)

data_root = _LAYOUT.data_root


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the pairs, in the order of the `.tsv` files or of the translations in the archives."""
    for path, (file, *_), translations in _LAYOUT.open(inputs):
        corpus = path if translations.archive else path.absolute().parent
        language = corpus.name.split("_")[2]
        folder = file.name.removesuffix(".tsv")
        split = folder.rpartition("/")[2]
        documents = f"cvss_t/{language}/{split}"
        pairs: list[tuple[str, str, str]] = []  # (clip, English text, position)
        for number, row in parse_rows(file.lines, _pair, text_is_last=True):
            where = f"{corpus.name}/{split}.tsv:{number}"
            if isinstance(row, RowError):
                yield row.rejected(where, _name(documents, row.row[0]) if row.row else None)
            else:
                pairs.append((*row, where))
        order = {name: number for number, name in enumerate(translations.sizes)}
        pairs.sort(key=lambda pair: order.get(f"{folder}/{pair[0]}.wav", len(order)))
        code = _COMMON_VOICE_CODES.get(language, language)
        wanted = {clip for clip, *_ in pairs}
        table, voice = _common_voice(corpus.parent / COMMON_VOICE / code, translations.root, wanted)
        sources, rejected = _sentences(table, wanted, f"{COMMON_VOICE}/{code}/validated.tsv")
        yield from (replace(item, document=_name(documents, clip)) for clip, item in rejected)
        lost = {clip for clip, _ in rejected}
        clips = f"{table.name.removesuffix('validated.tsv')}clips"
        for clip, text, where in pairs:
            document = _name(documents, clip)
            if clip in sources:
                sentence, speaker = sources[clip]
                source = voice.utterance(
                    f"{clips}/{clip}", sentence, where, speaker=speaker, language=language
                )
                translated = translations.utterance(
                    f"{folder}/{clip}.wav", text, where, language="en"
                )
                yield DocumentSource(document, (source, translated))
            elif clip not in lost:
                message = f"validated.tsv of Common Voice does not have {clip}"
                yield Rejected("malformed_row", message, where, document)


def _pair(line: str) -> tuple[str, str]:
    """Returns (clip, English text) of a CVSS-T line; raises RowError if it is malformed."""
    clip, tab, text = line.rstrip("\r\n").partition("\t")
    if tab and "\t" not in text and _CLIP.fullmatch(clip):
        return clip, text
    message = f"{line[:80].strip()!r} is not the name of a clip, a tab and its text"
    raise no_row(line, message, attempt=clip.startswith("common_voice_"))


def _name(documents: str, clip: str) -> str:
    return f"{documents}/{clip.removesuffix('.mp3')}"


def _common_voice(folder: Path, root: Path, wanted: set[str]) -> tuple[TextFile, Sounds]:
    """Returns the table and the `wanted` sounds of Common Voice, from `folder` or its tar."""
    table = folder / "validated.tsv"
    archive = folder.with_name(f"{folder.name}.tar")
    if table.is_file():
        return TextFile(relative_path(root, table), str(table), lines(table)), Sounds(root)
    if archive.is_file():
        (file, *_), sizes = read_tar(
            archive,
            ("/validated.tsv",),
            "Common Voice",
            lambda name: name.rpartition("/")[2] in wanted,
        )
        return file, Sounds(root, relative_path(root, archive), sizes)
    packed = archive.with_name(f"{archive.name}.gz")
    if packed.is_file():
        raise UserError(f"{packed}: its clips are read in another order; run gunzip {packed}")
    raise UserError(
        f"{table} and {archive} are missing: CVSS-T needs the speech of Common Voice release 4"
    )


def _sentences(
    table: TextFile, wanted: set[str], where: str
) -> tuple[dict[str, tuple[str, str | None]], list[tuple[str, Rejected]]]:
    """Returns (sentence, speaker) of the wanted clips, and their unusable rows.

    If a sentence contains a tab or line end, one or more rows are malformed. The first one contains
    the name of the clip, whose pair is rejected; the others contain no name and are not counted.
    """
    found: dict[str, tuple[str, str | None]] = {}
    numbers: dict[str, int] = {}
    rejected: list[tuple[str, Rejected]] = []
    for number, row in tsv_rows(table.lines, table.label, ("client_id", "path", "sentence")):
        error = row if isinstance(row, RowError) else None
        fields: dict[str, str] = row.row if isinstance(row, RowError) else row
        clip = fields.get("path", "")
        if clip not in wanted:
            continue
        if error is None:
            first = numbers.setdefault(clip, number)
            sentence, _ = found.setdefault(clip, (fields["sentence"], fields["client_id"] or None))
            # An exact repeat of a clip is not reported; a repeated row of CVSS-T is.
            if sentence != fields["sentence"]:
                error = repeat_error(clip, f"{where}:{first}", same=False)
        if error is not None:
            rejected.append((clip, error.rejected(f"{where}:{number}")))
    return found, rejected
