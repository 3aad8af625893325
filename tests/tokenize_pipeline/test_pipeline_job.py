"""Jobs in one process: the data set, the quarantine, and a repeated run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pipeline_toys import (
    RATE,
    ToyCodec,
    documents_of,
    hum,
    make_corpus,
    quarantine_of,
    tree,
    write_manifest,
    write_tar,
)

from soda_jax.codecs.audio import read_audio
from soda_jax.data.format.manifest import Manifest
from soda_jax.errors import UserError
from soda_jax.tokens import View, parse, render
from soda_jax.tokens.text import load_tokenizer
from tokenize_pipeline import encoding
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.merge import TooManyBadInputsError
from tokenize_pipeline.options import TokenizeOptions
from tokenize_pipeline.quarantine import REASONS

pytestmark = pytest.mark.usefixtures("toy_codec")


def run(source: str, output: Path, **changed):
    given = {"codec": "toy", "validation_fraction": 0.0, "shards": 3, **changed}
    return tokenize(TokenizeOptions(source, str(output), **given))


def test_codes_and_texts_match_each_clip_encoded_by_itself(tmp_path):
    source = make_corpus(tmp_path / "corpus")
    run(source, tmp_path / "data")
    found = documents_of(tmp_path / "data")
    assert list(found) == [f"d{n}" for n in range(6)]
    codec, tokenizer = ToyCodec(), load_tokenizer("bytes")
    for d in range(6):
        for u, utterance in enumerate(found[f"d{d}"]):
            audio = read_audio(tmp_path / f"corpus/clips/{d}-{u}.wav", RATE)
            np.testing.assert_array_equal(utterance.codes, codec.encode([audio])[0])
            assert utterance.text == f"hum {d} {u}"
            assert tokenizer.decode(utterance.text_ids) == utterance.text


def test_start_and_end_cut_the_file_and_any_rate_is_resampled(tmp_path):
    stereo = np.stack([hum(2.0, rate=22_050)] * 2, axis=1)
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c/long.flac", stereo, 22_050)
    rows = [{"audio": "long.flac", "text": "cut", "start": 0.5, "end": 1.25}]
    run(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data")
    (utterances,) = documents_of(tmp_path / "data").values()
    assert utterances[0].codes.shape == (8, 3)


def test_a_clip_over_sixty_seconds_is_encoded_in_pieces(tmp_path, monkeypatch):
    longest = []
    encode = ToyCodec.encode

    def spy(self, audio):
        longest.append(max(len(samples) for samples in audio) / RATE)
        return encode(self, audio)

    monkeypatch.setattr(ToyCodec, "encode", spy)
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c/a.wav", hum(125.0), RATE)
    soundfile.write(tmp_path / "c/b.wav", hum(1.0), RATE)
    rows = [{"audio": name, "text": "t", "document": "d"} for name in ("a.wav", "b.wav")]
    run(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data")
    (utterances,) = documents_of(tmp_path / "data").values()
    assert [len(u.codes) for u in utterances] == [1250, 10]
    assert max(longest) <= 60.0


def test_files_with_a_wrong_length_in_their_header_are_stored_whole_or_quarantined(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    soundfile.write(folder / "flac.flac", hum(6.0), RATE)
    flac = (folder / "flac.flac").read_bytes()
    flac = flac[:21] + bytes([flac[21] & 0xF0]) + bytes(20) + flac[42:]
    (folder / "flac.flac").write_bytes(flac)
    (folder / "cut.flac").write_bytes(flac[:-9])
    soundfile.write(folder / "one.mp3", hum(6.0), RATE)
    mp3 = (folder / "one.mp3").read_bytes()
    (folder / "joined.mp3").write_bytes(mp3 + mp3)
    (folder / "cut.mp3").write_bytes(mp3[:-9])
    soundfile.write(folder / "pipe.wav", hum(6.0), RATE)
    wav = bytearray((folder / "pipe.wav").read_bytes())
    wav[4:8] = wav[40:44] = bytes(4)
    (folder / "pipe.wav").write_bytes(wav)
    names = ["flac.flac", "joined.mp3", "pipe.wav", "cut.flac", "cut.mp3"]
    write_tar(folder / "a.tar", {name: (folder / name).read_bytes() for name in names})
    rows = [{"audio": name, "text": "t", "document": name} for name in names]
    rows += [{"audio": "a.tar", "member": n, "text": "t", "document": f"tar {n}"} for n in names]
    source = write_manifest(folder / "m.jsonl", rows)
    run(source, tmp_path / "data", max_bad_fraction=0.5, max_audio_seconds=1e18)
    found = {name: len(u[0].codes) for name, u in documents_of(tmp_path / "data").items()}
    whole = {"flac.flac": 60, "joined.mp3": 120, "pipe.wav": 60}
    assert found == whole | {f"tar {name}": frames for name, frames in whole.items()}
    assert [row["reason"] for row in quarantine_of(tmp_path / "data")] == ["truncated"] * 4
    run(source, tmp_path / "short", max_bad_fraction=0.9, max_audio_seconds=10.0)
    reasons = {row["document"]: row["reason"] for row in quarantine_of(tmp_path / "short")}
    assert reasons["joined.mp3"] == reasons["tar joined.mp3"] == "too_long"


def bad_corpus(folder: Path) -> str:
    """Writes a document "d" with one good utterance and one bad utterance of each kind."""
    folder.mkdir()
    tone = hum(1.0)
    soundfile.write(folder / "good.wav", tone, RATE)
    soundfile.write(folder / "long.wav", hum(6.0), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(folder / "none.wav", tone[:0], RATE)
    soundfile.write(folder / "nan.wav", np.where(tone > 0.5, np.nan, tone), RATE, subtype="FLOAT")
    soundfile.write(folder / "int16.wav", tone * 20_000, RATE, subtype="FLOAT")
    soundfile.write(folder / "phase.wav", np.stack([tone, -tone], axis=1), RATE)
    (folder / "short.wav").write_bytes((folder / "good.wav").read_bytes()[:4000])
    (folder / "noise.wav").write_bytes(b"this is not a sound")
    (folder / "zero.wav").write_bytes(b"")
    soundfile.write(folder.parent / "secret.wav", tone, RATE)
    bad = {
        "missing": {"audio": "absent.wav"},
        "undecodable": {"audio": "noise.wav"},
        "truncated": {"audio": "short.wav"},
        "empty": {"audio": "none.wav"},
        "not_finite": {"audio": "nan.wav"},
        "wrong_scale": {"audio": "int16.wav"},
        "silent": {"audio": "silent.wav"},
        "channels_cancel": {"audio": "phase.wav"},
        "end_before_start": {"audio": "good.wav", "start": 0.8, "end": 0.2},
        "too_long": {"audio": "long.wav"},
        "outside_data_root": {"audio": "../secret.wav"},
        "empty_text": {"audio": "good.wav", "text": " \n"},
        "invalid_utf8": {"audio": "good.wav", "text": "\udce9"},
    }
    rows = [{"audio": "good.wav", "text": "kept", "document": "d", "order": -1}]
    rows += [
        {"text": "t", "document": "d", "order": n, **row} for n, row in enumerate(bad.values())
    ]
    rows += [
        {"audio": "zero.wav", "text": "t", "document": "only-bad"},
        {"audio": str(folder.parent / "secret.wav"), "text": "t", "document": "only-bad"},
        {"audio": "good.wav", "text": "t", "start": 3.0, "document": "only-bad"},
        {"text": "no audio", "document": "only-bad"},
    ]
    return write_manifest(folder / "manifest.jsonl", rows)


def test_invariant_8_every_bad_input_is_quarantined_with_its_reason(tmp_path):
    source = bad_corpus(tmp_path / "corpus")
    summary = run(source, tmp_path / "data", max_audio_seconds=5.0, max_bad_fraction=0.95)
    found = documents_of(tmp_path / "data")
    assert {name: [u.text for u in us] for name, us in found.items()} == {"d": ["kept"]}
    rows = quarantine_of(tmp_path / "data")
    by_reason = {row["reason"]: row for row in rows if row["document"] == "d"}
    every = set(REASONS) - {"malformed_row", "not_in_tokenizer"}
    every -= {"nul", "duplicate", "conflicting_duplicate"}  # see test_rows.py
    assert set(by_reason) == every
    assert all(by_reason[reason]["utterance"] == n + 1 for n, reason in enumerate(every_in_order()))
    others = [row["reason"] for row in rows if row["document"] == "only-bad"]
    assert sorted(others) == ["empty", "malformed_row", "outside_data_root", "truncated"]
    assert summary.dropped_documents == 1
    assert sum(summary.bad.values()) == len(rows) == 17
    assert Manifest.load(tmp_path / "data").quarantined == summary.bad
    # The data set does not contain folders of the machine, except paths of the corpus.
    assert not [
        row for row in rows if str(tmp_path) in row["message"] and "secret" not in row["file"]
    ]


def every_in_order() -> list[str]:
    return [
        *("missing", "undecodable", "truncated", "empty", "not_finite", "wrong_scale", "silent"),
        "channels_cancel",
        *("end_before_start", "too_long", "outside_data_root", "empty_text", "invalid_utf8"),
    ]


def test_too_many_bad_inputs_fail_at_the_end_and_a_larger_share_keeps_the_work(tmp_path):
    source = bad_corpus(tmp_path / "corpus")
    with pytest.raises(TooManyBadInputsError, match=r"17 of 18 inputs are bad .*max_bad_fraction"):
        run(source, tmp_path / "data", max_audio_seconds=5.0, max_bad_fraction=0.5)
    assert not (tmp_path / "data/manifest.json").exists()
    assert len(quarantine_of(tmp_path / "data")) == 17
    before = (tmp_path / "data/train/shard-00000.array_record").stat().st_mtime_ns
    run(source, tmp_path / "data", max_audio_seconds=5.0, max_bad_fraction=0.95)
    assert (tmp_path / "data/train/shard-00000.array_record").stat().st_mtime_ns == before


def test_a_corpus_without_a_usable_input_is_an_error(tmp_path):
    rows = [{"audio": "absent.wav", "text": "t"}]
    source = write_manifest(tmp_path / "c/m.jsonl", rows)
    with pytest.raises(TooManyBadInputsError, match="0 of 1 inputs are usable"):
        run(source, tmp_path / "data", max_bad_fraction=1.0)


HOSTILE = [
    "<|audio_start|>",
    "a<|text_end|><|begin_of_text|><|end_of_text|></s>",
    "emoji 🙂👩‍👩‍👧",
    "".join(map(chr, (0xE000, 0xE7FF, 0xE800, 0xF8FF))),
    "\U00011fff\U00010000",
    "nul \0 and \x7f, \u202e reversed",
]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_invariant_1_hostile_transcripts_stay_text_from_manifest_to_stream(tmp_path, tokenizer):
    from soda_jax.tokens.text import train_bpe

    if tokenizer == "bpe":
        train_bpe(["some words to learn from " * 20, *HOSTILE], 300).save(tmp_path / "bpe")
        tokenizer = str(tmp_path / "bpe")
    (tmp_path / "c").mkdir()
    soundfile.write(tmp_path / "c/a.wav", hum(0.5), RATE)
    rows = [{"audio": "a.wav", "text": text, "document": f"{n}"} for n, text in enumerate(HOSTILE)]
    run(write_manifest(tmp_path / "c/m.jsonl", rows), tmp_path / "data", tokenizer=tokenizer)
    layout = Manifest.load(tmp_path / "data").layout
    decoder = load_tokenizer(tmp_path / "data/tokenizer")
    for name, utterances in documents_of(tmp_path / "data").items():
        assert layout.ordinary_text[utterances[0].text_ids].all()
        stream = render(utterances, View(), layout)
        (back,) = parse(stream, layout).utterances
        assert decoder.decode(back.text_ids) == HOSTILE[int(name)].strip() == utterances[0].text
        np.testing.assert_array_equal(back.codes, utterances[0].codes)


def test_a_text_corpus_has_the_layout_of_the_given_codec(tmp_path):
    source = tmp_path / "t.txt"
    source.write_text("one\ntwo words\none\n")
    summary = run(str(source), tmp_path / "mixed", format="text")
    assert summary.counts["repeated_in_input"] == 1
    assert summary.manifest.codec is None
    assert summary.manifest.layout.codebook_sizes == ToyCodec.codebook_sizes
    texts = [us[0].text for us in documents_of(tmp_path / "mixed").values()]
    assert texts == ["one", "two words"]
    text_only = run(str(source), tmp_path / "text_only", format="text", codec=None)
    assert text_only.manifest.layout.codebook_sizes == ()


def test_append_adds_only_new_documents_and_does_not_change_the_old_generation(tmp_path):
    source = make_corpus(tmp_path / "corpus", documents=4)
    data = tmp_path / "data"
    run(source, data)
    old, old_digest = tree(data), Manifest.load(data).digest
    more = make_corpus(tmp_path / "corpus", documents=7)
    summary = run(more, data, append=True)
    assert summary.counts["already_in_dataset"] == 4
    assert Manifest.load(data, 0).digest == old_digest
    assert list(documents_of(data, generation=0)) == [f"d{n}" for n in range(4)]
    assert list(documents_of(data)) == [f"d{n}" for n in range(7)]
    new = tree(data)
    changed = {name for name in old if new[name] != old[name]}
    assert changed == {"manifest.json"}
    # The same command again, as after a kill that follows the last rename.
    assert run(more, data, append=True).state == "was finished already"
    assert tree(data) == new
    assert run(more, data, append=True, shards=2).state == "nothing to add"
    assert tree(data) == new


def test_a_repeated_append_with_a_bad_document_changes_nothing(tmp_path):
    data = tmp_path / "data"
    run(make_corpus(tmp_path / "corpus", documents=2), data)
    more = make_corpus(tmp_path / "corpus", documents=4)
    with open(more, "a") as file:
        file.write('{"audio": "absent.wav", "text": "t", "document": "bad"}\n{broken\n')
    assert run(more, data, append=True, max_bad_fraction=0.5).state == "finished"
    files = tree(data)
    for fraction in (0.5, 0.0):
        again = run(more, data, append=True, max_bad_fraction=fraction)
        assert (again.state, again.manifest.generation) == ("was finished already", 1)
        assert tree(data) == files
    assert len(quarantine_of(data)) == 2
    # The next append makes the next generation.
    assert (
        run(make_corpus(tmp_path / "corpus", documents=5), data, append=True).counts[
            "already_in_dataset"
        ]
        == 4
    )
    assert Manifest.load(data).generation == 2


def test_an_append_without_a_usable_document_does_not_change_the_data_set(tmp_path):
    data = tmp_path / "data"
    bad = [{"audio": "absent.wav", "text": "t", "document": "bad"}]
    source = make_corpus(tmp_path / "corpus", documents=2)
    with open(source, "a") as file:
        file.write(json.dumps(bad[0]) + "\n")
    run(source, data, max_bad_fraction=0.5)
    files = tree(data)
    for given in (source, write_manifest(tmp_path / "corpus/bad.jsonl", bad)):
        with pytest.raises(
            TooManyBadInputsError, match=r"0 of 1 new inputs are usable \(1 missing"
        ):
            run(given, data, append=True)
        assert tree(data) == files
        summary = run(given, data, append=True, max_bad_fraction=1.0)
        assert (summary.state, summary.bad) == ("nothing to add", {"missing": 1})
        assert "bad inputs, skipped: 1 missing" in summary.describe("data")
        assert tree(data) == files
    # A fixed input is appended like a new one.
    soundfile.write(tmp_path / "corpus/absent.wav", hum(0.5), RATE)
    assert run(source, data, append=True).manifest.generation == 1
    assert list(documents_of(data)) == ["d0", "d1", "bad"]


def test_append_refuses_another_tokenizer_or_codec(tmp_path, monkeypatch):
    source = make_corpus(tmp_path / "corpus", documents=2)
    run(source, tmp_path / "data")
    with pytest.raises(UserError, match="--append needs a finished data set"):
        run(source, tmp_path / "new", append=True)
    other = ToyCodec()
    other.fingerprint = "toy-2"
    monkeypatch.setattr(encoding, "load_codec", lambda spec: other)
    encoding.cached_codec.cache_clear()
    with pytest.raises(UserError, match=r"toy-1.*toy-2"):
        run(source, tmp_path / "data", append=True)


def test_a_second_run_does_nothing_and_other_settings_are_refused(tmp_path):
    source = make_corpus(tmp_path / "corpus", documents=2)
    run(source, tmp_path / "data")
    files = tree(tmp_path / "data")
    assert run(source, tmp_path / "data").state == "was finished already"
    with pytest.raises(UserError, match=r"--shards was 3 .* is 2 now.*another --output"):
        run(source, tmp_path / "data", shards=2)
    with pytest.raises(UserError, match="--data_root was"):
        run(source, tmp_path / "data", data_root=str(tmp_path))
    assert tree(tmp_path / "data") == files


def test_the_bytes_do_not_depend_on_the_folders_of_corpus_and_data_set(tmp_path):
    source = make_corpus(tmp_path / "corpus")
    run(source, tmp_path / "data")
    shutil.move(tmp_path / "corpus", tmp_path / "moved")
    run(str(tmp_path / "moved/manifest.jsonl"), tmp_path / "elsewhere/data")
    assert tree(tmp_path / "data") == tree(tmp_path / "elsewhere/data")


def test_a_beam_runner_writes_the_same_bytes(tmp_path):
    pytest.importorskip("apache_beam")
    source = make_corpus(tmp_path / "corpus")
    run(source, tmp_path / "one")
    run(source, tmp_path / "two", runner="BundleBasedDirectRunner")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("damage", ["flip", "remove", "foreign"])
def test_invariant_8_a_damaged_or_foreign_shard_is_written_again(tmp_path, damage):
    source = make_corpus(tmp_path / "corpus")
    data = tmp_path / "data"
    run(source, data)
    files = tree(data)
    (data / "manifest.json").unlink()
    shard = data / "train/shard-00001.array_record"
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif damage == "remove":
        shard.unlink()
    else:
        result = data / "plan/0000/results/train-00001.json"
        value = json.loads(result.read_text())
        result.write_text(json.dumps({**value, "plan_digest": "0"}))
    run(source, data)
    assert tree(data) == files


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"codec": None}, "--codec=mel:DIR"),
        ({"format": "yodas9"}, "one of .*manifest.*text"),
        ({"data_root": "/nowhere/at/all"}, "--data_root=.* is not a folder"),
        ({"validation_fraction": 1.5}, "between 0 and 1"),
        ({"shards": -1}, "must not be negative"),
        ({"workers": -1}, "--workers=-1 must not be negative"),
        ({"workers": 2, "runner": "dask"}, "--workers=2 is for this machine"),
        ({"beam_options": ("--direct_num_workers=2",)}, "options of Beam need --runner"),
        ({"beam_options": ("--max_bad_fractoin=1",)}, "did you mean --max_bad_fraction?"),
        ({"runner": "NoSuchRunner"}, "--runner=NoSuchRunner is neither dask nor a runner"),
        (
            {"runner": "FlinkRunner", "beam_options": ("--flink_mastre=x",)},
            "did you mean --flink_master?",
        ),
        (
            {"runner": "FlinkRunner", "beam_options": ("--max_bad_fractoin=1",)},
            "did you mean --max_bad_fraction?",
        ),
    ],
)
def test_wrong_settings_are_one_line_and_write_nothing(tmp_path, changed, message):
    source = make_corpus(tmp_path / "corpus", documents=1, utterances=1)
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "data", **changed)
    assert not (tmp_path / "data").exists()


def test_an_output_that_is_a_url_is_refused_and_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    source = make_corpus(tmp_path / "corpus", documents=1, utterances=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a URL: soda tokenize writes a local folder"):
        tokenize(TokenizeOptions(source, "gs://bucket/data", codec="toy"))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    source = make_corpus(tmp_path / "corpus", documents=1, utterances=1)
    with pytest.raises(UserError, match="contains other files"):
        run(source, tmp_path / "corpus")
    with pytest.raises(UserError, match="matches no file"):
        run(str(tmp_path / "absent*.jsonl"), tmp_path / "data")
