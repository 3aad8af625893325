"""CVSS-T, speech translated into English in the voice of the source. https://github.com/google-research-datasets/cvss

    cvss_t_de_en_v1.0/train.tsv         common_voice_de_1.mp3, tab, normalized English text; no header
    cvss_t_de_en_v1.0/train/common_voice_de_1.mp3.wav
    cv-corpus-4-2019-12-10/de/validated.tsv    with a header; columns client_id, path, sentence, …
    cv-corpus-4-2019-12-10/de/clips/common_voice_de_1.mp3

The source speech is release 4 of Common Voice (https://commonvoice.mozilla.org/datasets), which is not part of
CVSS. The inputs are `.tsv` files of CVSS-T, or its archives (`cvss_t_de_en_v1.0.tar.gz`), of which the split
`train` is read. The folder of `cvss_t_…` must also contain `cv-corpus-4-2019-12-10` with the language, as a
folder or as `de.tar`: the published `de.tar.gz` after `gunzip`, because its clips are read in the order of
CVSS-T. The corpus is Jia et al., "CVSS corpus and massively multilingual speech-to-speech translation", arXiv 2201.03713.

A document is a pair: the source with its sentence from Common Voice (`language` "de", for example), then the
translation with its text (`language` "en"). The texts are raw; how SODA trains on such a pair (source speech,
both texts with language tags, target speech) is a question of the view. Ids are
`cvss_t/LANGUAGE/SPLIT/CLIP`. The data root is the folder that contains both corpora.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._folders import common_folder, relative_path
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import no_row, reject_split_rows, repeat_error
from tokenize_pipeline.readers._tables import tsv_table
from tokenize_pipeline.readers._tar import Sounds, find_metadata, is_tar

KIND = "speech"
COMMON_VOICE = "cv-corpus-4-2019-12-10"
_WAV_RATE = 24_000  # Hz, translations
_CORPUS = re.compile(r"cvss_t_([a-z]{2})_en_v1\.0(\.tar|\.tar\.gz|\.tgz)?")
_COMMON_VOICE_CODES = {"sv": "sv-SE", "zh": "zh-CN"}  # where they differ from CVSS
_CLIP = re.compile(r"common_voice_[\w-]+\.mp3", re.ASCII)


_Located = tuple[str, Sounds]  # (folder in the corpus or archive, sounds)


class _Target(NamedTuple):
    """A line of a `.tsv` of CVSS-T: clip, English text, position of the line."""

    clip: str
    text: str
    where: str


class _Source(NamedTuple):
    """The description of a clip in Common Voice, and its line number."""

    sentence: str
    speaker: str | None
    number: int


def data_root(inputs: Sequence[Path]) -> Path:
    """Returns the folder that contains `cvss_t_…` and Common Voice; UserError for other files."""
    return common_folder(_corpus(path).parent for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the pairs in the order of the files, or of the translations in the archives."""
    root = data_root(inputs)
    for path in inputs:
        corpus = _corpus(path)
        matched = _CORPUS.fullmatch(corpus.name)
        assert matched is not None
        if is_tar(path):
            split = "train"
            rows, folder, sounds = _archive(path, relative_path(root, path), matched[1])
        else:
            split, documents = path.stem, f"cvss_t/{matched[1]}/{path.stem}"
            rows = list(_rows(lines(path), f"{corpus.name}/{path.name}", documents))
            folder, sounds = f"{relative_path(root, corpus)}/{split}", Sounds(None, {})
        yield from (row for row in rows if isinstance(row, Rejected))
        pairs = [row for row in rows if isinstance(row, _Target)]
        yield from _documents(matched[1], split, pairs, (folder, sounds), root, corpus.parent)


def _corpus(path: Path) -> Path:
    """Returns the folder `cvss_t_…` of an input, or the archive that replaces it."""
    corpus = path.absolute() if is_tar(path) else path.absolute().parent
    if not _CORPUS.fullmatch(corpus.name) or not (is_tar(path) or path.suffix == ".tsv"):
        raise UserError(f"{path} is neither cvss_t_LANGUAGE_en_v1.0/SPLIT.tsv nor such an archive")
    return corpus


def _archive(
    path: Path, archive: str, language: str
) -> tuple[list[_Target | Rejected], str, Sounds]:
    """Returns the rows of an archive of CVSS-T in the order of their sounds, their folder, and the sounds."""
    name, content, sizes = find_metadata(path, "train.tsv", "CVSS-T")
    folder = name.removesuffix(".tsv")
    order = {name: number for number, name in enumerate(sizes)}

    def position(row: _Target | Rejected) -> int:
        clip = row.clip if isinstance(row, _Target) else ""
        return order.get(f"{folder}/{clip}.wav", len(order))

    table = content_lines(content, f"{path}: {name}")
    rows = _rows(table, f"{path.name}/train.tsv", f"cvss_t/{language}/train")
    return sorted(rows, key=position), folder, Sounds(archive, sizes, _WAV_RATE)


def _rows(
    rows: Iterable[tuple[int, str]], file: str, documents: str
) -> Iterator[_Target | Rejected]:
    for number, row in reject_split_rows(_targets(rows, file)):
        if isinstance(row, RowError):
            document = _name(documents, row.row.clip) if row.row else None
            yield Rejected(row.reason, str(row), f"{file}:{number}", document)
        else:
            yield row


def _targets(
    rows: Iterable[tuple[int, str]], file: str
) -> Iterator[tuple[int, _Target | RowError]]:
    """Yields (number, row) of the lines that are not empty; the text is the last field."""
    for number, line in rows:
        clip, tab, text = line.rstrip("\r\n").partition("\t")
        if tab and "\t" not in text and _CLIP.fullmatch(clip):
            yield number, _Target(clip, text, f"{file}:{number}")
        elif line.strip():
            message = f"{line[:80].strip()!r} is not the name of a clip, a tab and its text"
            yield number, no_row(line, message, attempt=clip.startswith("common_voice_"))


def _name(documents: str, clip: str) -> str:
    return f"{documents}/{clip.removesuffix('.mp3')}"


def _documents(
    language: str,
    split: str,
    pairs: list[_Target],
    translations: _Located,
    root: Path,
    parent: Path,
) -> Iterator[DocumentSource | Rejected]:
    sources, rejected, clips = _common_voice(language, root, parent, {pair.clip for pair in pairs})
    documents = f"cvss_t/{language}/{split}"
    yield from (replace(row, document=_name(documents, clip)) for clip, row in rejected)
    lost = {clip for clip, _ in rejected}
    for pair in pairs:
        document = _name(documents, pair.clip)
        source = sources.get(pair.clip)
        if source is None:
            if pair.clip not in lost:
                message = f"validated.tsv of Common Voice does not have {pair.clip}"
                yield Rejected("malformed_row", message, pair.where, document)
            continue
        folder, sounds = clips
        source_speech = sounds.utterance(
            f"{folder}/{pair.clip}",
            source.sentence,
            pair.where,
            speaker=source.speaker,
            language=language,
        )
        folder, sounds = translations
        translated = sounds.utterance(
            f"{folder}/{pair.clip}.wav", pair.text, pair.where, language="en"
        )
        yield DocumentSource(document, (source_speech, translated))


def _common_voice(
    language: str, root: Path, parent: Path, wanted: set[str]
) -> tuple[dict[str, _Source], list[tuple[str, Rejected]], _Located]:
    """Returns the wanted clips of Common Voice, its unusable rows by clip, and the location of the sounds."""
    folder = parent / COMMON_VOICE / _COMMON_VOICE_CODES.get(language, language)
    archive = folder.with_name(f"{folder.name}.tar")
    table = folder / "validated.tsv"
    if table.is_file():
        clips = f"{relative_path(root, folder)}/clips"
        found = _sentences(lines(table), wanted, str(table), folder.name)
        return *found, (clips, Sounds(None, {}))
    if archive.is_file():
        name, content, sizes = find_metadata(
            archive,
            "validated.tsv",
            "Common Voice",
            lambda name: name.rpartition("/")[2] in wanted,
        )
        clips = f"{name.removesuffix('validated.tsv')}clips"
        label = f"{archive}: {name}"
        found = _sentences(content_lines(content, label), wanted, label, folder.name)
        return *found, (clips, Sounds(relative_path(root, archive), sizes, _WAV_RATE))
    packed = archive.with_name(f"{archive.name}.gz")
    if packed.is_file():
        raise UserError(f"{packed}: its clips are read in another order; run gunzip {packed}")
    raise UserError(
        f"{table} and {archive} are missing: CVSS-T needs the speech of Common Voice release 4"
    )


def _sentences(
    rows: Iterator[tuple[int, str]], wanted: set[str], name: str, language: str
) -> tuple[dict[str, _Source], list[tuple[str, Rejected]]]:
    """Returns sentence and speaker of the wanted clips, and their unusable rows.

    A tab or line end in a sentence gives malformed rows. The first one names the clip, whose pair is
    rejected; the others name no clip and are not counted.
    """
    table = tsv_table(rows, name, ("client_id", "path", "sentence"))
    speaker, path, sentence = map(table.header.index, ("client_id", "path", "sentence"))
    file = f"{COMMON_VOICE}/{language}/validated.tsv"
    found: dict[str, _Source] = {}
    rejected: list[tuple[str, Rejected]] = []
    for number, row in table.rows:
        error: RowError | None = None
        if isinstance(row, RowError):
            clip, error = row.row[path] if len(row.row) > path else "", row
        elif (clip := row[path]) in wanted:
            first = found.setdefault(clip, _Source(row[sentence], row[speaker] or None, number))
            # A repeated clip adds nothing: the row of CVSS-T describes the pair.
            if first.number != number and first.sentence != row[sentence]:
                error = repeat_error(clip, f"{file}:{first.number}", same=False)
        if error is not None and clip in wanted:
            rejected.append((clip, Rejected(error.reason, str(error), f"{file}:{number}")))
    return found, rejected
