"""Speech of held-out items from a real toy decoder, in one evaluation and in two."""

import dataclasses

import numpy as np
import pytest
from toy_speech import make_functions, make_model, open_context, scores_of

from soda_jax.evaluate.generation import Asked, HeldOutGenerator
from soda_jax.evaluate.partial import PartialResults
from soda_jax.evaluate.speech import HeldOutUtterance
from soda_jax.generate.sampling import Sampling
from soda_jax.registry import RECOGNIZERS
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import ByteTokenizer


@pytest.fixture(scope="module")
def model():
    return make_model(make_functions())


@pytest.mark.parametrize("constrained", [True, False])
def test_speech_does_not_depend_on_a_kill_or_on_the_other_items(
    model, tmp_path, monkeypatch, constrained
):
    texts = ("go", "left", "stop now", "turn back and then left", "five", "go on")
    asked = [Asked(text, number, model.text_prompt(text)) for number, text in enumerate(texts)]
    stream, finished = model.engine.stream, []

    def generated(asked, most=100, folder=None):
        def stopping(jobs, **settings):
            for event in stream(jobs, **settings):
                if event.result is not None:
                    if len(finished) == most:
                        raise KeyboardInterrupt
                    finished.append(jobs[event.job].number)
                yield event

        finished.clear()
        monkeypatch.setattr(model.engine, "stream", stopping)
        kept = PartialResults(folder, "generated", {"seed": 5})
        generator = HeldOutGenerator(model, kept, max_seconds=1.5, seed=5)
        rows = generator(asked, "speech", Sampling(), "speak", constrained)
        return {one.name: row.ids.tolist() for one, row in zip(asked, rows, strict=True)}

    whole = generated(asked)
    assert len({str(ids) for ids in whole.values()}) == len(texts)
    with pytest.raises(KeyboardInterrupt):
        generated(asked, most=3, folder=tmp_path)
    before = list(finished)
    assert generated(asked, folder=tmp_path) == whole
    assert len(before) == len(finished) == 3 and {*before, *finished} == {*range(6)}
    for some in (asked[::-1], asked[3:], asked[1:2]):
        assert generated(some) == {one.name: whole[one.name] for one in some}
    other = [Asked(asked[0].name, 9, asked[0].ids)]
    assert not np.array_equal(generated(other)["go"], whole["go"])


def test_results_of_another_checkpoint_seed_dtype_or_recognizer_are_not_used(
    model, tmp_path, monkeypatch
):
    class Hears:
        def __init__(self, argument):
            self.name = f"hears {argument}"

        def transcribe(self, audio, sample_rate):
            heard.append(len(audio))
            return "go"

    monkeypatch.setitem(RECOGNIZERS._functions, "hears", Hears)
    codes = np.ones((3, 2), np.uint16)
    held_out = [
        HeldOutUtterance(text, Utterance(text, ByteTokenizer().encode(text), codes))
        for text in ("go", "left")
    ]
    heard, generated = [], []

    def counts(digest="a", dtype="float32", **options):
        opened = dataclasses.replace(model, digest=digest, dtype=dtype)
        stream = opened.engine.stream

        def counting(jobs, **settings):
            generated.extend(jobs)
            return stream(jobs, **settings)

        monkeypatch.setattr(opened.engine, "stream", counting)
        settings = {"recognizer": f"hears:{tmp_path}", "max_seconds": 0.3, **options}
        context = open_context(opened, "tts", tmp_path, partial=tmp_path / "partial", **settings)
        vars(context)["held_out"] = held_out
        heard.clear()
        generated.clear()
        scores_of(context)
        return len(generated), len(heard) > 0

    assert counts() == (2, True) and counts() == (0, False)
    for change in ({"digest": "b"}, {"dtype": "int8"}, {"seed": 1}, {"max_seconds": 0.2}):
        assert counts(**change)[0] == 2 and counts(**change) == (0, False)
    assert counts(recognizer="hears:other") == (0, True)
    (tmp_path / "model.bin").write_text("another model")
    assert counts() == (0, True)
    # A changed text or recording is another item.
    other = Utterance("left now", ByteTokenizer().encode("left now"), codes)
    held_out[1] = dataclasses.replace(held_out[1], utterance=other)
    assert counts()[0] == 1
    changed = dataclasses.replace(held_out[0].utterance, codes=codes + 1)
    held_out[0] = dataclasses.replace(held_out[0], utterance=changed)
    assert counts() == (0, True) and heard == [300]
