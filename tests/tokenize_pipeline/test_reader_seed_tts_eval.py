"""The reader of Seed-TTS-eval: prompts, and texts that have a recording."""

import pytest
from corpora import seed_tts_eval as corpus
from pipeline_toys import hum, write_tar

from soda_jax.errors import UserError
from tokenize_pipeline.readers import Rejected, seed_tts_eval

CLIP = hum(0.3)
ITEMS = [
    ("voice_1", "We asked over twenty people.", CLIP, "voice_1-voice_2", "Get the fund.", CLIP),
    ("voice_1", "We asked over twenty people.", CLIP, "voice_1-voice_3", "Not recorded.", None),
]


@pytest.mark.parametrize("archive", ["", "seedtts_testset.tar"])
def test_a_document_is_the_prompt_and_the_recorded_text(tmp_path, archive):
    path = corpus.write_corpus(tmp_path, ITEMS, archive=archive, rate=8000)
    assert seed_tts_eval.data_root([path]) == tmp_path
    both, prompt = seed_tts_eval.read([path])
    assert both.id == "seed_tts_eval/en/meta/voice_1-voice_2"
    assert [u.text for u in both.utterances] == [ITEMS[0][1], ITEMS[0][4]]
    base = "seedtts_testset/en"
    sounds = [f"{base}/prompt-wavs/voice_1.wav", f"{base}/wavs/voice_1-voice_2.wav"]
    assert [u.member if archive else u.audio for u in both.utterances] == sounds
    assert {u.audio for u in both.utterances} == ({archive} if archive else set(sounds))
    assert {u.language for u in both.utterances} == {"en"}
    assert [u.text for u in prompt.utterances] == [ITEMS[1][1]]
    assert prompt.utterances[0].where == "en/meta.lst:2"


def test_lengths_are_estimated_from_sizes_in_the_archive(tmp_path):
    prompt, said = hum(0.5, rate=24_000), hum(1.25, rate=24_000)
    items = [("p", "Prompt.", prompt, "p-q", "Said.", said)]
    path = corpus.write_corpus(tmp_path, items, archive="seedtts_testset.tar", rate=24_000)
    (document,) = seed_tts_eval.read([path])
    assert [u.seconds for u in document.utterances] == pytest.approx([0.5, 1.25], abs=1e-4)


def test_a_fifth_field_is_the_path_of_the_recording(tmp_path):
    name = "non_para_reconstruct_meta.lst"
    path = corpus.write_corpus(tmp_path, ITEMS, list_name=name, fields=5, rate=8000)
    first, second = seed_tts_eval.read([path])
    assert len(first.utterances) == len(second.utterances) == 2
    assert second.utterances[1].audio == "seedtts_testset/en/wavs/voice_1-voice_3.wav"
    assert first.id == "seed_tts_eval/en/non_para_reconstruct_meta/voice_1-voice_2"


def test_rows_with_other_fields_are_rejected_and_the_others_are_kept(tmp_path):
    path = corpus.write_corpus(tmp_path, ITEMS[:1], rate=8000)
    good = path.read_text()
    path.write_text(f"a|b|c\n\n|b|c|d\na|b||d\na|b|c|d|e|f\n{good}")
    *bad, document = seed_tts_eval.read([path])
    assert [row.where.rpartition(":")[2] for row in bad] == ["1", "3", "4", "5"]
    assert all(isinstance(row, Rejected) and row.reason == "malformed_row" for row in bad)
    assert len(document.utterances) == 2


def test_the_error_of_other_inputs_has_their_name(tmp_path):
    with pytest.raises(UserError, match=r"meta\.txt is neither"):
        list(seed_tts_eval.read([tmp_path / "meta.txt"]))
    path = write_tar(tmp_path / "a.tar", {"seedtts_testset/zh/meta.lst": b""})
    with pytest.raises(UserError, match=r"a\.tar has no en/meta\.lst"):
        list(seed_tts_eval.read([path]))
