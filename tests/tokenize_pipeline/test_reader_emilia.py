"""The readers of Emilia and Emilia-YODAS on archives in the published layout."""

import json
import tarfile

import pytest
from corpora import emilia as corpus
from corpora import emilia_yodas as yodas_corpus
from pipeline_toys import hum, write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers import DocumentSource, Rejected, emilia, emilia_yodas

RATE = 24_000
ANN, BOB = "EN_B00000_S00000", "EN_B00000_S00013"


def clip(seconds: float):
    return hum(seconds, rate=RATE)


def two_speakers(folder, **changed):
    speakers = {
        ANN: [(" One.", clip(0.5)), (" Two.", clip(0.25))],
        BOB: [(" Three.", clip(0.5))],
    }
    return corpus.write_corpus(folder, speakers, **changed)


def test_a_document_is_all_utterances_of_one_shard_and_speaker(tmp_path):
    path = two_speakers(tmp_path)
    first, second = emilia.read([path])
    assert [first.id, second.id] == [ANN, BOB]
    assert [u.text for u in first.utterances] == [" One.", " Two."]
    assert [u.member for u in first.utterances] == [f"{ANN}_W{n:06d}.mp3" for n in range(2)]
    assert [u.seconds for u in first.utterances] == [0.5, 0.25]
    last = second.utterances[0]
    assert (last.audio, last.speaker, last.language) == ("EN-B000000.tar", BOB, "en")
    assert (last.start, last.end) == (None, None)
    assert last.where == f"EN-B000000.tar:{BOB}_W000000.json"


def test_a_document_of_emilia_yodas_is_a_video_with_all_speakers(tmp_path):
    videos = {
        "EN_tKvmUvxYZXI": [("a", clip(0.3)), ("b", clip(0.3))],
        "EN_a_b-c_d-ef_": [("c", clip(0.3))],
    }
    path = yodas_corpus.write_corpus(tmp_path, videos, first=6)
    first, second = emilia_yodas.read([path])
    assert [first.id, second.id] == list(videos)
    assert [u.speaker for u in first.utterances] == [f"{first.id}_SPEAKER_0{n}" for n in (0, 1)]
    assert first.utterances[0].member == "EN_tKvmUvxYZXI_W000006.mp3"
    with tarfile.open(path) as archive:
        names = [name.removeprefix("./") for name in archive.getnames()]
    assert all(u.member in names for d in (first, second) for u in d.utterances)


def test_utterances_are_in_order_for_any_order_of_the_files(tmp_path):
    ordered = two_speakers(tmp_path)
    with tarfile.open(ordered) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive]
    sounds_last = sorted(members, key=lambda m: (m[0].endswith(".mp3"), m[0]), reverse=True)
    shuffled = write_tar(tmp_path / "again/EN-B000000.tar", {f"./{n}": c for n, c in sounds_last})
    found = {d.id: [(u.text, u.member) for u in d.utterances] for d in emilia.read([shuffled])}
    assert found == {
        d.id: [(u.text, u.member) for u in d.utterances] for d in emilia.read([ordered])
    }


def test_the_rest_of_a_document_in_the_next_archive_is_kept(tmp_path):
    paths = [
        yodas_corpus.write_corpus(
            tmp_path, {"EN_long": [(shard, clip(0.3))]}, shard=shard, first=number
        )
        for number, shard in enumerate(("EN-B000000", "EN-B000001"))
    ]
    assert [d.id for d in emilia_yodas.read(paths)] == ["EN_long", "EN_long+EN-B000001"]


def test_the_rest_of_a_document_in_a_later_archive_has_another_id(tmp_path):
    held = {"EN-B000000": "EN_long", "EN-B000001": "EN_other", "EN-B000002": "EN_long"}
    paths = [
        yodas_corpus.write_corpus(tmp_path, {video: [(shard, clip(0.3))]}, shard=shard, first=n)
        for n, (shard, video) in enumerate(held.items())
    ]
    found = {d.id: [u.text for u in d.utterances] for d in emilia_yodas.read(paths)}
    assert found == {
        "EN_long": ["EN-B000000"],
        "EN_other": ["EN-B000001"],
        "EN_long+EN-B000002": ["EN-B000002"],
    }


def test_archives_of_several_languages_share_a_data_root(tmp_path):
    paths = [
        two_speakers(tmp_path),
        corpus.write_corpus(
            tmp_path, {"DE_B00000_S00000": [("Eins", clip(0.3))]}, shard="DE-B000000"
        ),
    ]
    assert emilia.data_root(paths) == tmp_path / "Emilia"
    assert {d.utterances[0].audio for d in emilia.read(paths)} == {
        "EN/EN-B000000.tar",
        "DE/DE-B000000.tar",
    }


NAME = "EN_B00000_S00099_W000000"


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (b"{broken", "not a JSON object"),
        (b"[]", "list"),
        (json.dumps({"id": NAME}).encode(), "'text' is missing"),
        (json.dumps({"id": NAME, "text": 3}).encode(), "not a string"),
        (json.dumps({"id": "other", "text": "t"}).encode(), "its files are named"),
        (json.dumps({"text": "t"}).encode(), "'id' is None"),
    ],
)
def test_a_malformed_row_is_rejected_and_the_others_are_kept(tmp_path, row, part):
    path = two_speakers(tmp_path, more={f"{NAME}.json": row, f"{NAME}.mp3": b"x"})
    bad, *good = emilia.read([path])
    assert isinstance(bad, Rejected) and part in bad.message and bad.reason == "malformed_row"
    assert bad.where == f"EN-B000000.tar:{NAME}.json"
    assert [document.id for document in good] == [ANN, BOB]


def test_incomplete_and_repeated_utterances_are_rejected(tmp_path):
    row = json.dumps({"id": NAME, "text": "t"}).encode()
    other = NAME.replace("W000000", "W000001")
    more = {f"{NAME}.json": row, f"{other}.mp3": b"x", f"./{ANN}_W000000.json": row}
    found = list(emilia.read([two_speakers(tmp_path, more=more)]))
    bad = [item for item in found if isinstance(item, Rejected)]
    assert [(item.reason, item.where) for item in bad] == [
        ("conflicting_duplicate", f"EN-B000000.tar:{ANN}_W000000.json"),
        ("missing", f"EN-B000000.tar:{NAME}.json"),
        ("malformed_row", f"EN-B000000.tar:{other}.mp3"),
    ]
    assert [item.id for item in found if isinstance(item, DocumentSource)] == [ANN, BOB]


@pytest.mark.parametrize("duration", ["long", -1, None, True, float("inf")])
def test_an_invalid_duration_is_ignored(tmp_path, duration):
    row = json.dumps({"id": NAME, "text": "t", "duration": duration}).encode()
    path = two_speakers(tmp_path, more={f"{NAME}.json": row, f"{NAME}.mp3": b"x"})
    *_, document = emilia.read([path])
    assert (document.id, document.utterances[0].seconds) == ("EN_B00000_S00099", None)


@pytest.mark.parametrize("cut", ["empty", "data", "header", "end mark"])
def test_the_error_of_a_truncated_archive_has_its_name(tmp_path, cut):
    path = two_speakers(tmp_path)
    with tarfile.open(path) as archive:
        sound, last = archive.getmembers()[-2:]
    keep = {
        "empty": 0,
        "data": sound.offset_data + sound.size // 2,
        "header": last.offset + 100,
        "end mark": last.offset_data + 512 * -(-last.size // 512),
    }
    path.write_bytes(path.read_bytes()[: keep[cut]])
    with pytest.raises(UserError, match=r"EN-B000000\.tar: .*download (it|the archive) again"):
        list(emilia.read([path]))


def test_an_archive_with_a_damaged_header_or_of_another_kind_is_an_error(tmp_path):
    path = two_speakers(tmp_path)
    with tarfile.open(path) as archive:
        header = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[header + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"EN-B000000\.tar: .*header .* is damaged; download it again"
    ):
        list(emilia.read([path]))
    with pytest.raises(UserError, match=r"is not a \.tar file"):
        list(emilia.read([path.rename(path.with_suffix(".zip"))]))
