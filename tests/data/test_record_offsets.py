"""Records read by byte range equal those of ArrayRecord's reader."""

import contextlib
import itertools

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from soda_jax.data.format.shards import read_index
from soda_jax.data.storage.record_offsets import BLOCK, read_record_offsets, unpack_record
from soda_jax.errors import UserError


def write_file(path, records, options="group_size:1,uncompressed"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path.read_bytes()


def by_range(path):
    """Returns all records, each from the bytes of its own range, and the offsets."""
    content = path.read_bytes()
    offsets = read_record_offsets(path).astype(int).tolist()
    ranges = itertools.pairwise(offsets)
    return [unpack_record(content[start:stop], start) for start, stop in ranges], offsets


def array_record_reader(path):
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    return [reader.read([number])[0] for number in range(reader.num_records())]


@pytest.mark.parametrize("seed", range(4))
def test_records_of_1_byte_to_300_kib_equal_those_of_array_records_reader(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0, np.log(300 * 1024), 120)).astype(int)
    records = [rng.bytes(int(size)) for size in (*sizes, 1, 300 * 1024)]
    path = tmp_path / "a.array_record"
    write_file(path, records)
    found, offsets = by_range(path)
    assert found == records == array_record_reader(path)
    blocks = [stop // BLOCK - start // BLOCK for start, stop in itertools.pairwise(offsets)]
    assert max(blocks) >= 4 and blocks.count(0) > 10


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(BLOCK - 160, BLOCK + 20),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
)
def test_chunks_that_end_or_start_near_a_block_header_are_read(tmp_path_factory, first, sizes):
    path = tmp_path_factory.mktemp("near") / "a.array_record"
    rng = np.random.default_rng(first)
    records = [rng.bytes(size) for size in (first, *sizes, 2 * BLOCK, 7)]
    write_file(path, records)
    assert by_range(path)[0] == records == array_record_reader(path)


def test_a_file_without_records_has_one_offset(tmp_path):
    write_file(tmp_path / "a.array_record", [])
    assert len(read_record_offsets(tmp_path / "a.array_record")) == 1


@pytest.mark.parametrize("options", ["group_size:4,uncompressed", "group_size:1,zstd"])
def test_a_file_with_other_writer_options_is_refused(tmp_path, options):
    write_file(tmp_path / "a.array_record", [b"abc" * 50] * 9, options)
    with pytest.raises(ValueError, match=r"records, not one|no uncompressed chunk"):
        by_range(tmp_path / "a.array_record")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_an_error_or_other_bytes_never_a_crash(tmp_path_factory, data):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("bits") / "a.array_record"
    content = bytearray(write_file(path, [rng.bytes(30) for _ in range(40)]))
    tail = len(content) - BLOCK
    lively = st.one_of(st.integers(0, 4000), st.integers(tail, tail + 200))
    content[data.draw(lively)] ^= 1 << data.draw(st.integers(0, 7))
    length = data.draw(st.sampled_from([len(content), BLOCK, 2 * BLOCK, 100]))
    path.write_bytes(content[:length])
    with contextlib.suppress(ValueError):
        by_range(path)


def test_the_index_contains_the_offsets_and_an_older_one_is_refused(tmp_path, write, speech):
    corpus = write(tmp_path, speech())
    shard = corpus / "train" / "shard-00000.array_record"
    index = shard.with_name("shard-00000.index.npz")
    found = read_index(index)
    np.testing.assert_array_equal(found.record_offsets, read_record_offsets(shard))
    assert found.record_offsets.dtype == np.uint64
    assert len(found.record_offsets) == len(found.flags) + 1
    with np.load(index) as file:
        columns = {name: file[name] for name in file.files if name != "version"}
    del columns["record_offsets"]
    for version in (1, 2, 4):
        np.savez(index, version=np.array(version), **columns)
        with pytest.raises(UserError, match=rf"index version {version}, this program reads 3; "):
            read_index(index)
