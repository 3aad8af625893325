"""Baselines compared with plain loops over dictionaries."""

import math
from collections import Counter

import numpy as np
import pytest

from soda_jax.data.dataset import make_dataset
from soda_jax.evaluate import baselines
from soda_jax.evaluate.baselines import fit_baselines
from soda_jax.evaluate.windows import open_windows
from soda_jax.tokens.partition import partition


@pytest.fixture
def fitted(config):
    return fit_baselines(config)


def pairs_of(batch):
    for row in range(len(batch["tokens"])):
        for position in range(batch["tokens"].shape[1] - 1):
            if batch["loss_mask"][row, position]:
                yield tuple(batch["tokens"][row, position : position + 2].tolist())


def slow_fit(config, layout):
    """Returns the function (s, t) → −log p as (unigram, bigram), fitted with loops."""
    kept, back = [], []
    for name, source in config["sources"].items():
        single = make_dataset({**config, "sources": {name: source}}, "train", one_pass=True)
        views = 2 if name == "speech" else 1
        for window in range(single.windows):
            held_back = window / single.windows * views % 1 >= 0.9
            (back if held_back else kept).extend(pairs_of(single.window(window).arrays()))

    def counts(pairs):
        return Counter(t for _, t in pairs), Counter(s for s, _ in pairs), Counter(pairs)

    def em(first, second):
        weight = 0.5
        for _ in range(60):
            shares = [
                weight * a / (weight * a + (1 - weight) * b)
                for a, b in zip(first, second, strict=True)
            ]
            weight = (sum(shares) + 0.5) / (len(shares) + 1)
        return weight

    def group(s, contexts):
        return int(layout.class_of_id[s]), int(math.log2(contexts[s]))

    targets, contexts, both = counts(kept)
    total = len(kept)
    uniform = 1 / layout.size
    w = em([targets[t] / total for _, t in back], [uniform] * len(back))
    base = {t: w * targets[t] / total + (1 - w) * uniform for t in range(layout.size)}
    weights, grouped = {}, {}
    for s, t in back:
        if contexts[s]:
            grouped.setdefault(group(s, contexts), []).append((s, t))
    for key, pairs in grouped.items():
        weights[key] = em([both[p] / contexts[p[0]] for p in pairs], [base[t] for _, t in pairs])

    targets, contexts, both = counts(kept + back)
    total = len(kept) + len(back)

    def losses(s, t):
        one = w * targets[t] / total + (1 - w) * uniform
        if not contexts[s]:
            return -math.log(one), -math.log(one)
        share = weights.get(group(s, contexts), 0.5)
        return -math.log(one), -math.log(share * both[s, t] / contexts[s] + (1 - share) * one)

    return losses


def test_held_out_losses_equal_a_computation_in_loops(config, fitted, layout):
    windows = open_windows(config)
    sums = fitted.sums(windows)
    losses = slow_fit(config, layout)
    wanted = {name: np.zeros((2, len(layout.class_names))) for name in ("unigram", "bigram")}
    count = np.zeros((2, len(layout.class_names)))
    for batch in windows.batches(8):
        source = int(batch["source"][0])
        for s, t in pairs_of(batch):
            key = source, layout.class_of_id[t]
            for name, loss in zip(wanted, losses(s, t), strict=True):
                wanted[name][key] += loss
            count[key] += 1
    for name, nll in wanted.items():
        np.testing.assert_array_equal(sums[name]["count"], count)
        np.testing.assert_allclose(sums[name]["nll"], nll, rtol=1e-9)


def test_probabilities_sum_to_one_after_every_token(fitted, layout):
    every = np.arange(layout.size)
    for previous in every:
        for losses in fitted.losses(np.full(layout.size, previous), every):
            assert np.exp(-losses).sum() == pytest.approx(1)
            assert np.isfinite(losses).all()


def test_losses_over_legal_ids_equal_a_computation_over_the_whole_vocabulary(
    config, fitted, layout
):
    windows = open_windows(config, legal_sets=True)
    sums, losses = fitted.sums(windows), slow_fit(config, layout)
    shape = (2, len(layout.class_names))
    wanted, kinds = {name: np.zeros(shape) for name in ("unigram", "bigram")}, set()
    for batch in windows.batches(8):
        for row, at in zip(*np.nonzero(batch["loss_mask"]), strict=True):
            s, t = batch["tokens"][row, at : at + 2].tolist()
            legal = partition(layout).legal_ids(batch["legal_set"][row, at]).tolist()
            assert t in legal
            kinds.add(len(legal))
            key = batch["source"][row], layout.class_of_id[t]
            for number, nll in enumerate(wanted.values()):
                total = sum(math.exp(-losses(s, u)[number]) for u in legal)
                nll[key] += losses(s, t)[number] + math.log(total)
    assert kinds >= {1, 4, 5}, "some positions have one legal id, others those of a codebook"
    every = fitted.sums(open_windows(config))
    for name, nll in wanted.items():
        np.testing.assert_allclose(sums[name]["nll"], nll, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(sums[name]["count"], every[name]["count"])
        assert sums[name]["nll"].sum() < 0.9 * every[name]["nll"].sum()


def test_probabilities_sum_to_one_over_every_legal_set(fitted, layout):
    for number in range(len(partition(layout).sets)):
        legal = partition(layout).legal_ids(number)
        for previous in range(layout.size):
            given = np.full(len(legal), previous), legal, np.full(len(legal), number)
            for losses in fitted.losses(*given):
                assert np.exp(-losses).sum() == pytest.approx(1)


def test_the_bigram_loss_is_below_the_unigram_loss(config, fitted, layout):
    sums = fitted.sums(open_windows(config))
    unigram, bigram = (sums[name]["nll"].sum() for name in ("unigram", "bigram"))
    assert bigram < 0.8 * unigram


def test_the_same_documents_are_held_back_in_both_orders(tmp_path, write, layout):
    write(tmp_path / "d", train=120)
    windows = open_windows({"sequence_length": 16, "sources": {"d": {"path": str(tmp_path / "d")}}},
                           "train")  # fmt: skip
    rows = [held.reshape(-1) for _, held in baselines._stream(windows, 1)]
    held = np.concatenate(rows).reshape(-1, 15)[:, 0][: windows.count]
    half = len(held) // 2
    assert abs(int(held[:half].sum()) - int(held[half:].sum())) <= 1
    assert held.mean() == pytest.approx(0.1, abs=0.03)


def test_a_long_pass_reads_only_some_batches(tmp_path, write):
    write(tmp_path / "d", train=400)
    config = {"sequence_length": 16, "sources": {"d": {"path": str(tmp_path / "d")}}}
    whole, thinned = fit_baselines(config), fit_baselines(config, max_tokens=6000)
    assert 1000 < thinned.tokens <= 6000 < whole.tokens
