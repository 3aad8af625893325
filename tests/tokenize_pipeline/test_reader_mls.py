"""The reader of Multilingual LibriSpeech: documents by recording and time, and rejected rows."""

import pytest
from corpora import mls as corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_toys import hum, write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, mls

RATE = 8_000
CLIP = hum(0.5, rate=RATE)


def row(utterance: str, recording: str, start: float):
    return (utterance, recording, start, f"text of {utterance}", CLIP)


ROWS = [
    row("4800_10003_000000", "chapter-5", 20.0),
    row("4800_10003_000001", "chapter-3", 1.0),
    row("4800_10003_000002", "chapter-5", 19.3),  # ends 0.2 s before the first one begins
    row("4800_10003_000003", "chapter-5", 20.71),  # begins 0.21 s after it
    row("7_12_000000", "chapter-9", 0.0),
    row("7_12_000001", "chapter-9", 0.5),
]


def read(*paths):
    return list(mls.read(paths))


def ids(documents) -> list[str]:
    return [document.id.removeprefix("mls_german/train/") for document in documents]


def test_a_document_has_no_gap_of_more_than_a_fifth_of_a_second(
    tmp_path,
):
    folder = corpus.write_corpus(tmp_path, {"train": ROWS}, rate=RATE)
    path = folder / "mls_german/train/transcripts.txt"
    assert mls.data_root([path]) == tmp_path
    documents = read(path)
    assert ids(documents) == [
        "4800_10003_000002",
        "4800_10003_000003",
        "4800_10003_000001",
        "7_12_000000",
    ]
    first = documents[0]
    assert [u.text.split("_")[-1] for u in first.utterances] == ["000002", "000000"]
    utterance = first.utterances[1]
    assert utterance.audio == "mls_german/train/audio/4800/10003/4800_10003_000000.flac"
    assert (tmp_path / utterance.audio).is_file()
    assert (utterance.speaker, utterance.language) == ("4800", "de")
    assert utterance.seconds == pytest.approx(0.5)
    assert (utterance.start, utterance.end) == (None, None)  # the file contains this utterance only
    assert utterance.where == "mls_german/train/transcripts.txt:1"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.randoms())
def test_documents_are_split_at_each_longer_gap(tmp_path_factory, gaps, random):
    starts = [sum(gaps[: n + 1]) / 100 + 0.5 * n for n in range(len(gaps))]
    rows = [row(f"1_2_{n:06d}", "a", start) for n, start in enumerate(starts)]
    random.shuffle(rows)
    folder = corpus.write_corpus(tmp_path_factory.mktemp("mls"), {"train": rows}, rate=RATE)
    documents = read(folder / "mls_german/train/transcripts.txt")
    assert len(documents) == 1 + sum(gap > 20 for gap in gaps[1:])
    texts = [u.text for document in documents for u in document.utterances]
    assert texts == [f"text of 1_2_{n:06d}" for n in range(len(gaps))]


@pytest.mark.parametrize("name", ["mls_german", "mls_german_opus"])
def test_the_training_split_of_an_archive_is_read_in_the_order_of_its_books(tmp_path, name):
    splits = {"dev": [row("9_9_000000", "x", 0.0)], "train": ROWS}
    archive = f"{name}.tar.gz"
    path = corpus.write_corpus(tmp_path, splits, archive=archive, corpus=name, rate=RATE)
    folder = corpus.write_corpus(tmp_path, splits, corpus=name, rate=RATE)
    unpacked = read(folder / name / "train/transcripts.txt")
    packed = read(path)
    # The archive begins with the last book.
    assert [d.id for d in packed] == [unpacked[n].id for n in (3, 0, 1, 2)]
    by_id = {document.id: document for document in unpacked}
    for document in packed:
        for one, two in zip(by_id[document.id].utterances, document.utterances, strict=True):
            assert (two.audio, two.member) == (archive, one.audio)
            assert (tmp_path / one.audio).is_file()
            assert (one.text, one.seconds, one.where) == (two.text, two.seconds, two.where)


def test_unusable_rows_are_rejected_and_the_others_are_kept(tmp_path):
    folder = corpus.write_corpus(tmp_path, {"train": ROWS}, rate=RATE) / "mls_german/train"
    transcripts, segments = folder / "transcripts.txt", folder / "segments.txt"
    lines = transcripts.read_text().splitlines()
    lines[0] = "not an utterance"
    lines.insert(2, "4800_10003_000099\tof no segment")
    transcripts.write_text("\n".join(lines) + "\n\n")
    lines = segments.read_text().splitlines()
    lines[1] = "4800_10003_000001\thttp://a\tsoon\t2"
    lines[3] = "4800_10003_000003\thttp://a\t5\t5"
    lines.append("7_12_000077\thttp://a\t0\t1")
    segments.write_text("\n".join(lines))
    items = read(transcripts)
    bad = [item for item in items if isinstance(item, Rejected)]
    documents = [item for item in items if isinstance(item, DocumentSource)]
    assert {row.reason for row in bad} == {"malformed_row"}
    messages = " ".join(row.message for row in bad)
    # A row that is missing in one file is reported once, with the row of the other file.
    for part in ("'not an utterance'", "000099", "000001", "000003", "7_12_000077"):
        assert messages.count(part) == 1, part
    assert "4800_10003_000000" in messages  # its transcript is the damaged row
    assert len(bad) == 6
    assert ids(documents) == ["4800_10003_000002", "7_12_000000"]


def test_the_error_of_missing_or_unsorted_metadata_has_the_fix(tmp_path):
    folder = corpus.write_corpus(tmp_path, {"train": ROWS}, rate=RATE) / "mls_german/train"
    transcripts, segments = folder / "transcripts.txt", folder / "segments.txt"
    lines = segments.read_text().splitlines(keepends=True)
    segments.write_text("".join(reversed(lines)))
    with pytest.raises(UserError, match=r"same books in the same order, at 4800_10003: sort both"):
        read(transcripts)
    mixed = "".join([lines[4], *lines[:4], lines[5]])
    segments.write_text(mixed)
    transcripts.write_text(mixed)
    with pytest.raises(UserError, match=r"at 7_12: sort both"):
        read(transcripts)
    segments.unlink()
    with pytest.raises(UserError, match=r"segments\.txt is missing"):
        read(transcripts)
    with pytest.raises(UserError, match="is neither"):
        read(folder / "handles.txt")
    path = write_tar(tmp_path / "a.tar", {"mls_german/train/transcripts.txt": b"1_2_3\tt\n"})
    with pytest.raises(UserError, match=r"a\.tar has no train/segments\.txt"):
        read(path)
