"""Retrieval by likelihood, from likelihoods that are made by hand."""

import dataclasses

import numpy as np
import pytest
from test_nll import decoder  # noqa: F401, a fixture

from soda_jax.errors import UserError
from soda_jax.evaluate.benchmarks.retrieval import recalls
from soda_jax.evaluate.evaluators import EvaluationContext, EvaluationOptions
from soda_jax.evaluate.likelihood import TokenSums
from soda_jax.evaluate.speech import HeldOutUtterance
from soda_jax.evaluate.tables import text_report
from soda_jax.registry import EVALUATORS
from soda_jax.tokens import Utterance
from soda_jax.tokens.text import ByteTokenizer

# Texts A, B, C and their recordings of 1, 2 and 4 frames of three tokens, and log p(recording | text).
TEXTS = ("A", "B", "C")
FRAMES = (1, 2, 4)
LOG_P = {
    "": (-9.0, -30.0, -60.0),
    "A": (-3.0, -24.0, -60.0),
    "B": (-6.0, -21.0, -48.0),
    "C": (-6.0, -28.0, -54.0),
}


class HandMade:
    """Reads text and recording from the tokens, and spreads log p over the scored tokens."""

    heads = ("full",)

    def __init__(self, layout):
        self._layout, self.class_names, self.calls = layout, layout.class_names, 0

    def __call__(self, sequences):
        for number, sequence in enumerate(sequences):
            self.calls += 1
            ids, layout = sequence.ids, self._layout
            scored = ids[sequence.first : sequence.last]
            assert (scored >= layout.audio_base).all() and len(scored) % 3 == 0
            assert ids[0] == layout.bos and ids[-1] == layout.audio_end
            assert ids[sequence.first - 1] == layout.audio_start
            text = ByteTokenizer().decode(ids[1 : sequence.first - 1])
            log_p = LOG_P[text][FRAMES.index(len(scored) // 3)]
            nll, count = np.zeros((2, len(self.class_names)))
            nll[1:4], count[1:4] = -log_p / 3, len(scored) / 3
            yield [number], {"full": [TokenSums(nll, count)]}


def utterance(text, frames):
    codes = np.zeros((frames, 3), np.uint16)
    return HeldOutUtterance(
        f"d#{text}{frames}", Utterance(text, ByteTokenizer().encode(text), codes)
    )


@pytest.fixture
def context(config, decoder, layout):  # noqa: F811
    """context(held_out): the evaluation of these utterances by `HandMade`."""

    def make(held_out):
        opened = EvaluationContext("run", EvaluationOptions(tasks=("retrieval",)))
        vars(opened).update(
            model=decoder(config), likelihood=HandMade(layout), held_out=list(held_out)
        )
        return opened

    return make


def score(context):
    return EVALUATORS.get("retrieval", "tasks")(context)


def test_likelihood_ratio_and_the_reverse_are_ranked(context):
    opened = context(map(utterance, TEXTS, FRAMES))
    result = score(opened)
    # Per token: A −1, −4, −5 · B −2, −3.5, −4 · C −2, −4.67, −4.5: only A finds its recording first.
    rows = result["recall"]["full"]
    assert rows["text to audio, likelihood"]["recall@1"] == pytest.approx(1 / 3)
    assert rows["text to audio, likelihood"]["median_rank"] == 2
    # Minus log p alone: A 6, 6, 0 · B 3, 9, 12 · C 3, 2, 6: A is a tie of two, B second, C first.
    assert rows["text to audio, ratio"]["recall@1"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert rows["text to audio, ratio"]["median_rank"] == 1.5
    # Recording 1: A. Recording 2: B. Recording 3: B before C.
    assert rows["audio to text"]["recall@1"] == pytest.approx(2 / 3)
    assert all(row["recall@5"] == 1 for row in rows.values())
    assert opened.likelihood.calls == 3 + 9 and (result["items"], result["scored"]) == (3, 3)
    printed = text_report({"step": 4, "tasks": ["retrieval"], "retrieval": result})
    assert "recall@1" in printed and "recall@5" not in printed and "33.3%" in printed


def test_equal_texts_and_long_recordings_are_left_out_and_named(context):
    # The context has 32 tokens: 10 frames are 32 tokens with the markers.
    held_out = [utterance("A", 1), utterance("a.", 2), utterance("C", 10), utterance("B", 2)]
    result = score(context(held_out))
    assert (result["items"], result["scored"]) == (4, 2)
    assert result["failed"] == [
        {"name": "d#a.2", "reason": "it has the text of d#A1"},
        {
            "name": "d#C10",
            "reason": "its 36 tokens exceed the context of 32 tokens",
        },
    ]
    with pytest.raises(UserError, match="two different utterances, the held-out ones have 1"):
        score(context([utterance("A", 1), utterance("A", 2)]))


def test_one_long_text_leaves_the_other_utterances_in(context):
    # 27 text tokens and 1 frame do not fit into 32 tokens; 24 do, but not with the recordings of B and C.
    held_out = [
        utterance("x" * 27, 1),
        utterance("y" * 24, 1),
        utterance("B", 2),
        utterance("C", 4),
    ]
    result = score(context(held_out))
    assert (result["items"], result["scored"]) == (4, 2)
    assert [row["reason"] for row in result["failed"]] == [
        "its 35 tokens exceed the context of 32 tokens",
        "its 26 text tokens or 5 audio tokens do not fit into the context of 32 tokens with those of the others",
    ]


def test_log_probabilities_that_are_not_finite_end_it(context, monkeypatch, tmp_path):
    opened = context(map(utterance, TEXTS, FRAMES))
    opened.options = dataclasses.replace(opened.options, partial=tmp_path)
    monkeypatch.setitem(LOG_P, "B", (-6.0, float("nan"), -48.0))
    with pytest.raises(UserError, match="retrieval: a log-probability is not finite"):
        score(opened)
    assert "NaN" not in "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))


def test_other_recordings_of_the_same_names_are_scored_again(context, tmp_path):
    def scored(frames):
        opened = context(map(utterance, TEXTS, FRAMES))
        codes = np.ones((frames, 3), np.uint16)
        item = opened.held_out[0]
        opened.held_out[0] = HeldOutUtterance(
            item.name, dataclasses.replace(item.utterance, codes=codes)
        )
        opened.options = dataclasses.replace(opened.options, partial=tmp_path)
        score(opened)
        return opened.likelihood.calls

    assert [scored(1), scored(1), scored(2)] == [3 + 9, 3, 3 + 9]


def test_equal_up_to_rounding_is_a_tie():
    scores = -100 * np.ones((4, 4)) + 1e-5 * np.random.default_rng(0).normal(size=(4, 4))
    assert recalls(scores, 1e-5 * np.abs(scores))["recall@1"] == 1 / 4


def test_recall_of_a_matrix():
    scores = np.array([[3.0, 2, 1], [9, 5, 7], [1, 1, 1]])  # ranks 1, 3, and a tie of three
    found = recalls(scores)
    assert found["recall@1"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert found["recall@5"] == 1 and found["median_rank"] == 2


def test_a_model_scores_the_held_out_utterances(config, decoder):  # noqa: F811
    opened = EvaluationContext("run", EvaluationOptions(tasks=("retrieval",), limit=4))
    vars(opened)["model"] = decoder(config, head="legal")
    result = score(opened)
    assert result["items"] == 4 and result["recall"].keys() == {"full", "legal"}
