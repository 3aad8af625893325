"""The reader of text: ids of published corpora, Parquet, and damaged files."""

import itertools
import json

import pyarrow
import pytest
import zstandard
from corpora import fineweb, nemotron_cc
from pyarrow import parquet

from soda_jax.errors import UserError
from tokenize_pipeline.readers import Rejected, text

PAGES = [(f"<urn:uuid:{n}>", f"Page {n}\nwith a second line, naïve 🙂.") for n in range(250)]


def read(path):
    return list(text.read([path]))


def write_table(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_fineweb_is_read_row_by_row_with_its_ids(tmp_path):
    documents = read(fineweb.write_corpus(tmp_path, PAGES))
    assert [(d.id, d.utterances[0].text) for d in documents] == PAGES
    assert documents[-1].utterances[0].where == "000_00000.parquet:250"


def test_all_frames_of_a_nemotron_cc_file_are_read(tmp_path):
    documents = read(nemotron_cc.write_corpus(tmp_path, PAGES, frames=3))
    assert [d.utterances[0].text for d in documents] == [page for _, page in PAGES]
    assert [d.id.partition("#")[0] for d in documents] == [record for record, _ in PAGES]


def test_texts_derived_from_one_page_have_different_ids(tmp_path):
    pages = [("a", "first rephrasing"), ("a", "second rephrasing"), ("a", " first rephrasing ")]
    first, second, again = (d.id for d in read(nemotron_cc.write_corpus(tmp_path, pages)))
    assert first != second and first == again


def test_the_id_is_the_first_field_with_a_value(tmp_path):
    rows = [
        {"text": "t", "id": "i", "uuid": "u", "warc_record_id": "w"},
        {"text": "t", "id": "", "uuid": "u", "warc_record_id": "w"},
        {"text": "t", "id": None, "warc_record_id": "w", "url": "x"},
        {"text": "t", "url": "x"},
        {"content": "other words", "id": 7},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [d.id for d in read(path)]
    assert ids[:2] == ["i", "u"] and ids[2].startswith("w#") and ids[3].startswith("text-")
    assert ids[4] == "7"
    columns = {name: [row.get(name) for row in rows[:4]] for name in ("text", "id", "uuid")}
    columns["warc_record_id"] = [row.get("warc_record_id") for row in rows[:4]]
    assert [d.id for d in read(write_table(tmp_path / "t.parquet", **columns))] == ids[:4]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_any_column_of_text_is_read(tmp_path, kind):
    words = ["one", "zwölf"] * 20
    column = pyarrow.array(words)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    documents = read(write_table(tmp_path / "t.parquet", raw_content=column))
    assert [d.utterances[0].text for d in documents] == words


def test_a_bad_row_of_a_parquet_file_does_not_affect_the_others(tmp_path):
    cells = pyarrow.array([b"good", b"caf\xe9", None, b"fine"])
    ids = pyarrow.array(["a", "b", "c", "d"])
    one, invalid, absent, last = read(write_table(tmp_path / "t.parquet", text=cells, id=ids))
    assert (one.id, last.id) == ("a", "d")
    assert invalid.utterances[0].text == "caf\udce9"  # rejected later, as for all readers
    assert isinstance(absent, Rejected)
    assert (absent.reason, absent.where) == ("malformed_row", "t.parquet:3")


def test_the_error_of_a_parquet_file_without_a_text_column_lists_its_columns(tmp_path):
    with pytest.raises(
        UserError, match=r"t\.parquet has the columns words, but none named text or"
    ):
        read(write_table(tmp_path / "t.parquet", words=["a"]))
    with pytest.raises(UserError, match=r"t\.parquet: column 'text' is int64, not text"):
        read(write_table(tmp_path / "t.parquet", text=[1]))


def test_the_error_of_a_damaged_parquet_file_has_its_name(tmp_path):
    path = fineweb.write_corpus(tmp_path, PAGES)
    whole = path.read_bytes()
    for content in (whole[:-500], b"", b"PAR1 but no more"):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"000_00000\.parquet cannot be read as Parquet .*download"
        ):
            read(path)
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent.parquet")


def test_rows_before_a_damage_in_a_parquet_file_are_read(tmp_path):
    path = fineweb.write_corpus(tmp_path, PAGES)
    row_group = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = row_group.dictionary_page_offset or row_group.data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    documents = text.read([path])
    assert [d.id for d in itertools.islice(documents, 64)] == [name for name, _ in PAGES[:64]]
    with pytest.raises(UserError, match="cannot be read as Parquet after row"):
        list(documents)


def test_only_a_few_rows_of_a_large_row_group_are_in_memory(tmp_path):
    pages = [(str(n), f"{n} " * 500) for n in range(12_000)]
    path = fineweb.write_corpus(tmp_path, pages, group=12_000)
    pool = pyarrow.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for _ in text.read([path]):
        most = max(most, pool.bytes_allocated() - before)
    assert most < sum(len(page) for _, page in pages) / 3


@pytest.mark.parametrize("suffix", [".zst", ".zstd"])
def test_a_truncated_zstandard_file_is_an_error(tmp_path, suffix):
    frames = [zstandard.compress(f"{n} words\n".encode() * 50) for n in range(3)]
    path = tmp_path / f"t.txt{suffix}"
    path.write_bytes(b"".join(frames))
    assert len(read(path)) == 150
    for cut in (len(frames[2]), len(frames[2]) // 2, 1):
        whole = b"".join(frames)
        path.write_bytes(whole[:-cut])
        if cut == len(frames[2]):
            assert len(read(path)) == 100  # two complete frames are a valid file
        else:
            with pytest.raises(UserError, match=r"t\.txt.* cannot be read: Truncated compressed"):
                read(path)
