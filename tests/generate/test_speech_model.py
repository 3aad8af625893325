"""Speaking, transcribing and continuing; a checkpoint is loaded with its front end."""

import dataclasses

import jax
import numpy as np
import pytest

from soda_jax.checkpoints import Checkpointer, CheckpointReader
from soda_jax.codecs.audio import write_wav
from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.generate import speech_model
from soda_jax.generate.sampling import GREEDY
from soda_jax.generate.speech_model import load
from soda_jax.tokens.text import ByteTokenizer

CLIP = (np.sin(np.arange(450) / 5) * np.linspace(0.1, 0.9, 450)).astype(np.float32)


def test_speak_returns_complete_frames_within_the_limit(model):
    speech = model.speak("two eight", max_seconds=1.0, seed=1)
    assert speech.sample_rate == 1_000
    assert 1 <= len(speech.codes) <= 10
    assert len(speech.audio) == 100 * len(speech.codes)


def test_speak_takes_several_texts_and_a_voice(model):
    speeches = model.speak(["one", "two"], voice=(CLIP, "hello"), max_seconds=1.0)
    assert [len(s.audio) for s in speeches] == [100 * len(s.codes) for s in speeches]
    assert model.speak([]) == []


def test_empty_text_is_rejected(model):
    with pytest.raises(UserError, match="empty"):
        model.speak("  ")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_length_out_of_range_is_rejected(model, seconds):
    with pytest.raises(UserError, match=r"max_seconds .* is out of range"):
        model.speak("one", max_seconds=seconds)
    with pytest.raises(UserError, match=r"max_seconds .* is out of range"):
        model.continue_audio(CLIP, max_seconds=seconds)


def test_transcribe_gives_equal_texts_for_files_arrays_and_codes(model, tmp_path):
    write_wav(tmp_path / "clip.wav", CLIP, 1_000)
    from_file = model.transcribe(tmp_path / "clip.wav", max_tokens=12)
    from_several = model.transcribe([str(tmp_path / "clip.wav"), CLIP], max_tokens=12)
    assert isinstance(from_file, str)
    assert from_several[0] == from_file
    codes = model.codec.encode([CLIP])
    assert model.transcribe_codes(codes, max_tokens=12) == [from_several[1]]


def test_continue_returns_only_the_continuation(model):
    speech = model.continue_audio(CLIP, max_seconds=0.5, sampling=GREEDY)
    assert len(speech.codes) <= 5
    assert len(speech.audio) == 100 * len(speech.codes)


@pytest.fixture
def workdir(tmp_path, model, functions, params, monkeypatch):
    """Returns a run's folder with the toy codec."""
    metadata = {
        "config": {"model": dataclasses.asdict(functions.config)},
        "layout": model.layout.to_json(),
        "codec_fingerprint": "toy",
        "tokenizer_fingerprint": ByteTokenizer.fingerprint,
        "data": {"sources": {"speech": {"composition": "S+A+T", "codebooks": 0}}},
    }
    del metadata["config"]["model"]["vocabulary"]
    with Checkpointer(tmp_path / "checkpoints", every_steps=None) as checkpoints:
        checkpoints.maybe_save(7, {"params": params}, metadata, force=True)
    model.tokenizer.save(tmp_path / "tokenizer")
    write_json(tmp_path / "codec" / "codec.json", {"name": "toy"})
    monkeypatch.setattr(speech_model, "load_codec", lambda spec: model.codec)
    return tmp_path


def test_load_opens_the_checkpoint_with_its_front_end(workdir, model):
    loaded = load(str(workdir))
    assert (loaded.step, loaded.codebooks) == (7, 3)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    spoken, wanted = (m.speak("six", max_seconds=1.0, seed=2) for m in (loaded, model))
    np.testing.assert_array_equal(spoken.codes, wanted.codes)


def test_load_rejects_another_codec(workdir, monkeypatch):
    class Other:
        fingerprint, codebook_sizes = "other", (6, 4, 5)

    monkeypatch.setattr(speech_model, "load_codec", lambda spec: Other())
    with pytest.raises(UserError, match=r"other.*toy"):
        load(str(workdir))


def test_load_reports_missing_checkpoints(tmp_path):
    with pytest.raises(UserError, match="no checkpoints"):
        load(str(tmp_path))


def test_a_converted_model_without_codec_fingerprint_accepts_a_codec_with_its_codebooks(
    workdir, monkeypatch
):
    whole = CheckpointReader.metadata

    def unknown(reader, step):
        return {**whole(reader, step), "codec_fingerprint": None, "converted_from": {}}

    monkeypatch.setattr(CheckpointReader, "metadata", unknown)

    class Other:
        fingerprint, codebook_sizes = "other", (6, 4, 5)

    monkeypatch.setattr(speech_model, "load_codec", lambda spec: Other())
    assert load(str(workdir)).codec.fingerprint == "other"
    Other.codebook_sizes = (6, 4, 7)
    with pytest.raises(UserError, match=r"\[6, 4, 7\]"):
        load(str(workdir))
