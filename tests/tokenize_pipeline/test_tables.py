"""Manifests in CSV and TSV: rows, headers, quotes, repeats, and files that macOS adds."""

import csv
import json
from pathlib import Path

import pytest

from soda_jax.errors import UserError
from tokenize_pipeline.options import find_inputs
from tokenize_pipeline.readers import DocumentSource, Rejected, manifest
from tokenize_pipeline.readers._corpus import is_mac_metadata


def read(path: Path, content: str | bytes):
    """Returns (texts, rejected rows) of a manifest."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items = list(manifest.read([path]))
    documents = [item for item in items if isinstance(item, DocumentSource)]
    texts = [utterance.text for document in documents for utterance in document.utterances]
    return texts, [item for item in items if isinstance(item, Rejected)]


@pytest.mark.parametrize(("suffix", "tab"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize(
    ("rows", "texts", "bad"),
    [
        (["audio,text", "a,one", "b,two"], ["one", "two"], []),
        (["audio,text", "", "a,one", "", "", "b,two", ""], ["one", "two"], []),
        (["\ufeffaudio,text", "a,one"], ["one"], []),
        (["text,audio", "one,a"], ["one"], []),
        (["audio,text,note,,", "a,one,n,,"], ["one"], []),
        (["audio,text"], [], []),
        # More or fewer fields than the header, including trailing separators.
        (["audio,text,note", "a,one,n", "b,two", "c,three,n,", "d,four,"], ["one", "four"], [3, 4]),
        (["audio,text,note", "a,,n", "b,two,"], ["", "two"], []),
        # The text is the last column: a line that is not a row may be the rest of it.
        (["audio,text", "a,one", "b,two", "more", "c,three"], ["one", "three"], [3, 4]),
        (["audio,text", "a,one", "b,two", "", "more", "c,three"], ["one", "three"], [3, 5]),
        (["audio,text", "more", "a,one"], ["one"], [2]),
        (["text,audio", "one,a", "two", "three,c"], ["one", "three"], [3]),
    ],
)
def test_rows_have_the_fields_of_the_header(tmp_path, suffix, tab, rows, texts, bad):
    for end in ("\n", "\r\n"):
        content = end.join(rows).replace(",", tab) + end
        found, rejected = read(tmp_path / f"m{suffix}", content)
        assert found == texts
        assert [int(row.where.rpartition(":")[2]) for row in rejected] == bad
        assert {row.reason for row in rejected} <= {"malformed_row"}


@pytest.mark.parametrize(("suffix", "tab"), [(".csv", ","), (".tsv", "\t"), (".tsv.gz", "\t")])
def test_the_error_of_a_wrong_header_has_the_column(tmp_path, suffix, tab):
    import gzip

    pack = gzip.compress if suffix.endswith("gz") else bytes
    for header, cause in {
        "audio,text,text": "more than one column 'text' in its header: rename",
        "audio,text,note,note": "more than one column 'note'",
        "audio,words": "no column 'text' in its header",
        "\ufeff": "no column 'audio'",
    }.items():
        content = f"{header}\na,b,c\n".replace(",", tab).encode()
        with pytest.raises(UserError, match=cause) as caught:
            read(tmp_path / f"m{suffix}", pack(content))
        assert "\n" not in str(caught.value) and f"m{suffix}" in str(caught.value)


@pytest.mark.parametrize("end", ["\r", "\r\r"])
def test_a_table_whose_lines_end_with_cr_is_an_error(tmp_path, end):
    content = end.join(["audio,text", *(f"{n}.wav,words" for n in range(500))])
    with pytest.raises(UserError, match="CR without LF"):
        read(tmp_path / "m.csv", content)
    with pytest.raises(UserError, match="no column 'text'") as caught:
        read(tmp_path / "m.tsv", content.replace(",", "\t"))
    assert len(str(caught.value)) < 600


def test_a_csv_field_with_a_cr_outside_quotes_is_a_malformed_row(tmp_path):
    texts, (bad,) = read(tmp_path / "m.csv", b'audio,text\na,one\nb,t\rwo\nc,"th\rree"\n')
    assert texts == ["one", "th\rree"]
    assert bad.message == "not a CSV row: a CR without LF is outside quotes"


QUOTED = ['say "hi"', "tab\there", "line\nend", '"', 'he said ""hm""']


@pytest.mark.parametrize("text", QUOTED)
def test_tsv_fields_quoted_as_in_csv_are_rejected(tmp_path, text):
    path = tmp_path / "m.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("audio", "text", "speaker"), ("a", "one", "s"), ("b", text, "s")])
    texts, rejected = read(path, path.read_bytes())
    assert texts == ["one"]
    assert {row.reason for row in rejected} == {"malformed_row"}
    # The same rows as CSV are read.
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("audio", "text", "speaker"), ("a", "one", "s"), ("b", text, "s")])
    texts, rejected = read(path.with_suffix(".csv"), path.with_suffix(".csv").read_bytes())
    assert (texts, rejected) == (["one", text], [])


def test_a_json_object_with_a_repeated_field_is_a_malformed_row(tmp_path):
    good = json.dumps({"audio": "b", "text": "two", "note": {"x": 1}})
    row = '{"audio": "a", "text": "one", "text": "other"}'
    inner = '{"audio": "c", "text": "three", "note": {"x": 1, "x": 2}}'
    texts, (bad,) = read(tmp_path / "m.jsonl", f"{row}\n{good}\n{inner}\n")
    assert texts == ["two", "three"]
    assert (bad.reason, bad.message) == ("malformed_row", "field 'text' occurs twice")


def test_repeated_rows_of_a_document_are_used_once(tmp_path):
    rows = [
        {"audio": "a", "text": "one", "document": "d", "order": 2},
        {"audio": "b", "text": "two", "document": "d", "order": 1},
        {"audio": "a", "text": " one", "document": "d", "order": 0},
        {"audio": "a", "text": "one", "document": "e"},
        {"audio": "a", "text": "one", "document": "d", "start": 1},
        {"audio": "b", "text": "three", "document": "d"},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    texts, rejected = read(tmp_path / "m.jsonl", content)
    assert texts == ["two", "one", "one", "one"]
    assert [(row.reason, row.where, row.document) for row in rejected] == [
        ("duplicate", "m.jsonl:3", "d"),
        ("conflicting_duplicate", "m.jsonl:6", "d"),
    ]
    assert [part in row.message for row, part in zip(rejected, (":1", ":2"), strict=True)] == [
        True,
        True,
    ]


def test_the_error_of_a_manifest_with_another_suffix_lists_the_suffixes(tmp_path):
    with pytest.raises(UserError, match=r"m\.txt is neither \.jsonl nor \.csv nor \.tsv"):
        read(tmp_path / "m.txt", "audio\ttext\n")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("._a.wav", True),
        ("x/y/._a.trans.txt", True),
        ("__MACOSX/x/a.wav", True),
        (".DS_Store", True),
        ("x/.DS_Store", True),
        ("_a.wav", False),
        (".a.wav", False),
        ("x.__MACOSX/a.wav", False),
        ("", False),
    ],
)
def test_files_that_macos_adds_are_recognized_by_name(name, is_one):
    assert is_mac_metadata(name) == is_one


def test_files_that_macos_adds_are_not_inputs(tmp_path):
    for name in ("a.jsonl", "._a.jsonl", ".DS_Store"):
        (tmp_path / name).write_text("")
    assert find_inputs(f"{tmp_path}/*") == [tmp_path / "a.jsonl"]
    assert find_inputs(f"{tmp_path}/*[a-z]") == [tmp_path / "a.jsonl"]
    with pytest.raises(UserError, match="matches no file"):
        find_inputs(f"{tmp_path}/._*")
