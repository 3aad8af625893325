"""Scores of multiple-choice items from given log-probabilities, by hand."""

import json

import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.evaluate.choices import (
    ALL,
    SEMANTIC,
    Choice,
    Entry,
    Item,
    credit,
    interval,
    score_choices,
)
from soda_jax.evaluate.likelihood import ScoredSequence, TokenSums
from soda_jax.evaluate.partial import PartialResults


class Table:
    """Log-probabilities of tokens by id; ids below 10 are semantic."""

    heads, class_names = ("full",), ("semantic", "acoustic_1")

    def __init__(self, log_p, batch=3):
        self.log_p, self.batch, self.calls = log_p, batch, []

    def __call__(self, sequences):
        for at in range(0, len(sequences), self.batch):
            chosen = list(range(at, min(at + self.batch, len(sequences))))
            self.calls.append(len(chosen))
            yield chosen, {"full": [self.sums(sequences[n]) for n in chosen]}

    def sums(self, sequence):
        ids = sequence.ids[sequence.first : sequence.last]
        nll, count = np.zeros(2), np.zeros(2)
        for token in ids.tolist():
            nll[int(token >= 10)] -= self.log_p(token)
            count[int(token >= 10)] += 1
        return TokenSums(nll, count)


def sequence(*ids):
    return ScoredSequence(np.array([99, *ids, 98]), 1, 1 + len(ids))


def entries(*names, group=None, part=""):
    return [Entry(name, group or name, part, name) for name in names]


def items(*pairs):
    found = [Item(tuple(Choice(sequence(*ids)) for ids in pair)) for pair in pairs]
    return lambda block: [found[int(entry.content)] for entry in block]


def memory():
    return PartialResults(None, "toy", {})


def file_of(folder):
    (path,) = folder.glob("toy-*.jsonl")
    return path


def test_the_choice_with_the_highest_mean_is_the_answer():
    # Sums: −3 against −2; means: −1 against −2. Semantic tokens only: −2 against −1.
    log_p = {1: -2.0, 2: -1.0, 11: -0.5, 12: -3.0}.__getitem__
    build = items([(1, 11, 11), (12, 2)])
    found = score_choices(entries("0"), build, Table(log_p), memory(), kinds=(ALL, SEMANTIC))
    assert found["accuracy"]["full"][ALL]["all"]["accuracy"] == 1.0
    assert found["accuracy"]["full"][SEMANTIC]["all"]["accuracy"] == 0.0
    assert (found["items"], found["scored"], found["failed"]) == (1, 1, [])


def test_a_divisor_replaces_the_number_of_tokens():
    log_p = {1: -2.0, 2: -3.0}.__getitem__
    both = (Choice(sequence(1), 1.0), Choice(sequence(2), 10.0))
    found = score_choices(entries("0"), lambda block: [Item(both, 1)], Table(log_p), memory())
    assert found["accuracy"]["full"][ALL]["all"]["accuracy"] == 1.0


def test_a_uniform_model_scores_exactly_one_half():
    pairs = [[(1,) * n, (2,) * m] for n, m in ((3, 7), (1, 2), (9, 4), (5, 5))]
    uniform = Table(lambda token: np.float32(-np.log(144_644)))
    found = score_choices(entries("0", "1", "2", "3"), items(*pairs), uniform, memory())
    row = found["accuracy"]["full"][ALL]["all"]
    assert (row["accuracy"], row["low"], row["high"]) == (0.5, 0.5, 0.5)


def test_a_model_that_knows_the_corpus_scores_one():
    known = {1, 3, 5}
    pairs = [[(1,), (2,)], [(3,), (4,)], [(5,), (6,)]]
    lookup = Table(lambda token: 0.0 if token in known else -9.0)
    found = score_choices(entries("0", "1", "2"), items(*pairs), lookup, memory())
    assert found["accuracy"]["full"][ALL]["all"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("scores", "correct", "expected"),
    [
        ([-1.0, -2.0], 0, 1.0),
        ([-2.0, -1.0], 0, 0.0),
        ([-1.0, -1.0], 1, 0.5),
        ([-1.0, -1.0 - 5e-6], 1, 0.5),
        ([-1.0, -1.0 - 5e-5], 1, 0.0),
        ([-3.0, -1.0, -1.0, -1.0], 2, 1 / 3),
        ([-3.0, -1.0, -1.0, -1.0], 0, 0.0),
        ([0.0, 0.0], 0, 0.5),
    ],
)
def test_ties_share_the_credit(scores, correct, expected):
    assert credit(scores, correct) == pytest.approx(expected)


def test_a_group_counts_once():
    log_p = {1: -1.0, 2: -2.0}.__getitem__
    right, wrong = [(1,), (2,)], [(2,), (1,)]
    both = [
        Entry("0", "one", "x", "0"), Entry("1", "one", "x", "1"), Entry("2", "two", "y", "2"),
    ]  # fmt: skip
    found = score_choices(both, items(right, wrong, right), Table(log_p), memory())
    parts = found["accuracy"]["full"][ALL]
    assert parts["all"]["accuracy"] == 0.75 and parts["all"]["items"] == 3
    assert (parts["x"]["accuracy"], parts["y"]["accuracy"]) == (0.5, 1.0)


def test_the_interval_is_that_of_a_proportion_and_repeats_for_a_seed():
    groups = [[1.0]] * 60 + [[0.0]] * 40
    first, again, other = interval(groups, 1), interval(groups, 1), interval(groups, 2)
    assert first == again != other
    deviation = (0.6 * 0.4 / 100) ** 0.5
    assert first["low"] == pytest.approx(0.6 - 1.96 * deviation, abs=0.02)
    assert first["high"] == pytest.approx(0.6 + 1.96 * deviation, abs=0.02)


def test_failed_and_long_items_are_named_and_counted():
    log_p = {1: -1.0, 2: -2.0}.__getitem__
    found = score_choices(
        entries("0", "1", "2"),
        lambda block: [
            Item((Choice(sequence(1)), Choice(sequence(2)))),
            "clip.wav does not exist",
            Item((Choice(sequence(1)), Choice(sequence(*[2] * 9)))),
        ],
        Table(log_p),
        memory(),
        context=8,
    )
    assert (found["items"], found["scored"]) == (3, 1)
    assert found["failed"] == [
        {"name": "1", "reason": "clip.wav does not exist"},
        {"name": "2", "reason": "11 tokens are more than the context of 8 tokens"},
    ]
    with pytest.raises(UserError, match="none of 1 items can be scored, the first because no"):
        score_choices(entries("0"), lambda block: ["no"], Table(log_p), memory())


def test_a_stopped_evaluation_scores_no_item_twice(tmp_path):
    log_p = {1: -1.0, 2: -2.0}.__getitem__
    folder, names = tmp_path / "p", [str(n) for n in range(10)]
    build = items(*[[(1,), (2,)] if n % 3 else [(2,), (1,)] for n in range(10)])
    whole = score_choices(entries(*names), build, Table(log_p), memory())

    class Stops(Table):
        def __call__(self, sequences):
            for number, found in enumerate(super().__call__(sequences)):
                if number == 3:
                    raise KeyboardInterrupt
                yield found

    first = Stops(log_p, batch=2)
    with pytest.raises(KeyboardInterrupt):
        score_choices(entries(*names), build, first, PartialResults(folder, "toy", {"a": 1}))
    path = file_of(folder)
    assert len(path.read_text().splitlines()) == 1 + 3
    with path.open("a") as file:
        file.write('{"name": "5", "corr')  # the process was killed while it wrote a line
    second = Table(log_p, batch=2)
    results = PartialResults(folder, "toy", {"a": 1})
    resumed = score_choices(entries(*names), build, second, results)
    assert resumed == whole
    assert sum(second.calls) == 2 * (10 - 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert sorted(row["name"] for row in rows) == sorted(names)
    results.remove()
    assert not folder.exists()


def test_results_of_another_evaluation_are_not_used_and_not_removed(tmp_path):
    PartialResults(tmp_path, "toy", {"step": 1}).add("0", {"scores": {}})
    other = PartialResults(tmp_path, "toy", {"step": 2})
    assert "0" not in other
    other.remove()
    assert "0" in PartialResults(tmp_path, "toy", {"step": 1})
    file_of(tmp_path).write_text('{"settings": 1}\nnonsense\n')
    with pytest.raises(UserError, match=r"toy-.*jsonl is damaged: remove it"):
        PartialResults(tmp_path, "toy", {"step": 1})


def test_failed_items_are_tried_again(tmp_path):
    log_p = {1: -1.0, 2: -2.0}.__getitem__
    right = Item((Choice(sequence(1)), Choice(sequence(2))))
    first = PartialResults(tmp_path, "toy", {})
    found = score_choices(entries("0", "1"), lambda b: [right, "no clip"], Table(log_p), first)
    assert found["scored"] == 1
    again = score_choices(
        entries("0", "1"),
        lambda b: [right for _ in b],
        Table(log_p),
        PartialResults(tmp_path, "toy", {}),
    )
    assert again["scored"] == 2


def test_log_probabilities_that_are_not_finite_are_an_error(tmp_path):
    results = PartialResults(tmp_path, "toy", {})
    with pytest.raises(UserError, match="the log-probabilities of 0 are not finite"):
        score_choices(entries("0"), items([(1,), (2,)]), Table(lambda t: np.nan), results)
    assert "0" not in PartialResults(tmp_path, "toy", {})
