"""Records found by byte range equal those of ArrayRecord's own reader."""

import contextlib
import itertools

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from soda_jax.data.shards import read_index, shard_places
from soda_jax.data.storage.places import BLOCK, find_places, unpack_record
from soda_jax.errors import UserError


def write_file(path, records, options="group_size:1,uncompressed"):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path.read_bytes()


def by_range(content):
    """All records, each from the bytes of its own range alone, and their places."""
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return content[start:stop]

    places = find_places(read, len(content)).astype(int).tolist()
    assert len(reads) == 2
    ranges = itertools.pairwise(places)
    return [unpack_record(content[start:stop], start) for start, stop in ranges], places


def own_reader(path):
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    return [reader.read([number])[0] for number in range(reader.num_records())]


@pytest.mark.parametrize("seed", range(4))
def test_records_of_1_byte_to_300_kib_are_those_of_array_records_own_reader(tmp_path, seed):
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0, np.log(300 * 1024), 120)).astype(int)
    records = [rng.bytes(int(size)) for size in (*sizes, 1, 300 * 1024)]
    content = write_file(tmp_path / "a.array_record", records)
    found, places = by_range(content)
    assert found == records == own_reader(tmp_path / "a.array_record")
    blocks = [stop // BLOCK - start // BLOCK for start, stop in itertools.pairwise(places)]
    assert max(blocks) >= 4 and blocks.count(0) > 10


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(BLOCK - 160, BLOCK + 20),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
)
def test_chunks_that_end_or_begin_near_a_block_header_are_found(tmp_path_factory, first, sizes):
    path = tmp_path_factory.mktemp("near") / "a.array_record"
    rng = np.random.default_rng(first)
    records = [rng.bytes(size) for size in (first, *sizes, 2 * BLOCK, 7)]
    assert by_range(write_file(path, records))[0] == records == own_reader(path)


def test_a_file_without_records_has_no_places(tmp_path):
    content = write_file(tmp_path / "a.array_record", [])
    assert len(find_places(lambda a, b: content[a:b], len(content))) == 1


@pytest.mark.parametrize("options", ["group_size:4,uncompressed", "group_size:1,zstd"])
def test_another_way_of_writing_is_refused_not_misread(tmp_path, options):
    content = write_file(tmp_path / "a.array_record", [b"abc" * 50] * 9, options)
    with pytest.raises(ValueError, match=r"records, not one|not stored plainly"):
        by_range(content)


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
    with contextlib.suppress(ValueError):
        by_range(bytes(content[:length]))


def test_the_index_knows_the_places_and_one_of_version_1_has_none(tmp_path, write, speech):
    corpus = write(tmp_path, speech())
    shard = corpus / "train" / "shard-00000.array_record"
    index = shard.with_name("shard-00000.index.npz")
    found = read_index(index)
    np.testing.assert_array_equal(found.places, shard_places(shard))
    assert found.places.dtype == np.uint64 and len(found.places) == len(found.flags) + 1
    with np.load(index) as file:
        columns = {name: file[name] for name in file.files if name not in ("places", "version")}
    np.savez(index, version=np.array(1), **columns)
    old = read_index(index)
    assert old.places is None
    np.testing.assert_array_equal(old.flags, found.flags)
    np.savez(index, version=np.array(3), **columns, places=found.places)
    with pytest.raises(UserError, match="index version 3, this program reads 1 and 2"):
        read_index(index)
