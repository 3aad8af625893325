"""Manifests in JSONL and CSV, plain and compressed text, and unusable rows."""

import bz2
import dataclasses
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from soda_jax.errors import UserError
from tokenize_pipeline.readers import (
    DocumentSource,
    Rejected,
    UtteranceSource,
    find_reader,
    manifest,
    text,
    texts,
)


def read(reader, path: Path, content: str | bytes) -> list[DocumentSource | Rejected]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(reader.read([path]))


def rows(*objects: dict) -> str:
    return "".join(json.dumps(value) + "\n" for value in objects)


def test_rows_of_a_document_are_joined_and_sorted_by_order(tmp_path):
    content = rows(
        {"audio": "b.wav", "text": "two", "document": "d", "order": 2},
        {"audio": "x.wav", "text": "alone"},
        {"audio": "c.wav", "text": "last", "document": "d"},
        {"audio": "a.wav", "text": "one", "document": "d", "order": 1.5, "speaker": "s"},
    )
    first, second = read(manifest, tmp_path / "m.jsonl", content)
    assert first.id == "d"
    assert [u.text for u in first.utterances] == ["one", "two", "last"]
    assert first.utterances[0].speaker == "s"
    assert first.utterances[0].where == "m.jsonl:4"
    assert (second.id, len(second.utterances)) == ("x.wav", 1)


def test_rows_without_an_id_are_named_after_audio_and_times(tmp_path):
    content = rows(
        {"audio": "a.wav", "text": "one", "start": 0, "end": 1.5},
        {"audio": "a.wav", "text": "two", "start": 1.5},
        {"audio": "a.wav", "text": "again", "start": 1.5},
    )
    documents = read(manifest, tmp_path / "m.jsonl", content)
    assert [d.id for d in documents] == ["a.wav#0.0-1.5", "a.wav#1.5-", "a.wav#1.5-"]


def test_the_audio_of_a_row_may_be_a_member_of_an_archive(tmp_path):
    content = rows(
        {"audio": "a.tar", "member": "x/1.wav", "text": "one", "seconds": 1.5},
        {"audio": "a.tar", "member": "x/2.wav", "text": "two", "start": 1},
        {"audio": "a.tar", "member": "x/3.wav", "text": "three", "seconds": "long"},
    )
    bad, first, second = read(manifest, tmp_path / "m.jsonl", content)
    assert (first.id, second.id) == ("a.tar/x/1.wav", "a.tar/x/2.wav#1.0-")
    assert (first.utterances[0].member, first.utterances[0].seconds) == ("x/1.wav", 1.5)
    assert (bad.reason, bad.where) == ("malformed_row", "m.jsonl:3")


def test_csv_gives_the_same_documents_as_jsonl(tmp_path):
    table = (
        "audio,text,document,order,start,end,speaker,language,note\n"
        'a.wav,"x, ""y""",d,1,0.5,2,Ann,en,n\n\nb.wav,z,d,0,,,,,\n'
    )
    first = {"audio": "a.wav", "text": 'x, "y"', "document": "d", "order": 1, "start": 0.5}
    lines = rows(
        {**first, "end": 2, "speaker": "Ann", "language": "en"},
        {"audio": "b.wav", "text": "z", "document": "d", "order": 0},
    )
    (from_csv,) = read(manifest, tmp_path / "m.csv", "\ufeff" + table)
    (from_json,) = read(manifest, tmp_path / "m.jsonl", lines)
    wanted = [
        UtteranceSource("z", "b.wav", where="m.csv:4"),
        UtteranceSource('x, "y"', "a.wav", 0.5, 2.0, "Ann", "en", where="m.csv:2"),
    ]
    assert from_csv == DocumentSource("d", tuple(wanted))
    positions = ("m.jsonl:2", "m.jsonl:1")
    wanted = [dataclasses.replace(u, where=w) for u, w in zip(wanted, positions, strict=True)]
    assert from_json == DocumentSource("d", tuple(wanted))


@pytest.mark.parametrize(
    ("line", "reason", "part"),
    [
        (b"{broken", "malformed_row", "not a JSON object"),
        (b"[1, 2]", "malformed_row", "list"),
        (b"[" * 100_000, "malformed_row", "not a JSON object"),
        (b'{"text": "t"}', "malformed_row", "'audio' is missing"),
        (b'{"audio": "a.wav"}', "malformed_row", "'text' is missing"),
        (b'{"audio": "a.wav", "text": 3}', "malformed_row", "not a string"),
        (b'{"audio": ["a"], "text": "t"}', "malformed_row", "not a string"),
        (b'{"audio": "a.wav", "text": "t", "start": NaN}', "malformed_row", "not a finite"),
        (b'{"audio": "a.wav", "text": "t", "end": "soon"}', "malformed_row", "not a finite"),
        (b'{"audio": "a.wav", "text": "t", "order": true}', "malformed_row", "not a finite"),
        (b'{"audio": "\xff.wav", "text": "t"}', "invalid_utf8", "'audio' is not valid"),
        (b'{"audio": "a", "text": "t", "document": "\\ud800"}', "invalid_utf8", "'document'"),
    ],
)
def test_a_malformed_row_is_rejected_and_the_others_are_kept(tmp_path, line, reason, part):
    good = b'\n{"audio": "a.wav", "text": "t"}\n'
    bad, document = read(manifest, tmp_path / "m.jsonl", line + good)
    assert (bad.reason, bad.where) == (reason, "m.jsonl:1")
    assert part in bad.message
    assert document.id == "a.wav"


def test_malformed_csv_rows_are_rejected_and_the_others_are_kept(tmp_path):
    table = "audio,text\na.wav\nb.wav,t,extra\nc.wav,good\n"
    short, long, document = read(manifest, tmp_path / "m.csv", table)
    assert ("fewer" in short.message, "more" in long.message) == (True, True)
    assert document.id == "c.wav"


@pytest.mark.parametrize("end", ["\n", ""])
def test_the_error_of_an_open_quote_in_csv_has_the_line_of_its_row(tmp_path, end):
    table = [f"{n}.wav,t" for n in range(1000)]
    table[900] = '900.wav,"t'
    content = "\n".join(["audio,text", '"x.wav","two\nlines"', *table]) + end
    with pytest.raises(UserError, match=r"m\.csv: the row that begins in line 904 .*: close it"):
        read(manifest, tmp_path / "m.csv", content)
    with pytest.raises(UserError, match=r"begins in line 1 "):
        read(manifest, tmp_path / "m.csv", 'audio,"text\na.wav,t\n')


def test_every_line_inside_a_stray_csv_quote_is_a_malformed_row(tmp_path):
    table = 'audio,text\na.wav,"open\nb.wav,t\nc.wav,"closed"\nd.wav,"good\nlines"\n'
    *bad, document = read(manifest, tmp_path / "m.csv", table)
    assert [row.where for row in bad] == ["m.csv:2", "m.csv:3", "m.csv:4"]
    assert (document.id, document.utterances[0].where) == ("d.wav", "m.csv:5")


def test_the_error_of_a_csv_without_a_required_column_has_its_name(tmp_path):
    with pytest.raises(UserError, match=r"m\.csv has no column 'text'"):
        read(manifest, tmp_path / "m.csv", "audio,words\na.wav,x\n")
    with pytest.raises(UserError, match=r"m\.csv has no column 'audio'"):
        read(manifest, tmp_path / "m.csv", "")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.compress),
    ],
)
def test_text_is_read_from_every_compression(tmp_path, suffix, pack):
    content = pack(rows({"text": "a\nb", "id": "one"}, {"text": "c"}).encode())
    documents = read(text, tmp_path / f"t.jsonl{suffix}", content)
    assert [d.utterances[0].text for d in documents] == ["a\nb", "c"]
    assert documents[0].id == "one"
    plain = read(text, tmp_path / f"t.txt{suffix}", pack(b"first\n\n  \nsecond\n"))
    assert [d.utterances[0].text.strip() for d in plain] == ["first", "second"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_the_error_of_a_damaged_compressed_file_has_its_path(tmp_path, suffix):
    with pytest.raises(UserError, match=r"t\.txt.* cannot be read"):
        read(text, tmp_path / f"t.txt{suffix}", b"not compressed at all")


def test_the_id_of_a_text_depends_on_its_content_only(tmp_path):
    (one,) = read(text, tmp_path / "a.txt", "same words\n")
    two, three = read(text, tmp_path / "b.jsonl", rows({"text": " same words"}, {"text": "other"}))
    assert one.id == two.id != three.id


def test_invalid_bytes_in_one_line_do_not_affect_the_others(tmp_path):
    bad, good = read(text, tmp_path / "t.txt", b"caf\xe9\ngood\n")
    assert list(texts([bad, good])) == ["good"]


def test_the_error_of_an_unknown_format_lists_the_known_ones():
    with pytest.raises(UserError, match=r"manifest.*text"):
        find_reader("yodas9")


def test_the_reader_of_the_documentation_reads_a_chapter(tmp_path):
    guide = Path(__file__).parents[2] / "docs/readers.md"
    code = guide.read_text().split("```python\n")[1].split("```")[0]
    module: dict = {}
    exec(compile(code, str(guide), "exec"), module)
    file = tmp_path / "metadata.csv"
    rows = ["LJ001-0001|In 1450|in fourteen fifty", "LJ001-0002|b|b", "LJ002-0001|c|c"]
    file.write_text("\n".join(rows))
    first, second = module["read"]([file])
    assert (first.id, second.id) == ("ljspeech/LJ001", "ljspeech/LJ002")
    assert first.utterances[1].audio == "wavs/LJ001-0002.wav"
    assert first.utterances[0].text == "in fourteen fifty"
