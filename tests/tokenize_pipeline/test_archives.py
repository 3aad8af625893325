"""`ArchiveReader`: the content of members in any order, few passes, and a reason for each missing member."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_toys import write_tar

from tokenize_pipeline import archives
from tokenize_pipeline.archives import ArchiveReader, is_archive
from tokenize_pipeline.quarantine import BadInputError
from tokenize_pipeline.tar_stream import TarStream

TARS = ("a.tar", "a.tar.gz", "a.tgz")


def contents(count: int = 30) -> dict[str, bytes]:
    """Returns members of different sizes, one empty, one of exactly a block, one with a name of 150 characters."""
    generator = np.random.default_rng(0)
    sizes = [0, 512, 513, *generator.integers(1, 3000, count - 3)]
    names = [f"part {n % 3}/{n:03d}.wav" for n in range(count)]
    names[4] = "x" * 150
    return {n: generator.bytes(int(size)) for n, size in zip(names, sizes, strict=True)}


def write_parquet(path: Path, cells: list[bytes | None], nested: bool) -> Path:
    """Writes row groups of four rows; the cells are bytes, or structs as of the Audio feature of Hugging Face."""
    values = [{"bytes": cell, "path": "x.wav"} for cell in cells] if nested else cells
    pq.write_table(pa.table({"text": ["t"] * len(cells), "audio": values}), path, row_group_size=4)
    return path


def read(path: Path, members: list[str], reader: ArchiveReader | None = None) -> dict:
    found = (reader or ArchiveReader()).read((str(path), member) for member in members)
    return {member: content for (_, member), content in found}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the archives that were opened from their beginning."""
    paths: list[str] = []

    class Spy(TarStream):
        def __init__(self, path: str):
            paths.append(path)
            super().__init__(path)

    monkeypatch.setattr(archives, "TarStream", Spy)
    return paths


@pytest.mark.parametrize("name", TARS)
def test_members_of_a_tar_are_read_in_any_order_and_a_leading_dot_is_ignored(tmp_path, name):
    members = contents()
    path = write_tar(tmp_path / name, {f"./{n}": data for n, data in members.items()})
    assert is_archive(str(path)) and not is_archive(str(tmp_path))
    wanted = [*reversed(members), "./" + next(iter(members))]
    found = read(path, wanted)
    assert found == {member: members[member.removeprefix("./")] for member in wanted}
    assert list(found)[: len(members)] != wanted  # but in the order of the archive


@pytest.mark.parametrize("nested", [False, True])
def test_cells_of_parquet_are_the_bytes_of_the_sounds(tmp_path, nested):
    cells = [bytes([n]) * (n + 1) for n in range(10)]
    path = write_parquet(tmp_path / "a.parquet", [*cells, None], nested)
    wanted = {f"audio/{n // 4}/{n % 4}": cell for n, cell in enumerate(cells)}
    assert read(path, list(wanted)) == wanted
    absent = ["audio/2/2", "audio/2/3", "audio/9/0", "video/0/0", "audio", "audio/-1/0"]
    for member, error in read(path, absent).items():
        assert error.reason == "missing", member
        assert "a.parquet" in str(error)
    (error,) = read(path, ["text/0/0"]).values()
    assert error.reason == "undecodable"


def test_a_cell_with_a_path_and_no_bytes_is_read_from_a_file_below_the_parquet_file(tmp_path):
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips/a.wav").write_bytes(b"sound")
    (tmp_path / "b.wav").write_bytes(b"secret")
    paths = ["clips/a.wav", "clips/absent.wav", "../b.wav", str(tmp_path / "b.wav"), "a\0b", None]
    cells = [{"bytes": None, "path": path} for path in paths]
    cells.append({"bytes": b"own", "path": "clips/a.wav"})
    table = pa.table({"audio": cells, "file": [*paths, "clips/a.wav"]})
    pq.write_table(table, folder / "x.parquet")
    found = list(read(folder / "x.parquet", [f"audio/0/{n}" for n in range(7)]).values())
    assert (found[0], found[6]) == (b"sound", b"own")
    for error, path in zip(found[1:5], paths[1:5], strict=True):
        assert error.reason == "missing" and repr(path) in str(error)
        assert "has no bytes, and its path" in str(error)
    assert "is empty" in str(found[5])
    found = list(read(folder / "x.parquet", [f"file/0/{n}" for n in range(6)]).values())
    assert found[0] == b"sound"
    assert [error.reason for error in found[1:]] == ["undecodable"] * 4 + ["missing"]


def test_a_compressed_archive_read_in_order_is_opened_once(tmp_path, opened):
    members = contents()
    path, reader = write_tar(tmp_path / "a.tar.gz", members), ArchiveReader()
    names = list(members)
    for first in range(0, len(names), 7):
        window = names[first : first + 7]
        assert read(path, window, reader) == {name: members[name] for name in window}
    assert len(opened) == 1


def test_earlier_members_need_at_most_one_more_pass_and_missing_members_none(tmp_path, opened):
    members = contents()
    path, reader = write_tar(tmp_path / "a.tar.gz", members), ArchiveReader()
    names = list(members)
    assert read(path, [names[20]], reader)[names[20]] == members[names[20]]
    # Before and after the current position, and absent.
    found = read(path, [names[3], names[25], "nowhere"], reader)
    assert found[names[3]] == members[names[3]] and found[names[25]] == members[names[25]]
    assert found["nowhere"].reason == "missing"
    assert "a.tar.gz" in str(found["nowhere"]) and "nowhere" in str(found["nowhere"])
    passes = len(opened)
    assert passes <= 2
    for _ in range(5):
        assert read(path, ["nowhere either"], reader)["nowhere either"].reason == "missing"
    assert len(opened) == passes


@pytest.mark.parametrize("name", TARS)
def test_the_first_of_two_members_with_the_same_name_is_read(tmp_path, name):
    path = write_tar(tmp_path / name, {"one": b"first", "two": b"2", "./one": b"second"})
    reader = ArchiveReader()
    assert read(path, ["one"], reader) == {"one": b"first"}
    assert read(path, ["two"], reader) == {"two": b"2"}
    assert read(path, ["one"], reader) == {"one": b"first"}


@pytest.mark.parametrize("name", [*TARS, "a.parquet"])
def test_the_error_of_a_file_that_is_not_an_archive_has_its_name_and_a_reason(tmp_path, name):
    path = tmp_path / name
    (error,) = read(path, ["audio/0/0"]).values()
    assert error.reason == "missing" and name in str(error)
    for content, reason in ((b"", "truncated"), (b"no archive " * 200, "undecodable")):
        path.write_bytes(content)
        (error,) = read(path, ["audio/0/0"]).values()
        assert name in str(error) and "\n" not in str(error)
        if content:
            assert error.reason == reason
    path.unlink()
    path.mkdir()
    (error,) = read(path, ["audio/0/0"]).values()
    assert error.reason in ("missing", "undecodable")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from([*TARS, "a.parquet"]))
def test_members_of_a_truncated_archive_are_complete_or_errors(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("cut")
    members = contents()
    if name == "a.parquet":
        members = {f"audio/{n // 4}/{n % 4}": cell for n, cell in enumerate(members.values())}
        path = write_parquet(folder / name, list(members.values()), nested=True)
    else:
        path = write_tar(folder / name, members)
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:length])
    lost = 0
    for member, found in read(path, list(members)).items():
        if isinstance(found, BadInputError):
            lost += 1
            assert found.reason in ("truncated", "undecodable") and name in str(found)
            assert length < 12 or found.reason == "truncated"
        else:
            assert found == members[member]
    assert lost or length > 0.9 * len(content) or name == "a.tar"


def flip_stored_byte(path: Path, member: bytes) -> None:
    """Stores a compressed archive without compression and changes a byte of a member.

    Only the checksum shows it, as stored blocks are copied.
    """
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0, mtime=0))
    assert content.count(member) == 1
    content[content.index(member) + len(member) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_a_wrong_checksum_is_reported_with_the_last_member(tmp_path, name):
    members = {f"{n}.wav": bytes([n]) * 700 for n in range(1, 6)}
    path = write_tar(tmp_path / name, members)
    flip_stored_byte(path, members["2.wav"])
    stream = TarStream(str(path))
    for member in members:
        assert stream.next().name == member
    with pytest.raises(BadInputError, match=f"{name}: .*CRC") as caught:
        stream.next()
    assert caught.value.reason == "undecodable" and "\n" not in str(caught.value)
    stream.close()
    # Earlier members were already returned; the last one becomes the error.
    for wanted in (list(members), [*reversed(members)], ["1.wav", "5.wav"]):
        found = read(path, wanted)
        assert [m for m in wanted if isinstance(found[m], BadInputError)] == ["5.wav"]
        assert found["5.wav"].reason == "undecodable" and name in str(found["5.wav"])
    reader = ArchiveReader()  # one at a time, backward, and an absent member
    assert read(path, ["1.wav"], reader)["1.wav"] == members["1.wav"]
    assert isinstance(read(path, ["5.wav"], reader)["5.wav"], BadInputError)
    assert read(path, ["3.wav"], reader)["3.wav"] == members["3.wav"]
    assert read(path, ["nowhere"], reader)["nowhere"].reason == "undecodable"


def test_stored_blocks_and_zeros_after_the_archive_are_valid(tmp_path):
    members = contents()
    path = write_tar(tmp_path / "a.tar.gz", members)
    stored = gzip.compress(gzip.decompress(path.read_bytes()), 0)
    path.write_bytes(stored + bytes(1000))
    assert read(path, list(members)) == members


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from([*TARS, "a.parquet"]))
def test_reading_a_damaged_archive_does_not_raise(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("flip")
    members = contents(12)
    if name == "a.parquet":
        path = write_parquet(folder / name, list(members.values()), nested=True)
        members = {f"audio/{n // 4}/{n % 4}": b"" for n in range(12)}
    else:
        path = write_tar(folder / name, members)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = read(path, list(members))
    assert found.keys() == members.keys()
    assert all(isinstance(content, bytes | BadInputError) for content in found.values())


@pytest.mark.parametrize("name", TARS)
def test_a_member_above_the_size_limit_is_rejected_and_the_others_are_read(
    tmp_path, name, monkeypatch
):
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    path = write_tar(tmp_path / name, {"large": bytes(1001), "small": bytes(1000)})
    found = read(path, ["large", "small"])
    assert (found["large"].reason, len(found["small"])) == ("undecodable", 1000)
