"""CVSS-T, speech translated into English in the voice of the source. https://github.com/google-research-datasets/cvss

    cvss_t_de_en_v1.0/train.tsv         common_voice_de_1.mp3, tab, normalised English text; no header
    cvss_t_de_en_v1.0/train/common_voice_de_1.mp3.wav
    cv-corpus-4-2019-12-10/de/validated.tsv    with a header; columns client_id, path, sentence, …
    cv-corpus-4-2019-12-10/de/clips/common_voice_de_1.mp3

The source speech is release 4 of Common Voice (https://commonvoice.mozilla.org/datasets), which CVSS does not
hold. The inputs are `.tsv` files of CVSS-T, or its archives (`cvss_t_de_en_v1.0.tar.gz`), of which the split
`train` is read. Beside `cvss_t_…` must lie `cv-corpus-4-2019-12-10` with the language in it, as a folder or as
`de.tar`: the published `de.tar.gz` after `gunzip`, because its clips are needed in the order of CVSS-T. The
corpus is Jia et al., "CVSS corpus and massively multilingual speech-to-speech translation", arXiv 2201.03713.

A document is a pair: first the source with its sentence as Common Voice has it, `language` "de" and the like,
then the translation with its text, `language` "en". The texts are raw; the form in which SODA trains on
such a pair (source speech, both texts with tags of their languages, target speech) is a matter of the view.
Ids are `cvss_t/LANGUAGE/SPLIT/CLIP`. The data root is the folder that holds all of it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, UtteranceSource
from tokenize_pipeline.readers._folders import common_folder, place_in
from tokenize_pipeline.readers._lines import RowError, content_lines, lines
from tokenize_pipeline.readers._rows import no_row, repeat_error, uncut
from tokenize_pipeline.readers._tables import tsv_table
from tokenize_pipeline.readers._tar import is_tar, members, seconds_of

KIND = "speech"
COMMON_VOICE = "cv-corpus-4-2019-12-10"
_WAV_RATE = 24_000  # Hz, of the translations
_CORPUS = re.compile(r"cvss_t_([a-z]{2})_en_v1\.0(\.tar|\.tar\.gz|\.tgz)?")
_LONGER_CODES = {"sv": "sv-SE", "zh": "zh-CN"}  # of languages in Common Voice
_CLIP = re.compile(r"common_voice_[\w-]+\.mp3", re.ASCII)


class _Target(NamedTuple):
    """A line of a `.tsv` of CVSS-T: the clip, the English text, where the line stands."""

    clip: str
    text: str
    where: str


class _Source(NamedTuple):
    """What Common Voice says of a clip, and the number of the line where it says so."""

    sentence: str
    speaker: str | None
    number: int


class _Sounds(NamedTuple):
    """Where sounds lie: their folder, or the archive, their folder in it and their sizes in bytes."""

    folder: str
    archive: str | None
    sizes: Mapping[str, int]

    def utterance(
        self, file: str, text: str, language: str, where: str, speaker: str | None = None
    ) -> UtteranceSource:
        path = f"{self.folder}/{file}"
        return UtteranceSource(
            text,
            self.archive or path,
            speaker=speaker,
            language=language,
            member=path if self.archive else None,
            seconds=seconds_of(path, self.sizes[path], _WAV_RATE) if path in self.sizes else None,
            where=where,
        )


def data_root(inputs: Sequence[Path]) -> Path:
    """The folder that holds `cvss_t_…` and Common Voice; UserError for other files."""
    return common_folder(_corpus(path).parent for path in inputs)


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields the pairs in the order of the files, or as the translations stand in the archives."""
    root = data_root(inputs)
    for path in inputs:
        corpus = _corpus(path)
        matched = _CORPUS.fullmatch(corpus.name)
        assert matched is not None
        if is_tar(path):
            split, rows, sounds = _archive(path, place_in(root, path), matched[1])
        else:
            split, documents = path.stem, f"cvss_t/{matched[1]}/{path.stem}"
            rows = list(_rows(lines(path), f"{corpus.name}/{path.name}", documents))
            sounds = _Sounds(f"{place_in(root, corpus)}/{split}", None, {})
        yield from (row for row in rows if isinstance(row, Rejected))
        pairs = [row for row in rows if isinstance(row, _Target)]
        yield from _documents(matched[1], split, pairs, sounds, root, corpus.parent)


def _corpus(path: Path) -> Path:
    """The folder `cvss_t_…` of an input, or the archive in its place."""
    corpus = path.absolute() if is_tar(path) else path.absolute().parent
    if not _CORPUS.fullmatch(corpus.name) or not (is_tar(path) or path.suffix == ".tsv"):
        raise UserError(f"{path} is neither cvss_t_LANGUAGE_en_v1.0/SPLIT.tsv nor such an archive")
    return corpus


def _archive(
    path: Path, archive: str, language: str
) -> tuple[str, list[_Target | Rejected], _Sounds]:
    """Split, rows in the order of their sounds, and sounds of an archive of CVSS-T."""
    found: tuple[str, bytes] | None = None
    sizes: dict[str, int] = {}
    for name, size, content in members(path, lambda name: f"/{name}".endswith("/train.tsv")):
        if content is not None:
            found = found or (name, content)
        else:
            sizes.setdefault(name, size)
    if found is None:
        raise UserError(f"{path} holds no train.tsv: it is no archive of CVSS-T")
    sounds = _Sounds(found[0].removesuffix(".tsv"), archive, sizes)
    order = {name: number for number, name in enumerate(sizes)}

    def place(row: _Target | Rejected) -> int:
        clip = row.clip if isinstance(row, _Target) else ""
        return order.get(f"{sounds.folder}/{clip}.wav", len(order))

    table = content_lines(found[1], f"{path}: {found[0]}")
    rows = _rows(table, f"{path.name}/train.tsv", f"cvss_t/{language}/train")
    return "train", sorted(rows, key=place), sounds


def _rows(
    rows: Iterable[tuple[int, str]], place: str, documents: str
) -> Iterator[_Target | Rejected]:
    for number, row in uncut(_targets(rows, place)):
        if isinstance(row, RowError):
            document = _name(documents, row.row.clip) if row.row else None
            yield Rejected(row.reason, str(row), f"{place}:{number}", document)
        else:
            yield row


def _targets(
    rows: Iterable[tuple[int, str]], place: str
) -> Iterator[tuple[int, _Target | RowError]]:
    """Yields (number, row) of the lines that are not empty; the text is the last field."""
    for number, line in rows:
        clip, tab, text = line.rstrip("\r\n").partition("\t")
        if tab and "\t" not in text and _CLIP.fullmatch(clip):
            yield number, _Target(clip, text, f"{place}:{number}")
        elif line.strip():
            message = f"{line[:80].strip()!r} is not the name of a clip, a tab and its text"
            yield number, no_row(line, message, attempt=clip.startswith("common_voice_"))


def _name(documents: str, clip: str) -> str:
    return f"{documents}/{clip.removesuffix('.mp3')}"


def _documents(
    language: str, split: str, pairs: list[_Target], sounds: _Sounds, root: Path, beside: Path
) -> Iterator[DocumentSource | Rejected]:
    sources, rejected, clips = _common_voice(language, root, beside, {pair.clip for pair in pairs})
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
        said = clips.utterance(
            pair.clip, source.sentence, language, pair.where, speaker=source.speaker
        )
        translated = sounds.utterance(f"{pair.clip}.wav", pair.text, "en", pair.where)
        yield DocumentSource(document, (said, translated))


def _common_voice(
    language: str, root: Path, beside: Path, wanted: set[str]
) -> tuple[dict[str, _Source], list[tuple[str, Rejected]], _Sounds]:
    """What Common Voice says of the wanted clips, its wrong rows by clip, and where the clips are."""
    folder = beside / COMMON_VOICE / _LONGER_CODES.get(language, language)
    archive = folder.with_name(f"{folder.name}.tar")
    table = folder / "validated.tsv"
    if table.is_file():
        sounds = _Sounds(f"{place_in(root, folder)}/clips", None, {})
        return *_sentences(lines(table), wanted, str(table), folder.name), sounds
    if archive.is_file():
        found: tuple[str, bytes] | None = None
        sizes: dict[str, int] = {}
        for name, size, content in members(
            archive, lambda name: f"/{name}".endswith("/validated.tsv")
        ):
            if content is not None:
                found = found or (name, content)
            elif name.rpartition("/")[2] in wanted:
                sizes[name] = size
        if found is not None:
            name, content = found
            clips = f"{name.removesuffix('validated.tsv')}clips"
            place = f"{archive}: {name}"
            sounds = _Sounds(clips, place_in(root, archive), sizes)
            rows = content_lines(content, place)
            return *_sentences(rows, wanted, place, folder.name), sounds
        raise UserError(f"{archive} holds no validated.tsv: it is no archive of Common Voice")
    packed = archive.with_name(f"{archive.name}.gz")
    if packed.is_file():
        raise UserError(f"{packed}: its clips are not needed in its order; run gunzip {packed}")
    raise UserError(
        f"{table} is missing, and {archive} too: CVSS-T needs the speech of Common Voice release 4"
    )


def _sentences(
    rows: Iterator[tuple[int, str]], wanted: set[str], name: str, language: str
) -> tuple[dict[str, _Source], list[tuple[str, Rejected]]]:
    """Sentence and speaker of the wanted clips, and the rows of wanted clips that cannot be used.

    A tab or line end in a sentence makes malformed rows. The first one names the clip, whose pair is then
    lost; the rest of the sentence names none and is not counted again.
    """
    table = tsv_table(rows, name, ("client_id", "path", "sentence"))
    speaker, path, sentence = map(table.header.index, ("client_id", "path", "sentence"))
    place = f"{COMMON_VOICE}/{language}/validated.tsv"
    found: dict[str, _Source] = {}
    rejected: list[tuple[str, Rejected]] = []
    for number, row in table.rows:
        error: RowError | None = None
        if isinstance(row, RowError):
            clip, error = row.row[path] if len(row.row) > path else "", row
        elif (clip := row[path]) in wanted:
            first = found.setdefault(clip, _Source(row[sentence], row[speaker] or None, number))
            # A clip that is there twice adds nothing: the row of CVSS-T describes the pair.
            if first.number != number and first.sentence != row[sentence]:
                error = repeat_error(clip, f"{place}:{first.number}", same=False)
        if error is not None and clip in wanted:
            rejected.append((clip, Rejected(error.reason, str(error), f"{place}:{number}")))
    return found, rejected
