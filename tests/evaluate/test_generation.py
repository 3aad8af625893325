"""Speech of held-out items from a real toy decoder, in one evaluation and in two."""

import numpy as np
import pytest
from toy_speech import make_functions, make_model

from soda_jax.evaluate.generation import Asked, HeldOutGenerator
from soda_jax.evaluate.partial import PartialResults
from soda_jax.generate.sampling import Sampling


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
