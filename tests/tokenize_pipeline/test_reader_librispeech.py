"""The reader of LibriSpeech, unpacked and in archives as published."""

import numpy as np
import pytest
from corpora import librispeech as corpus
from pipeline_toys import hum, write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, librispeech

CLIP = hum(0.2, rate=16_000)
CHAPTERS = {
    "dev-clean/2277/149896": [(f"HE WAS IN A FEVERED STATE {n}", CLIP) for n in range(3)],
    "test-clean/84/121123": [("GO DO YOU HEAR", CLIP), ("BUT IN LESS THAN FIVE MINUTES", CLIP)],
}


def transcripts(folder):
    return sorted(folder.rglob("*.trans.txt"))


def test_a_document_is_a_chapter_and_its_id_contains_the_subset(tmp_path):
    files = transcripts(corpus.write_corpus(tmp_path, CHAPTERS))
    assert librispeech.data_root(files) == tmp_path
    dev, test = librispeech.read(files)
    assert dev.id == "librispeech/dev-clean/2277-149896"
    assert test.id == "librispeech/test-clean/84-121123"
    assert [u.text for u in test.utterances] == ["go do you hear", "but in less than five minutes"]
    first = test.utterances[0]
    assert first.audio == "LibriSpeech/test-clean/84/121123/84-121123-0000.flac"
    assert (tmp_path / first.audio).is_file() and first.member is None
    assert (first.speaker, first.language) == ("84", "en")
    assert first.where == "test-clean/84-121123.trans.txt:1"


@pytest.mark.parametrize("archive", ["dev-clean.tar.gz", "dev-clean.tar"])
def test_an_archive_has_the_same_documents_in_archive_order(tmp_path, archive):
    files = transcripts(corpus.write_corpus(tmp_path, CHAPTERS))
    path = corpus.write_corpus(tmp_path, dict(reversed(CHAPTERS.items())), archive=archive)
    assert librispeech.data_root([path]) == tmp_path
    wanted, found = list(librispeech.read(files)), list(librispeech.read([path]))
    assert [d.id for d in found] == [d.id for d in reversed(wanted)]
    for one, two in zip(reversed(wanted), found, strict=True):
        assert [u.text for u in one.utterances] == [u.text for u in two.utterances]
        assert [u.audio for u in one.utterances] == [u.member for u in two.utterances]
        assert {u.audio for u in two.utterances} == {archive}


def test_lengths_are_estimated_from_sizes_of_sounds_before_and_after_the_transcripts(
    tmp_path,
):
    rng = np.random.default_rng(0)
    seconds = [1.0, 2.0, 3.0, 4.0]
    # FLAC of noise of 8 bits has as many bytes as that of speech: half of 16 bits, and a header.
    noise = [
        (rng.integers(-128, 128, round(s * 16_000)) / 32768).astype("float32") for s in seconds
    ]
    chapters = {f"dev-clean/{n}/1": [("WORDS", clip) for clip in noise] for n in (3, 5)}
    path = corpus.write_corpus(tmp_path, chapters, archive="dev-clean.tar")
    documents = list(librispeech.read([path]))
    assert len(documents) == 2
    for document in documents:  # the corpus has every other sound before the transcripts
        found = [utterance.seconds for utterance in document.utterances]
        assert found == pytest.approx(seconds, rel=0.6) and found == sorted(found)
        assert found[3] - found[0] == pytest.approx(3.0, rel=0.1)


def test_archives_and_folders_are_read_together(tmp_path):
    tree = transcripts(corpus.write_corpus(tmp_path / "tree", CHAPTERS))
    path = corpus.write_corpus(tmp_path / "packed/here", CHAPTERS, archive="a.tar.gz")
    assert librispeech.data_root([*tree, path]) == tmp_path
    *unpacked, one, two = librispeech.read([*tree, path])
    for document in (*unpacked, one, two):
        assert all((tmp_path / u.audio).is_file() for u in document.utterances)
    assert one.utterances[0].audio == "packed/here/a.tar.gz"


def test_rows_without_an_utterance_of_the_chapter_are_rejected(tmp_path):
    (file,) = transcripts(corpus.write_corpus(tmp_path, {"dev-clean/84/1": CHAPTERS_OF_ONE}))
    rows = ["no id here", "84-2-0000 OF ANOTHER", "84-1-0000 KEPT", "", "84-1-0001", "84-1-x BAD"]
    file.write_bytes("\n".join(rows).encode() + b"\n84-1-0002 CAF\xc9\n")
    *bad, document = librispeech.read([file])
    assert [type(item) for item in bad] == [Rejected] * 3
    assert [row.where.rpartition(":")[2] for row in bad] == ["1", "2", "6"]
    assert {row.reason for row in bad} == {"malformed_row"}
    assert {row.document for row in bad} == {document.id}
    # An empty or invalid transcript is rejected later, as for all readers.
    assert [u.text for u in document.utterances] == ["kept", "", "caf\udcc9"]


CHAPTERS_OF_ONE = [("WORDS", CLIP)]


def test_a_chapter_without_a_usable_row_has_no_document(tmp_path):
    (file,) = transcripts(corpus.write_corpus(tmp_path, {"dev-clean/84/1": CHAPTERS_OF_ONE}))
    file.write_text("nothing\n")
    (bad,) = librispeech.read([file])
    assert isinstance(bad, Rejected)


def test_the_error_of_other_files_and_archives_has_their_name(tmp_path):
    with pytest.raises(UserError, match=r"words\.txt is neither .*trans\.txt nor an archive"):
        list(librispeech.read([tmp_path / "words.txt"]))
    with pytest.raises(
        UserError, match=r"is neither LibriSpeech/SUBSET/.* nor an archive .*: keep the"
    ):
        list(librispeech.read([tmp_path / "84-1.trans.txt"]))
    path = write_tar(tmp_path / "a.tar.gz", {"words.txt": b"words"})
    with pytest.raises(UserError, match=r"a\.tar\.gz has no \*\.trans\.txt"):
        list(librispeech.read([path]))
    write_tar(path, {"84-1.trans.txt": b"84-1-0000 WORDS"})
    with pytest.raises(UserError, match="is not an archive of LibriSpeech"):
        list(librispeech.read([path]))


def test_a_truncated_archive_is_an_error(tmp_path):
    path = corpus.write_corpus(tmp_path, CHAPTERS, archive="dev-clean.tar.gz")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"dev-clean\.tar\.gz: .*; download it again"):
        list(librispeech.read([path]))


def test_reading_twice_gives_equal_documents(tmp_path):
    path = corpus.write_corpus(tmp_path, CHAPTERS, archive="a.tar.gz")
    first = list(librispeech.read([path]))
    assert first == list(librispeech.read([path]))
    assert all(isinstance(item, DocumentSource) for item in first)
