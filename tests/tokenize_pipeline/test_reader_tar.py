"""Names, sizes and selected content of the members of a tar, and lengths of sounds by their sizes."""

import pytest
from pipeline_toys import hum, sound_bytes, write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers._corpus import members, seconds_of

FILES = {"./a/x.json": b'{"n": 1}', "a/x.wav": bytes(70_000), "a/y.json": b"", "a/y.wav": b"12"}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_members_are_in_order_with_the_selected_content(tmp_path, name):
    path = write_tar(tmp_path / name, FILES)
    found = list(members(path, lambda member: member.endswith(".json")))
    assert found == [
        (n.removeprefix("./"), len(data), data if n.endswith(".json") else None)
        for n, data in FILES.items()
    ]
    assert [content for _, _, content in members(path)] == [None] * 4


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_the_error_of_a_truncated_archive_has_its_name(tmp_path, name):
    path = write_tar(tmp_path / name, FILES)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    found = []
    with pytest.raises(UserError, match=rf"{name}: the .*archive .*leave it out of --input"):
        for member in members(path):
            found.append(member)
    assert found[0] == ("a/x.json", 8, None)


def test_the_error_of_a_file_that_is_not_an_archive_has_its_name(tmp_path):
    with pytest.raises(UserError, match=r"no\.tar: no such archive"):
        list(members(tmp_path / "no.tar"))
    for name, content in (("a.tar", b"sound " * 200), ("b.tar.gz", b"sound"), ("c.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*download it again"):
            list(members(tmp_path / name))


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_the_length_of_a_wav_file_by_its_size_is_exact(rate):
    content = sound_bytes(hum(1.37, rate=rate), rate)
    assert seconds_of("a/x.WAV", len(content), rate) == pytest.approx(1.37)
    assert seconds_of("a/x.wav", 10, rate) == 0


@pytest.mark.parametrize(
    ("name", "gigabytes", "hours"),
    [  # published sizes of three subsets of LibriSpeech and of English in Common Voice 13
        ("x.flac", 6.3, 100.6),
        ("x.flac", 23, 363.6),
        ("x.flac", 30, 496.7),
        ("x.mp3", 76.39, 3_209),
    ],
)
def test_lengths_of_compressed_speech_agree_with_published_totals(name, gigabytes, hours):
    assert seconds_of(name, round(gigabytes * 1e9)) == pytest.approx(hours * 3600, rel=0.05)


def test_the_length_of_other_files_is_unknown():
    assert seconds_of("x.opus", 1000) is None and seconds_of("x", 1000) is None
