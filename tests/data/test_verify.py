"""A data set is checked as a whole: what is wrong with it is found, and named where it can be."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soda_jax.data.checks.verify import verify
from soda_jax.data.dataset import make_dataset
from soda_jax.data.format.manifest import Manifest
from soda_jax.data.format.reading import ShardReaders
from soda_jax.data.format.shards import INDEX_VERSION, ShardWriter, read_index
from soda_jax.data.format.splitting import split_document
from soda_jax.errors import UserError

SHARD = "train/shard-00001.array_record"
INDEX = "train/shard-00001.index.npz"
same_folder = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def corpus(tmp_path, write, speech):
    return write(tmp_path / "data", speech())


def flip(path: Path, offset: int, bit: int) -> int:
    """Flips one bit of a file; returns the byte that it was."""
    data = bytearray(path.read_bytes())
    offset %= len(data)
    data[offset] ^= 1 << bit
    path.write_bytes(data)
    return offset


def resave(corpus: Path, **changes) -> None:
    """Writes the manifest of a data set anew with other values, as if it had always been so."""
    manifest = dataclasses.replace(Manifest.load(corpus), **changes)
    (corpus / "manifests" / "0000.json").unlink()
    manifest.save(corpus)


def with_shard(corpus: Path, **changes) -> None:
    """Changes what the manifest says of the second shard."""
    first, second = Manifest.load(corpus).splits["train"]
    resave(corpus, splits={"train": (first, dataclasses.replace(second, **changes))})


def test_an_intact_data_set_has_no_fault(tmp_path, write, speech, text_only):
    corpus = write(tmp_path / "speech", speech(9))
    write(corpus, speech(5, seed=1), split="validation")
    write(corpus, speech(5, seed=2))
    assert list(verify(corpus)) == [] and list(verify(corpus, 0)) == []
    assert list(verify(write(tmp_path / "text", text_only(), kind="text"))) == []


@given(offset=st.integers(0, 2**40), bit=st.integers(0, 7))
@same_folder
def test_any_flipped_bit_of_a_shard_is_found_with_its_record(corpus, offset, bit):
    path = corpus / SHARD
    sound = path.read_bytes()
    count = Manifest.load(corpus).splits["train"][1].records
    records = [ShardReaders().read(path, number, count) for number in range(count)]
    starts = [sound.index(record) for record in records]
    # Half of the flips among the records: most of so small a file is padding.
    offset = (
        starts[0] + offset % (starts[-1] + len(records[-1]) - starts[0]) if offset % 2 else offset
    )
    try:
        offset = flip(path, offset, bit)
        faults = list(verify(corpus))
    finally:
        path.write_bytes(sound)
    assert faults and {fault.file for fault in faults} == {SHARD}
    for number, (start, record) in enumerate(zip(starts, records, strict=True)):
        if start <= offset < start + len(record):
            assert (number,) in [fault.records for fault in faults]


@given(offset=st.integers(0, 2**40), bit=st.integers(0, 7))
@same_folder
def test_any_flipped_bit_of_an_index_is_found(corpus, offset, bit):
    sound = (corpus / INDEX).read_bytes()
    try:
        flip(corpus / INDEX, offset, bit)
        assert [fault.file for fault in verify(corpus)] == [INDEX]
    finally:
        (corpus / INDEX).write_bytes(sound)


@given(
    name=st.sampled_from(["manifest.json", "manifests/0000.json"]),
    offset=st.integers(0, 2**40),
    bit=st.integers(0, 7),
)
@same_folder
def test_any_flipped_bit_of_a_manifest_is_found(corpus, name, offset, bit):
    sound = (corpus / name).read_bytes()
    try:
        flip(corpus / name, offset, bit)
        faults = list(verify(corpus))
    finally:
        (corpus / name).write_bytes(sound)
    assert any(name in f"{fault.file} {fault.message}" for fault in faults)


@pytest.mark.parametrize(
    "field", ["records", "documents", "utterances", "text_tokens", "frames", "bytes"]
)
def test_a_wrong_count_in_the_manifest_is_found(corpus, field):
    count = getattr(Manifest.load(corpus).splits["train"][1], field)
    with_shard(corpus, **{field: count + 1})
    faults = [fault.describe() for fault in verify(corpus)]
    assert any(
        re.search(rf"shard-00001.*\b{count}\b.*manifest.* {count + 1}\b", text) for text in faults
    )


@pytest.mark.parametrize("column", ["text_tokens", "frames", "utterances", "flags"])
def test_an_index_that_disagrees_with_a_record_is_found(corpus, column):
    index = read_index(corpus / INDEX)
    columns = {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}
    columns[column] = columns[column].copy()
    columns[column][3] ^= 32
    np.savez(corpus / INDEX, version=np.array(INDEX_VERSION), **columns)
    with_shard(corpus, index_crc32c=crc32c(corpus / INDEX))
    (fault,) = verify(corpus)
    assert fault.file == SHARD and fault.records == (3,) and column.split("_")[0] in fault.message


def test_wrong_record_offsets_are_found(corpus):
    index = read_index(corpus / INDEX)
    columns = {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}
    columns["record_offsets"] = columns["record_offsets"] + np.uint64(8)
    np.savez(corpus / INDEX, version=np.array(INDEX_VERSION), **columns)
    with_shard(corpus, index_crc32c=crc32c(corpus / INDEX))
    (fault,) = verify(corpus)
    assert fault.file == str(INDEX) and "record offsets" in fault.message


def test_an_index_that_names_other_documents_is_found(corpus):
    index = read_index(corpus / INDEX)
    columns = {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}
    columns["document_hashes"] = columns["document_hashes"][::-1]
    np.savez(corpus / INDEX, version=np.array(INDEX_VERSION), **columns)
    with_shard(corpus, index_crc32c=crc32c(corpus / INDEX))
    faults = list(verify(corpus))
    assert len(faults) == len(index.document_hashes) // 2 * 2
    assert all("in the index has another hash" in fault.message for fault in faults)


def crc32c(path: Path) -> str:
    from soda_jax.data.format.shards import file_crc32c

    return file_crc32c(path)[1]


def test_invariant_1_ids_outside_the_layout_are_found(corpus, layout):
    # The same number of bits, but fewer entries: only the layout shows it.
    fewer = dataclasses.replace(layout, codebook_sizes=(32, 19, 64))
    resave(corpus, layout=fewer)
    assert any("outside codebook 1 (0–18)" in fault.message for fault in verify(corpus))
    resave(corpus, layout=dataclasses.replace(layout, specials=(0, 1, 2, 3)))
    assert any("text id 3, a special token" in fault.message for fault in verify(corpus))


def test_a_document_that_does_not_render_into_the_grammar_is_found(tmp_path, speech, layout):
    content = speech()
    with ShardWriter(tmp_path / SHARD, layout) as writer:
        for name, utterances in content.items():
            for record in split_document(name, utterances, layout, 120):
                record.closes = record.closes and record.part != "audio"
                writer.write(record)
        info = writer.close()
    Manifest("speech", layout, None, "bytes", {"train": (info,)}).save(tmp_path)
    in_pieces = {name for name, us in content.items() if any(len(u.codes) > 60 for u in us)}
    faults = list(verify(tmp_path))
    assert {re.search(r"document (\S+):", fault.message)[1] for fault in faults} == in_pieces
    assert all("cannot be rendered and parsed" in fault.message for fault in faults)


def test_a_repeated_document_is_found(tmp_path, write, speech):
    content = speech()
    write(tmp_path, content)
    write(tmp_path, {"doc/0-3": content["doc/0-3"]}, split="validation")
    (fault,) = verify(tmp_path)
    assert fault.file == "validation/shard-00001.array_record"
    assert "is also in train/shard-00000.array_record" in fault.message


def test_a_manifest_that_cannot_be_read_is_a_fault_and_the_rest_is_checked(corpus):
    (corpus / "manifest.json").write_text("{")
    flip(corpus / INDEX, 77, 0)
    assert [fault.file for fault in verify(corpus)] == ["manifest.json", INDEX]
    (corpus / "manifests" / "0000.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: it is damaged"):
        list(verify(corpus))
    with pytest.raises(UserError, match="cannot read the manifest"):
        list(verify(corpus.parent / "nowhere"))
    with pytest.raises(UserError, match=r"0007\.json: cannot read"):
        list(verify(corpus, 7))


def test_what_is_found_can_be_masked_in_both_splits(tmp_path, write, speech):
    corpus = write(tmp_path / "data", speech(12))
    write(corpus, speech(4, seed=1), split="validation")
    path = corpus / SHARD
    path.write_bytes(path.read_bytes()[:70_000])  # all of its records
    other = corpus / "validation" / "shard-00001.array_record"
    record = ShardReaders().read(other, 1, Manifest.load(corpus).splits["validation"][1].records)
    flip(other, other.read_bytes().index(record) + 30, 3)
    masked = tmp_path / "masked.txt"
    masked.write_text("\n".join(fault.describe() for fault in verify(corpus)))
    source = {"path": str(corpus), "mask_records": str(masked)}
    for split, count in (
        ("train", Manifest.load(corpus).splits["train"][1].records),
        ("validation", 1),
    ):
        dataset = make_dataset(
            {"sequence_length": 64, "sources": {"a": source}}, split, one_pass=True
        )
        assert dataset.summary()["a"]["masked_records"] == count
        for k in range(dataset.windows):
            dataset.window(k)
        assert dataset.damage() == []
