"""Tokenization of LibriSpeech, MLS, CVSS-T and Seed-TTS-eval in their published layouts."""

from pathlib import Path

import numpy as np
import pytest
from corpora import cvss_t, librispeech, mls, seed_tts_eval
from corpora.speech import spoken
from pipeline_toys import RATE, ToyCodec, documents_of, quarantine_of, write_tar

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

pytestmark = pytest.mark.usefixtures("toy_codec")


def run(source: Path | str, output: Path, **changed):
    given = {"codec": "toy", "validation_fraction": 0.0, "shards": 2, **changed}
    return tokenize(TokenizeOptions(str(source), str(output), **given))


def codes(clip: np.ndarray) -> np.ndarray:
    return ToyCodec().encode([clip])[0]


def assert_equal(found: dict[str, list], wanted: dict[str, list[tuple[str, np.ndarray]]]) -> None:
    """Checks that the documents have the texts and the codes of the clips."""
    assert set(found) == set(wanted)
    for name, utterances in wanted.items():
        assert [u.text for u in found[name]] == [text for text, _ in utterances]
        for utterance, (_, clip) in zip(found[name], utterances, strict=True):
            np.testing.assert_array_equal(utterance.codes, codes(clip))


@pytest.mark.parametrize("archive", ["", "dev-clean.tar.gz", "dev-clean.tar"])
def test_documents_of_librispeech_are_chapters_unpacked_or_in_an_archive(tmp_path, archive):
    chapters = {
        f"dev-clean/{s}/{s}1": [(f"WORDS {n}", c) for n, c in enumerate(spoken(4, first))]
        for first, s in enumerate((3, 5, 8))
    }
    path = librispeech.write_corpus(tmp_path / "in", chapters, archive=archive, rate=RATE)
    source = path if archive else path / "LibriSpeech/*/*/*/*.trans.txt"
    run(source, tmp_path / "out", format="librispeech")
    wanted = {
        f"librispeech/dev-clean/{name.split('/')[1]}-{name.split('/')[2]}": [
            (text.lower(), clip) for text, clip in utterances
        ]
        for name, utterances in chapters.items()
    }
    assert_equal(documents_of(tmp_path / "out"), wanted)
    assert quarantine_of(tmp_path / "out") == []
    run(source, tmp_path / "held-out", format="librispeech", validation_fraction=1.0)
    assert_equal(documents_of(tmp_path / "held-out", "validation"), wanted)


@pytest.mark.parametrize("archive", ["", "mls_polish.tar.gz"])
def test_documents_of_mls_are_consecutive_utterances_of_a_recording(tmp_path, archive):
    first, second, third = spoken(3)
    rows = [
        ("1_2_000000", "a", 50.0, "later", second),
        ("1_2_000001", "a", 50.0 - len(first) / RATE, "before", first),
        ("3_4_000000", "b", 0.0, "alone", third),
    ]
    options = {"corpus": "mls_polish", "rate": RATE}
    path = mls.write_corpus(tmp_path / "in", {"train": rows}, archive=archive, **options)
    source = path if archive else path / "mls_polish/train/transcripts.txt"
    run(source, tmp_path / "out", format="mls")
    wanted = {
        "1_2_000001": [("before", first), ("later", second)],
        "3_4_000000": [("alone", third)],
    }
    assert_equal(
        documents_of(tmp_path / "out"),
        {f"mls_polish/train/{name}": utterances for name, utterances in wanted.items()},
    )


@pytest.mark.parametrize("packed", [False, True])
def test_documents_of_cvss_are_pairs_of_source_and_translation(tmp_path, packed):
    pairs = [
        (n, f"Quelle {n}.", source, f"source {n}", target)
        for n, (source, target) in enumerate(zip(spoken(4), spoken(4, first=4), strict=True))
    ]
    folder = tmp_path / "in"
    voice = cvss_t.write_common_voice(folder, pairs, rate=RATE)
    if packed:
        cvss_t.write_common_voice(folder / "packed", pairs, archive=".tar", rate=RATE)
    suffix = ".tar.gz" if packed else ""
    path = cvss_t.write_cvss(
        folder / "packed" if packed else folder, {"train": pairs}, archive=suffix, rate=RATE
    )
    run(path if packed else path / "train.tsv", tmp_path / "out", format="cvss_t")
    found = documents_of(tmp_path / "out")
    assert len(found) == 4
    for number, source_text, _, text, target in pairs:
        source, translation = found[f"cvss_t/de/train/common_voice_de_{number}"]
        assert (source.text, translation.text) == (source_text, text)
        np.testing.assert_array_equal(translation.codes, codes(target))
        mp3 = read_audio(voice / f"clips/common_voice_de_{number}.mp3", RATE)
        np.testing.assert_array_equal(source.codes, codes(mp3))


@pytest.mark.parametrize("archive", ["", "seedtts_testset.tar"])
def test_documents_of_seed_tts_eval_are_prompts_with_their_recordings(tmp_path, archive):
    prompt, said = spoken(2)
    items = [
        ("p", "Prompt.", prompt, "p-q", "Said.", said),
        ("p", "Prompt.", prompt, "p-r", "Not.", None),
    ]
    path = seed_tts_eval.write_corpus(tmp_path / "in", items, archive=archive, rate=RATE)
    run(path, tmp_path / "out", format="seed_tts_eval")
    base = "seed_tts_eval/en/meta"
    wanted = {
        f"{base}/p-q": [("Prompt.", prompt), ("Said.", said)],
        f"{base}/p-r": [("Prompt.", prompt)],
    }
    assert_equal(documents_of(tmp_path / "out"), wanted)


def test_a_sound_missing_in_an_archive_is_quarantined_and_the_rest_of_the_chapter_is_kept(tmp_path):
    chapter = list(zip("AB", spoken(2), strict=True))
    files = librispeech.corpus_files({"dev-clean/3/1": chapter}, RATE)
    del files["LibriSpeech/dev-clean/3/1/3-1-0000.flac"]
    path = write_tar(tmp_path / "a.tar.gz", files)
    run(path, tmp_path / "out", format="librispeech", max_bad_fraction=0.5)
    assert [u.text for u in documents_of(tmp_path / "out")["librispeech/dev-clean/3-1"]] == ["b"]
    (row,) = quarantine_of(tmp_path / "out")
    assert (row["reason"], row["file"]) == ("missing", "a.tar.gz")
    assert "3-1-0000.flac" in row["message"] and str(tmp_path) not in row["message"]


def test_a_corpus_without_its_metadata_writes_nothing(tmp_path):
    source, target = spoken(2)
    cvss_t.write_cvss(tmp_path / "in", {"train": [(1, "a", source, "b", target)]}, rate=RATE)
    with pytest.raises(UserError, match="Common Voice release 4"):
        run(tmp_path / "in/cvss_t_de_en_v1.0/train.tsv", tmp_path / "out", format="cvss_t")
    assert not (tmp_path / "out/manifest.json").exists()
