"""Tokenization of sounds in archives: the same data set as from files, in constant memory."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_toys import (
    RATE,
    ToyCodec,
    documents_of,
    hum,
    make_corpus,
    quarantine_of,
    sound_bytes,
    tree,
    write_manifest,
    write_tar,
)

from tokenize_pipeline import encoding, worker
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

pytestmark = pytest.mark.usefixtures("toy_codec")


def run(source: str, output: Path, **changed):
    given = {"codec": "toy", "validation_fraction": 0.0, "shards": 3, **changed}
    return tokenize(TokenizeOptions(source, str(output), **given))


def pack(corpus: Path, suffix: str) -> str:
    """Writes the clips of `make_corpus` to an archive; returns a manifest of its members."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]
    clips = {row["audio"]: (corpus / row["audio"]).read_bytes() for row in rows}
    archive = corpus / f"clips{suffix}"
    if suffix == ".parquet":
        cells = [{"bytes": data, "path": name} for name, data in clips.items()]
        pq.write_table(pa.table({"audio": cells}), archive, row_group_size=5)
        member_of = {name: f"audio/{n // 5}/{n % 5}" for n, name in enumerate(clips)}
    else:
        write_tar(archive, {f"./{name}": data for name, data in clips.items()})
        member_of = {name: name for name in clips}
    rows = [{**row, "member": member_of[row["audio"]], "audio": archive.name} for row in rows]
    return write_manifest(corpus / "packed.jsonl", rows)


def shards(dataset: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(dataset).items() if name.startswith("train/")}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".parquet"])
def test_archives_give_the_same_documents_as_files(tmp_path, suffix, monkeypatch):
    source = make_corpus(tmp_path / "corpus")
    run(source, tmp_path / "files")
    run(pack(tmp_path / "corpus", suffix), tmp_path / "packed")
    wanted, found = (documents_of(tmp_path / name) for name in ("files", "packed"))
    assert list(wanted) == list(found)
    for name in wanted:
        for one, two in zip(wanted[name], found[name], strict=True):
            assert one.text == two.text
            np.testing.assert_array_equal(one.codes, two.codes)
    assert quarantine_of(tmp_path / "packed") == []
    # A compressed archive is read sequentially by one worker.
    assert len(shards(tmp_path / "packed")) == (2 if suffix in (".tar.gz", ".tgz") else 6)


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz", ".parquet"])
def test_windows_and_memory_limits_do_not_change_the_data_set(tmp_path, suffix, monkeypatch):
    source = make_corpus(tmp_path / "corpus")
    source = pack(tmp_path / "corpus", suffix) if suffix else source
    run(source, tmp_path / "one")
    monkeypatch.setattr(worker, "WINDOW_SECONDS", 0.5)
    monkeypatch.setattr(encoding, "HELD_BYTES", 20_000)
    run(source, tmp_path / "many")
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".parquet"])
def test_invariant_8_a_lost_shard_is_written_again_with_the_same_bytes(tmp_path, suffix):
    make_corpus(tmp_path / "corpus", documents=12)
    source = pack(tmp_path / "corpus", suffix)
    run(source, tmp_path / "data", validation_fraction=0.5)
    files = tree(tmp_path / "data")
    assert {name.split("/")[0] for name in files} >= {"train", "validation"}
    (tmp_path / "data/manifest.json").unlink()
    (tmp_path / "data/validation/shard-00000.array_record").unlink()
    run(source, tmp_path / "data", validation_fraction=0.5)
    assert tree(tmp_path / "data") == files


def test_windows_do_not_change_a_data_set_of_text(tmp_path, monkeypatch):
    source = tmp_path / "t.txt"
    source.write_text("".join(f"line {n}\n" for n in range(50)))
    run(str(source), tmp_path / "one", format="text")
    monkeypatch.setattr(worker, "WINDOW_DOCUMENTS", 3)
    run(str(source), tmp_path / "many", format="text")
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".parquet"])
def test_sounds_in_memory_do_not_exceed_the_limit(tmp_path, suffix, monkeypatch):
    held = []
    encode = encoding.SpeechEncoder._encode

    def spy(self, sounds, bad):
        held.append(sum(len(sound.content) for sound in sounds.values()))
        return encode(self, sounds, bad)

    monkeypatch.setattr(encoding.SpeechEncoder, "_encode", spy)
    monkeypatch.setattr(encoding, "HELD_BYTES", 40_000)
    make_corpus(tmp_path / "corpus", documents=20)
    largest = max(path.stat().st_size for path in (tmp_path / "corpus/clips").iterdir())
    run(pack(tmp_path / "corpus", suffix), tmp_path / "data", shards=1)
    assert max(held) < 40_000 + largest
    assert sum(held) == sum(p.stat().st_size for p in (tmp_path / "corpus/clips").iterdir())


def test_captions_of_a_member_give_the_same_codes_as_captions_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    sound = sound_bytes(hum(4.0), suffix="flac")
    write_tar(tmp_path / "c/a.tar.gz", {"long.flac": sound})
    (tmp_path / "c/long.flac").write_bytes(sound)
    times = [(0.5, 1.25), (2.0, None), (3.9, 4.3), (3.0, 5.0), (1.0, 0.5)]
    rows = [
        {"audio": "long.flac", "text": f"{n}", "start": start, "end": end, "document": "d"}
        for n, (start, end) in enumerate(times)
    ]
    packed = [{**row, "audio": "a.tar.gz", "member": row["audio"]} for row in rows]
    found = []
    for name, given in (("files", rows), ("packed", packed)):
        source = write_manifest(tmp_path / f"c/{name}.jsonl", given)
        run(source, tmp_path / name, max_bad_fraction=0.5)
        found.append(documents_of(tmp_path / name)["d"])
        bad = [row["reason"] for row in quarantine_of(tmp_path / name)]
        assert bad == ["truncated", "end_before_start"]
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.codes, two.codes)


def test_invariant_8_defects_in_an_archive_are_quarantined_with_a_reason(tmp_path):
    (tmp_path / "c").mkdir()
    good, silent = sound_bytes(hum(1.0)), sound_bytes(np.zeros(RATE, np.float32))
    members = {"good.wav": good, "silent.wav": silent, "short.wav": good[:4000], "x": b"no sound"}
    write_tar(tmp_path / "c/a.tar", {**members, "long.wav": sound_bytes(hum(6.0)), "0": b""})
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE)  # not compressible
    sounds = {"one.wav": sound_bytes(noise[:RATE]), "two.wav": sound_bytes(noise)}
    whole = write_tar(tmp_path / "c/cut.tar.gz", sounds)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    (tmp_path / "c/noise.parquet").write_bytes(b"noise" * 100)
    write_tar(tmp_path / "outside.tar", members)
    bad = [
        ("a.tar", "silent.wav", "silent"),
        ("a.tar", "short.wav", "truncated"),
        ("a.tar", "x", "undecodable"),
        ("a.tar", "0", "empty"),
        ("a.tar", "absent.wav", "missing"),
        ("a.tar", "long.wav", "too_long"),
        ("absent.tar", "good.wav", "missing"),
        ("cut.tar.gz", "two.wav", "truncated"),
        ("noise.parquet", "audio/0/0", "undecodable"),
        ("../outside.tar", "good.wav", "outside_data_root"),
        (str(tmp_path / "outside.tar"), "good.wav", "outside_data_root"),
        ("clip.wav", "good.wav", "malformed_row"),
    ]
    kept = [("a.tar", "good.wav", ""), ("cut.tar.gz", "one.wav", "")]
    rows = [
        {"audio": audio, "member": member, "text": "t", "document": "d", "order": n}
        for n, (audio, member, _) in enumerate(kept + bad)
    ]
    source = write_manifest(tmp_path / "c/m.jsonl", rows)
    run(source, tmp_path / "data", max_audio_seconds=5.0, max_bad_fraction=0.9)
    assert len(documents_of(tmp_path / "data")["d"]) == 2
    found = quarantine_of(tmp_path / "data")
    assert [row["reason"] for row in found] == [reason for _, _, reason in bad]
    for row, (audio, member, reason) in zip(found, bad, strict=True):
        assert row["file"] == audio
        if reason not in ("too_long", "outside_data_root", "malformed_row"):
            assert audio in row["message"] and member in row["message"]
        assert str(tmp_path) not in row["message"] or str(tmp_path) in audio


def test_a_compressed_archive_is_read_once_for_a_whole_shard(tmp_path, monkeypatch):
    from tokenize_pipeline import archives

    opened = []
    stream = archives.TarStream
    monkeypatch.setattr(archives, "TarStream", lambda path: opened.append(path) or stream(path))
    monkeypatch.setattr(worker, "WINDOW_SECONDS", 1.0)
    make_corpus(tmp_path / "corpus", documents=12)
    run(pack(tmp_path / "corpus", ".tar.gz"), tmp_path / "data")
    assert len(opened) == 1


def test_wrong_lengths_in_the_metadata_do_not_change_the_codes(tmp_path):
    (tmp_path / "c").mkdir()
    write_tar(tmp_path / "c/a.tar", {"a.wav": sound_bytes(hum(1.5))})
    rows = [
        {"audio": "a.tar", "member": "a.wav", "text": "t", "document": str(n), "seconds": seconds}
        for n, seconds in enumerate((0, -3, 1e9, 0.001))
    ]
    summary = run(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data")
    assert summary.bad == {}
    frames = [len(us[0].codes) for us in documents_of(tmp_path / "data").values()]
    assert frames == [len(ToyCodec().encode([hum(1.5)])[0])] * 4
