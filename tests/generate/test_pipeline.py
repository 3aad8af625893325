"""Tasks run together on one engine, and each result depends only on its own request."""

import dataclasses
import weakref
from pathlib import Path

import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.generate.pipeline import Pipeline, Runner, Work
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.generate.streaming import SpeechStream
from soda_jax.generate.tasks import (
    Continuation,
    Prompt,
    Request,
    Result,
    TaskContext,
    TaskOptions,
    task,
)
from soda_jax.registry import GENERATION_TASKS

CLIP = (np.sin(np.arange(450) / 5) * np.linspace(0.1, 0.9, 450)).astype(np.float32)
SHORT = TaskOptions(max_seconds=1.0, max_tokens=12, piece_characters=9)


def same(one: Result, two: Result) -> None:
    assert one.text == two.text
    assert (one.audio is None) == (two.audio is None)
    if one.audio is not None:
        np.testing.assert_array_equal(one.codes, two.codes)
        np.testing.assert_array_equal(one.audio, two.audio)


def test_greedy_speech_and_transcripts_equal_those_of_the_model(model):
    (result,) = Pipeline(model, "speak", SHORT, sampling=GREEDY)([Request("a", "two")])
    speech = model.speak("two", max_seconds=1.0, sampling=GREEDY)
    np.testing.assert_array_equal(result.codes, speech.codes)
    np.testing.assert_array_equal(result.audio, speech.audio)
    assert result.finished == speech.finished
    (heard,) = Pipeline(model, "transcribe", SHORT)([Request("a", audio=CLIP)])
    assert heard.text == model.transcribe(CLIP, max_tokens=12)
    (more,) = Pipeline(model, "continue", SHORT, sampling=GREEDY)([Request("a", audio=CLIP)])
    expected = model.continue_audio(CLIP, max_seconds=1.0, sampling=GREEDY)
    np.testing.assert_array_equal(more.codes, expected.codes)


def test_a_result_depends_only_on_its_request_and_the_seed(model):
    names = [
        Request(f"item {n}", text) for n, text in enumerate(["one", "two", "a b. c d. e f."] * 9)
    ]
    together = Pipeline(model, "speak", SHORT, seed=3)(names)
    for number in (0, 2, 13):
        (alone,) = Pipeline(model, "speak", SHORT, seed=3)([names[number]])
        same(alone, together[number])
    (other,) = Pipeline(model, "speak", SHORT, seed=4)([names[2]])
    assert not np.array_equal(other.codes, together[2].codes)
    # Equal texts under other names are other samples.
    assert len({together[n].codes.tobytes() for n in range(0, 27, 3)}) > 1


def test_a_long_text_is_spoken_in_pieces_with_pauses(model):
    (result,) = Pipeline(model, "speak", SHORT)([Request("a", "One two. Three. Four five.")])
    assert [part.text for part in result.parts] == ["One two.", "Three.", "Four", "five."]
    starts = [part.start for part in result.parts]
    ends = [part.end for part in result.parts]
    assert starts[0] == 0
    np.testing.assert_allclose(np.subtract(starts[1:], ends[:-1]), 0.2)
    assert len(result.audio) == round(ends[-1] * 1_000)
    for start, end in zip(ends[:-1], starts[1:], strict=True):
        assert not result.audio[round(start * 1000) : round(end * 1000)].any()


def test_the_first_finished_piece_is_the_voice_of_the_later_ones(model):
    codes = np.array([[1, 2, 3], [4, 0, 1]], np.uint16)
    ids = model.layout.codes_to_ids(codes).reshape(-1)
    context = Pipeline(model, "speak", SHORT).context
    text = "One two. Three. Four. Five six."
    steps = GENERATION_TASKS.get("speak", "task").function(context, Request("a", text))
    (first,) = next(steps)
    np.testing.assert_array_equal(first.ids, model.text_prompt("One two."))
    # A piece that was cut is no voice.
    (second,) = steps.send([Continuation(ids, False, -1.0)])
    np.testing.assert_array_equal(second.ids, model.text_prompt("Three."))
    later = steps.send([Continuation(ids, True, -1.0)])
    voice = model.voice("Three.", codes)
    assert [prompt.piece for prompt in later] == [2, 3]
    for prompt, words in zip(later, ["Four.", "Five six."], strict=True):
        np.testing.assert_array_equal(prompt.ids, model.text_prompt(words, voice))


def test_recordings_longer_than_a_segment_have_times(model):
    audio = np.concatenate([CLIP, np.zeros(300, np.float32), CLIP])
    options = dataclasses.replace(SHORT, segment_seconds=0.8)
    (result,) = Pipeline(model, "transcribe", options)([Request("a", audio=audio)])
    assert len(result.parts) >= 2
    assert result.parts[0].start == 0 and result.parts[-1].end == pytest.approx(1.2)
    assert [p.start for p in result.parts[1:]] == [p.end for p in result.parts[:-1]]
    texts = [p.text.strip() for p in result.parts if p.text.strip()]
    assert result.text == " ".join(texts)


def test_examples_and_voices_are_put_before_the_prompt(model):
    options = dataclasses.replace(SHORT, examples=((CLIP, "hi"),))
    context = Pipeline(model, "speak", options).context
    steps = GENERATION_TASKS.get("speak", "task").function(
        context, Request("a", "two", voice=CLIP, voice_text="me")
    )
    codes = model.encode([CLIP])[0]
    (prompt,) = next(steps)
    expected = model.text_prompt("two", model.voice("hi", codes), model.voice("me", codes))
    np.testing.assert_array_equal(prompt.ids, expected)
    steps = GENERATION_TASKS.get("transcribe", "task").function(context, Request("a", audio=CLIP))
    (prompt,) = next(steps)
    np.testing.assert_array_equal(prompt.ids, model.audio_prompt(codes, model.example(codes, "hi")))


def test_the_most_likely_finished_candidate_is_kept(model, monkeypatch):
    request = Request("a", "two")
    options = dataclasses.replace(SHORT, max_seconds=0.5)
    hot = Sampling(1.0, 0, 1.0)
    found = Pipeline(model, "speak", options, sampling=hot, best_of=8).run([request])
    ((_, best),) = list(found)
    seen = []

    add = Work.add

    def watched(work, prompt, index, generated):
        seen.append((generated.finished, generated.log_probability / len(generated.ids)))
        return add(work, prompt, index, generated)

    monkeypatch.setattr(Work, "add", watched)
    Pipeline(model, "speak", options, sampling=hot, best_of=8)([request])
    assert len(seen) == 8 and len(set(seen)) > 1
    part = best.parts[0]
    assert (part.finished, part.mean_log_probability) == pytest.approx(max(seen))


def test_without_the_grammar_the_legal_beginning_is_kept(model):
    options = dataclasses.replace(SHORT, max_seconds=2)
    requests = [Request(str(n), "two") for n in range(6)]
    results = Pipeline(model, "speak", options, constrained=False)(requests)
    assert not all(r.legal for r in results)  # the weights are random
    assert not any(r.finished for r in results if not r.legal)
    assert all(len(r.audio) == 100 * len(r.codes) for r in results)


def test_errors_belong_to_their_request(model, tmp_path):
    requests = [
        Request("good", audio=CLIP),
        Request("missing", audio=tmp_path / "no.wav"),
        Request("long", audio=np.tile(CLIP, 100)),
    ]
    found = {r.name: result for r, result in Pipeline(model, "continue", SHORT).run(requests)}
    assert isinstance(found["good"], Result)
    assert "no such file" in str(found["missing"])
    assert "the context of the model 512" in str(found["long"])
    with pytest.raises(UserError, match="no such file"):
        Pipeline(model, "continue", SHORT)(requests[1:])
    assert list(Pipeline(model, "continue", SHORT).run([])) == []


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        ("speak", Request("a", " "), "the text to speak is empty"),
        ("speak", Request("a", "x", voice=CLIP), "give both or neither"),
        ("text", Request("a", ""), "the text to continue is empty"),
        ("transcribe", Request("a"), "the recording is missing"),
    ],
)
def test_incomplete_requests_are_named(model, name, request_, message):
    with pytest.raises(UserError, match=message):
        Pipeline(model, name, SHORT)([request_])


def test_unknown_tasks_and_wrong_options_are_refused(model):
    with pytest.raises(UserError, match="task"):
        Pipeline(model, "sing")
    with pytest.raises(UserError, match="best_of 0"):
        Pipeline(model, "speak", best_of=0)
    with pytest.raises(UserError, match="candidates that differ"):
        Pipeline(model, "transcribe", best_of=2)
    with pytest.raises(UserError, match="max_seconds 0 is out of range: pass a number above 0, up"):
        TaskOptions(max_seconds=0)
    with pytest.raises(UserError, match="max_seconds nan is out of range"):
        TaskOptions(max_seconds=float("nan"))


def test_text_is_continued_as_the_documents_of_training(model):
    (inside,) = Pipeline(model, "text", SHORT)([Request("a", "two")])
    assert inside.parts[0].end == 0
    sources = {"web": {"composition": "text", "codebooks": 0}}
    metadata = {"data": {"sequence_length": 512, "sources": sources}}
    raw = dataclasses.replace(model, metadata=metadata)
    context = Pipeline(raw, "text").context
    (prompt,) = next(GENERATION_TASKS.get("text", "task").function(context, Request("a", "two")))
    assert (
        prompt.kind == "raw" and prompt.ids.tolist()[1:] == model.tokenizer.encode("two").tolist()
    )
    assert context.job(prompt, 0, GREEDY).stop == model.layout.eos


def test_a_registered_task_may_ask_several_times(model):
    @task("twice", ["text"])
    def twice(context, request):
        def prompt(text):
            return Prompt(context.model.text_prompt(text), "speech")

        (one,) = yield [prompt(request.text)]
        (two,) = yield [prompt(request.text + "!")]
        return context.speech([("one", one), ("two", two)])

    try:
        (result,) = Pipeline(model, "twice", SHORT)([Request("a", "x")])
        assert [part.text for part in result.parts] == ["one", "two"]
    finally:
        del GENERATION_TASKS._functions["twice"]


def test_streamed_audio_has_the_pieces_in_order_and_the_length_of_the_result(model):
    chunks = []
    pipeline = Pipeline(
        model, "speak", SHORT, steps=5,
        on_tokens=lambda prompt, ids, ended: chunks.append(
            stream.push(prompt.piece, ids, ended)
        ),
    )  # fmt: skip
    stream = SpeechStream(pipeline.context, frames=1)
    request = Request("a", "One two. Three. Four five.", voice=CLIP, voice_text="x")
    (result,) = pipeline([request])
    assert len(chunks[0]) < len(result.audio)
    audio = np.concatenate(chunks)
    assert len(audio) == len(result.audio)
    # The toy codec decodes frames independently, so only cross-fades could differ, of equal pieces.
    np.testing.assert_allclose(audio, result.audio, atol=1e-6)


def test_cancelled_work_frees_its_slot_and_other_work_joins(model):
    context = Pipeline(model, "speak", dataclasses.replace(SHORT, max_seconds=20)).context

    def cancel(prompt, ids, ended):
        first.cancelled = True

    first = Work(Request("0", "two"), "speak", context, on_tokens=cancel)
    waiting = iter([first, *(Work(Request(str(n), "two"), "speak", context) for n in (1, 2, 3))])
    generated = []
    stream = model.engine.stream

    def counted(*arguments, **options):
        for event in stream(*arguments, **options):
            generated.append(event.job)
            yield event

    runner = Runner(model, steps=1, slots=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.engine, "stream", counted)
        found = list(runner.run(lambda: next(waiting, None)))
    assert [work.request.name for work, _ in found] == ["1", "2", "3"]
    assert generated.count(0) == 1
    (expected,) = Pipeline(model, "speak", context.options)([Request("1", "two")])
    same(found[0][1], expected)


def test_the_memory_of_a_stream_does_not_grow_with_its_jobs(model):
    context = Pipeline(model, "speak", SHORT).context
    alive = weakref.WeakSet()
    most = 0

    def take():
        nonlocal most
        most = max(most, len(alive))
        if take.left == 0:
            return None
        take.left -= 1
        work = Work(Request(str(take.left), "two"), "speak", context)
        alive.add(work)
        return work

    take.left = 60
    ended = sum(1 for _ in Runner(model, slots=2).run(take))
    assert ended == 60
    assert most <= 12


def test_requests_with_different_settings_run_together(model):
    context = Pipeline(model, "speak", SHORT).context
    settings = [GREEDY, Sampling(0.7, 0, 0.9), Sampling(1.5, 4, 1.0), Sampling(1.0, 3, 0.5)]
    works = [
        Work(Request(str(n), "two"), "speak", context, sampling=sampling)
        for n, sampling in enumerate(settings)
    ]
    waiting = iter(works)
    found = dict(Runner(model, slots=4).run(lambda: next(waiting, None)))
    for work, sampling in zip(works, settings, strict=True):
        (alone,) = Pipeline(model, "speak", SHORT, sampling=sampling)([work.request])
        same(found[work], alone)


def test_pieces_and_voices_fit_into_the_context(model):
    metadata = {"data": {"sequence_length": 128, "sources": {}}}
    small = dataclasses.replace(model, metadata=metadata)
    prompts = []
    options = TaskOptions(max_seconds=30)

    class Watched(TaskContext):
        def job(self, prompt, number, sampling):
            job = super().job(prompt, number, sampling)
            prompts.append((len(prompt.ids), job.budget))
            return job

    context = Watched(small, options)
    text = (
        "A text that is much longer than the context of this model permits, in two sentences. " * 2
    )
    waiting = iter([Work(Request("a", text), "speak", context)])
    ((_, result),) = Runner(small).run(lambda: next(waiting, None))
    assert isinstance(result, Result) and len(result.parts) > 2
    assert all(length + budget <= 128 for length, budget in prompts)
    assert "".join(part.text for part in result.parts).replace(" ", "") == text.replace(" ", "")


def test_a_cut_by_the_context_is_reported(model):
    metadata = {"data": {"sequence_length": 40, "sources": {}}}
    small = dataclasses.replace(model, metadata=metadata)
    never = Sampling(1.0, 1, 1.0)
    found = Pipeline(small, "speak", TaskOptions(max_seconds=30), sampling=never).run(
        Request(str(n), "abcdefghijklm"[:n]) for n in range(1, 12)
    )
    results = [result for _, result in found]
    assert all(len(result.codes) * 3 <= 40 for result in results)


def test_the_task_of_the_docs_runs(model):
    page = Path(__file__).parents[2] / "docs" / "generate.md"
    code = page.read_text().split("## A task of your own")[1].split("```python")[1].split("```")[0]
    try:
        exec(code, {})
        (result,) = Pipeline(model, "twice", SHORT)([Request("a", "x")])
        one, two = result.parts
        assert one.frames + two.frames == len(result.codes)
        assert not np.array_equal(result.codes[: one.frames], result.codes[one.frames :])
    finally:
        del GENERATION_TASKS._functions["twice"]


def test_a_prompt_may_be_given_twice(model):
    @task("pair", ["text"])
    def pair(context, request):
        prompt = Prompt(context.model.text_prompt(request.text), "speech")
        one, two = yield [prompt, prompt]
        return context.speech([("one", one), ("two", two)])

    try:
        (result,) = Pipeline(model, "pair", SHORT)([Request("a", "x")])
        assert [part.text for part in result.parts] == ["one", "two"]
    finally:
        del GENERATION_TASKS._functions["pair"]


def test_an_empty_recording_is_refused(model):
    for name in ("transcribe", "continue"):
        with pytest.raises(UserError, match="no samples"):
            Pipeline(model, name, SHORT)([Request("a", audio=np.zeros(0, np.float32))])
