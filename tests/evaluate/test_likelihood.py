"""Which sequences greedy decoding would produce, and the parts of documents."""

import dataclasses

import jax
import numpy as np
import pytest
from toy_speech import LAYOUT, make_functions, make_model

from soda_jax.evaluate.likelihood import ModelLikelihood, ScoredSequence
from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.tokens.grammar import grammar


@pytest.fixture(scope="module")
def model():
    return make_model(make_functions())


@pytest.fixture(scope="module")
def log_probabilities(model):
    """Returns a function of ids, with the log-probabilities of all ids after each, over all or legal ids."""
    decoder, rules_ = model.model.bind(model.params), grammar(LAYOUT, 2)

    @jax.jit
    def logits_of(ids):
        positions = jax.numpy.arange(len(ids))[None]
        return decoder.logits(decoder(ids[None], jax.numpy.ones_like(positions), positions))[0]

    def function(ids, head, state=None):
        logits = np.asarray(logits_of(np.pad(ids, (0, 40 - len(ids)))))[: len(ids)].astype(float)
        if head == "legal":
            states, state = [], rules_.start if state is None else state
            for token in ids:
                states.append(state := rules_.step(state, token))
            logits = np.where([rules_.legal(s) for s in states], logits, -np.inf)
        peak = logits.max(axis=-1, keepdims=True)
        return logits - peak - np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True))

    return function


def text_sequences(log_probabilities, head, rng):
    """Random prompts, each with the most likely text up to its end, and once with another last byte."""
    sequences, expected = [], []
    for length in rng.integers(1, 12, 40):
        ids = np.concatenate([[LAYOUT.bos], rng.integers(97, 123, length)]).astype(np.int32)
        first, greedy = len(ids), True
        for _ in range(3):
            scores = log_probabilities(ids, head)[-1]
            best_text = int(np.argmax(scores[:256]))
            greedy &= int(np.argmax(scores)) == best_text
            ids = np.append(ids, best_text).astype(np.int32)
            sequences.append(ScoredSequence(ids, first, len(ids)))
            expected.append(greedy)
        other = np.append(ids[:-1], (ids[-1] + 1) % 256).astype(np.int32)
        sequences.append(ScoredSequence(other, first, len(other)))
        expected.append(False)
    return sequences, expected


def scored(likelihood, sequences):
    (head,) = likelihood.heads
    found = {}
    for indices, sums in likelihood(sequences):
        found |= dict(zip(indices, sums[head], strict=True))
    return [found[number] for number in range(len(sequences))]


@pytest.mark.parametrize("head", ["full", "legal"])
def test_greedy_is_whether_each_token_is_the_most_likely_one(model, log_probabilities, head):
    sequences, expected = text_sequences(log_probabilities, head, np.random.default_rng(0))
    found = scored(ModelLikelihood(model, 2, (head,), greedy=True), sequences)
    assert [sums.greedy for sums in found] == expected
    # In the last position of a prompt, some other id than text may be the most likely one.
    assert set(expected[2::4]) == ({True, False} if head == "full" else {True})
    assert scored(ModelLikelihood(model, 2, (head,)), sequences[:1])[0].greedy is None


@pytest.mark.parametrize("head", ["full", "legal"])
def test_greedy_does_not_depend_on_the_mesh(model, log_probabilities, head):
    sequences, expected = text_sequences(log_probabilities, head, np.random.default_rng(1))
    mesh = make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    params = jax.tree.map(
        lambda array, axes: jax.device_put(array, rules.sharding(mesh, axes, array.shape)),
        model.params,
        model.model.axes,
    )
    sharded = dataclasses.replace(model, params=params, placement=OnMesh(mesh))
    found = scored(ModelLikelihood(sharded, 2, (head,), 512, greedy=True), sequences)
    assert [sums.greedy for sums in found] == expected


def test_equal_logits_make_the_lowest_id_the_most_likely_one(model):
    params = jax.tree.map(lambda array: 0 * array, model.params)
    zero = dataclasses.replace(model, params=params)
    sequences = [
        ScoredSequence(np.array([LAYOUT.bos, 97, last], np.int32), 2, 3) for last in (0, 1, 255)
    ]
    found = scored(ModelLikelihood(zero, 2, greedy=True), sequences)
    assert [sums.greedy for sums in found] == [True, False, False]


@pytest.mark.parametrize("head", ["full", "legal"])
def test_a_part_of_a_document_has_the_legal_ids_of_its_place(model, log_probabilities, head):
    ids = np.frombuffer(b"a part of a text", np.uint8).astype(np.int32)
    rules_ = grammar(LAYOUT, 2)
    inside = rules_.run(np.array([LAYOUT.bos, 97]))
    wanted = log_probabilities(ids, head, inside)[np.arange(1, 15), ids[2:]].sum()
    part = ScoredSequence(ids, 2, len(ids), (LAYOUT.bos, 97))
    (found,) = scored(ModelLikelihood(model, 2, (head,)), [part])
    assert -found.nll.sum() == pytest.approx(wanted, rel=1e-5)
