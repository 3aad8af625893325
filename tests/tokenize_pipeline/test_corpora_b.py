"""Tokenization of YODAS2, Emilia, Nemotron-CC and FineWeb in their published layouts."""

import tarfile

import numpy as np
import pytest
from corpora import emilia, emilia_yodas, fineweb, nemotron_cc, yodas2
from corpora.speech import spoken
from pipeline_toys import RATE, ToyCodec, documents_of, quarantine_of, tree

from soda_jax.codecs.audio import read_audio
from soda_jax.errors import UserError
from tokenize_pipeline.job import tokenize
from tokenize_pipeline.options import TokenizeOptions

pytestmark = pytest.mark.usefixtures("toy_codec")


def run(source, output, **changed):
    given = {"codec": "toy", "validation_fraction": 0.0, "shards": 2, **changed}
    return tokenize(TokenizeOptions(str(source), str(output), **given))


def test_documents_of_yodas2_are_videos_with_the_sound_of_each_caption(tmp_path):
    sounds = {f"video-{v}": spoken(3, first=3 * v) for v in range(3)}
    videos = {
        video: [(f" {video} {n}\n", clip) for n, clip in enumerate(found)]
        for video, found in sounds.items()
    }
    empty = {f"{video}-00009-00000010-00000010": "no length" for video in videos}
    path = yodas2.write_corpus(tmp_path, videos, rate=RATE, more=empty)
    run(path, tmp_path / "out", format="yodas2")
    found = documents_of(tmp_path / "out")
    assert set(found) == set(videos)
    for video, utterances in found.items():
        assert [u.text for u in utterances] == [f"{video} {n}" for n in range(3)]
        for utterance, clip in zip(utterances, sounds[video], strict=True):
            np.testing.assert_array_equal(utterance.codes, ToyCodec().encode([clip])[0])
    assert quarantine_of(tmp_path / "out") == []


def test_a_caption_after_the_end_of_its_video_is_quarantined_and_the_others_are_kept(tmp_path):
    late = {"v-00001-00100000-00100100": "long after the end"}
    (clip,) = spoken(1)
    path = yodas2.write_corpus(tmp_path, {"v": [("kept", clip)]}, rate=RATE, more=late)
    run(path, tmp_path / "out", format="yodas2", max_bad_fraction=0.5)
    assert [u.text for u in documents_of(tmp_path / "out")["v"]] == ["kept"]
    (row,) = quarantine_of(tmp_path / "out")
    assert (row["reason"], row["document"]) == ("truncated", "v")
    assert str(tmp_path) not in row["message"]


@pytest.mark.parametrize("name", ["emilia", "emilia_yodas"])
def test_documents_of_emilia_have_stripped_texts_and_the_sound_of_each_mp3(tmp_path, name):
    corpus = {"emilia": emilia, "emilia_yodas": emilia_yodas}[name]
    prefixes = ["EN_B00000_S00000", "EN_B00000_S00013"]
    speakers = {
        p: [(f" {p} {n}", clip) for n, clip in enumerate(spoken(3, first=3 * number))]
        for number, p in enumerate(prefixes)
    }
    path = corpus.write_corpus(tmp_path, speakers, rate=RATE)
    run(path, tmp_path / "out", format=name)
    found = documents_of(tmp_path / "out")
    assert set(found) == set(prefixes)
    for prefix, utterances in found.items():
        assert [u.text for u in utterances] == [f"{prefix} {n}" for n in range(3)]
        for number, utterance in enumerate(utterances):
            with tarfile.open(path) as archive:
                sound = archive.extractfile(f"{prefix}_W{number:06d}.mp3").read()
            (tmp_path / "one.mp3").write_bytes(sound)
            alone = ToyCodec().encode([read_audio(tmp_path / "one.mp3", RATE)])[0]
            np.testing.assert_array_equal(utterance.codes, alone)


def test_the_data_set_does_not_depend_on_the_folder_of_the_archives(tmp_path):
    for folder in ("here", "there/and/deeper"):
        videos = {v: [("one", clip)] for v, clip in zip("vw", spoken(2), strict=True)}
        path = yodas2.write_corpus(tmp_path / folder, videos, rate=RATE)
        run(path, tmp_path / folder / "out", format="yodas2")
    assert tree(tmp_path / "here/out") == tree(tmp_path / "there/and/deeper/out")


def test_a_data_root_other_than_that_of_the_corpus_is_rejected(tmp_path):
    (clip,) = spoken(1)
    path = yodas2.write_corpus(tmp_path, {"v": [("one", clip)]}, rate=RATE)
    with pytest.raises(UserError, match="--format=yodas2 derives the folder of the audio"):
        run(path, tmp_path / "out", format="yodas2", data_root=str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("corpus", [fineweb, nemotron_cc])
def test_web_text_is_tokenized(tmp_path, corpus):
    pages = [(f"page-{n}", f"Words of page {n}\nin two lines") for n in range(40)]
    summary = run(corpus.write_corpus(tmp_path, pages), tmp_path / "out", format="text")
    assert summary.manifest.kind == "text"
    found = documents_of(tmp_path / "out")
    texts = {name.partition("#")[0]: us[0].text for name, us in found.items()}
    assert texts == dict(pages)
