"""Invariant 9: for any weights, the generated tokens are legal."""

import jax
import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.generate.engine import Engine
from soda_jax.generate.sampling import GREEDY, Sampling
from soda_jax.tokens.documents import audio_span, parse, text_span
from soda_jax.tokens.grammar import ILLEGAL, grammar

WILD = Sampling(temperature=5.0, top_k=0, top_p=1.0)
RNG = np.random.default_rng(0)
TEXT = np.frombuffer(b"two eight", np.uint8)
CODES = (RNG.random((4, 3)) * (6, 4, 5)).astype(np.uint16)


def prompts(layout):
    """Returns a prompt per task: speak, transcribe, continue, speak with a voice."""
    bos, start, text = [layout.bos], [layout.audio_start], text_span(TEXT, layout)
    audio, open_audio = audio_span(CODES, layout, 3), audio_span(CODES, layout, 3, True, False)
    return {
        "speak": np.concatenate([bos, text, start]),
        "transcribe": np.concatenate([bos, audio, [layout.text_start]]),
        "continue": np.concatenate([bos, open_audio]),
        "voice": np.concatenate([bos, text, audio, text, start]),
    }


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "wild"])
def test_invariant_9_every_task_yields_legal_documents(engine, layout, sampling):
    rules = grammar(layout)
    for task, prompt in prompts(layout).items():
        stop = layout.text_end if task == "transcribe" else layout.audio_end
        results = engine(
            [prompt] * 6, stop=stop, budget=64, sampling=sampling, seed=1, max_frames=15
        )
        for result in results:
            whole = np.concatenate([prompt, result.ids])
            assert rules.run(whole) != ILLEGAL
            assert not (result.ids[:-1] == stop).any()
            if result.ids[-1] == stop and task != "continue":
                parse(np.concatenate([whole, [layout.eos]]), layout)


def test_invariant_9_documents_without_a_prompt_are_legal(engine, layout):
    rules = grammar(layout)
    found = engine([np.array([layout.bos])] * 24, stop=layout.eos, budget=64, sampling=WILD, seed=5)
    ended = 0
    for result in found:
        whole = np.concatenate([[layout.bos], result.ids])
        assert rules.run(whole) != ILLEGAL
        ended += whole[-1] == layout.eos
        if whole[-1] == layout.eos:
            assert rules.run(whole) == rules.end
    assert ended, "no document ended, so EOS was not tested"


@pytest.mark.parametrize("codebooks", [1, 2])
def test_invariant_9_fewer_codebooks_are_generated_in_order(functions, params, layout, codebooks):
    engine = Engine(functions, params, layout, codebooks)
    prompt = np.concatenate([[layout.bos], text_span(TEXT, layout), [layout.audio_start]])
    results = engine(
        [prompt] * 4, stop=layout.audio_end, budget=64, sampling=WILD, max_frames=9, seed=2
    )
    for result in results:
        assert result.ids[-1] == layout.audio_end
        assert layout.ids_to_codes(result.ids[:-1], codebooks).shape[1] == codebooks


def test_invariant_9_the_duration_limit_ends_the_utterance_at_a_frame_boundary(engine, layout):
    prompt = prompts(layout)["speak"]
    results = engine(
        [prompt] * 16, stop=layout.audio_end, budget=64, sampling=WILD, max_frames=3, seed=4
    )
    frames = [len(layout.ids_to_codes(r.ids[:-1], 3)) for r in results]
    assert all(r.ids[-1] == layout.audio_end for r in results)
    assert max(frames) == 3
    assert all(r.finished for r, n in zip(results, frames, strict=True) if n < 3)
    assert all(not r.finished for r, n in zip(results, frames, strict=True) if n == 3)


def test_an_exhausted_budget_is_not_finished(engine, layout):
    prompt = prompts(layout)["transcribe"]
    (result,) = engine([prompt], stop=layout.text_end, budget=2, sampling=WILD, seed=0)
    assert len(result.ids) <= 2
    assert result.finished == (result.ids[-1] == layout.text_end)


def test_an_illegal_prompt_is_rejected_with_its_number(engine, layout):
    good = prompts(layout)["speak"]
    bad = np.array([layout.bos, layout.audio_end])
    with pytest.raises(UserError, match="prompt 1 is not"):
        engine([good, bad], stop=layout.audio_end, budget=8, sampling=GREEDY)


def test_a_prompt_without_a_legal_next_token_is_rejected(engine, layout):
    whole = np.concatenate([prompts(layout)["speak"][:-1], [layout.eos]])
    raw = np.concatenate([[layout.bos], TEXT, [layout.eos]])
    for bad, reason in (
        (raw, "prompt 0 is a complete document"),
        (whole, "prompt 0 is not the beginning"),  # EOS after text without audio is not legal
        (np.zeros(0, np.int32), "prompt 0 is not the beginning"),
        (np.array([layout.bos, layout.size]), "prompt 0 is not the beginning"),
        (np.array([layout.bos, -1]), "prompt 0 is not the beginning"),
    ):
        with pytest.raises(UserError, match=reason):
            engine([bad], stop=layout.audio_end, budget=8, sampling=GREEDY)


def test_invariant_9_a_document_that_ends_before_the_stop_token_ends_the_row(engine, layout):
    results = engine(
        [np.array([layout.bos])] * 24, stop=layout.audio_end, budget=64, sampling=WILD, seed=5
    )
    ended = [result for result in results if result.ids[-1] == layout.eos]
    for result in results:
        assert grammar(layout).run(np.concatenate([[layout.bos], result.ids])) != ILLEGAL
        assert not (result.ids[:-1] == layout.eos).any()
        assert result.finished == (result.ids[-1] == layout.audio_end)
    assert ended, "no document ended, so EOS was not tested"


@pytest.mark.parametrize(
    "numbers",
    [
        *[{"seed": seed} for seed in (-1, 2**32, 1.5, None)],
        *[{"budget": budget} for budget in (0, -1, 2**31)],
        *[{"max_frames": frames} for frames in (-1, 2**31, 0.5)],
    ],
)
def test_numbers_out_of_range_are_rejected(engine, layout, numbers):
    arguments = {"stop": layout.audio_end, "budget": 8, "sampling": GREEDY, **numbers}
    with pytest.raises(UserError, match=f"{next(iter(numbers))} .* is out of range"):
        engine([prompts(layout)["speak"]], **arguments)


def test_the_largest_seed_is_valid(engine, layout):
    arguments = {"stop": layout.audio_end, "budget": 8, "sampling": WILD}
    (result,) = engine([prompts(layout)["speak"]], seed=np.uint32(2**32 - 1), **arguments)
    assert len(result.ids)


@pytest.mark.parametrize("sampling", [Sampling(1e6, 0, 1.0), Sampling(1e-6, 3, 0.5)])
def test_invariant_9_extreme_temperatures_yield_legal_documents(engine, layout, sampling):
    prompt = prompts(layout)["speak"]
    for result in engine([prompt] * 8, stop=layout.audio_end, budget=64, sampling=sampling):
        assert grammar(layout).run(np.concatenate([prompt, result.ids])) != ILLEGAL


def test_without_prompts_there_are_no_results(engine, layout):
    assert engine([], stop=layout.audio_end, budget=8, sampling=GREEDY) == []


@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "wild"])
def test_without_the_grammar_all_ids_are_drawn_and_illegal_streams_are_reported(
    engine, functions, params, layout, sampling
):
    rules, prompt = grammar(layout), prompts(layout)["speak"]
    results = engine(
        [prompt] * 8, stop=layout.audio_end, budget=12, sampling=sampling, seed=3, constrained=False
    )
    for result in results:
        whole = np.concatenate([prompt, result.ids])
        assert result.legal == (rules.run(whole) != ILLEGAL)
        # Greedy tokens and all scores are those of a plain pass over the whole stream.
        hidden = functions.bind(params)(
            whole[None], np.zeros((1, len(whole)), np.int32), np.arange(len(whole))[None]
        )
        log_p = np.asarray(jax.nn.log_softmax(functions.bind(params).logits(hidden)))[0]
        log_p = log_p[len(prompt) - 1 : -1]
        if sampling is GREEDY:
            np.testing.assert_array_equal(result.ids, log_p.argmax(-1))
        chosen = np.take_along_axis(log_p, result.ids[:, None], axis=1)
        assert result.log_probability == pytest.approx(float(chosen.sum()), abs=1e-4)
    # The weights are random, so some id outside the legal set is drawn soon.
    assert not all(result.legal for result in results)
    assert all(
        r.legal for r in engine([prompt], stop=layout.audio_end, budget=12, sampling=sampling)
    )


def test_rows_without_the_grammar_leave_their_slots(functions, params, layout):
    # More prompts than slots: illegal rows and rows that end with EOS are replaced by waiting prompts.
    small = Engine(functions, params, layout, 3, slots=2)
    prompt = prompts(layout)["speak"]
    arguments = {"stop": layout.audio_end, "budget": 400, "sampling": WILD, "seed": 7}
    few = small([prompt] * 7, constrained=False, **arguments)
    many = Engine(functions, params, layout, 3, slots=8)(
        [prompt] * 7, constrained=False, **arguments
    )
    rules, ends = grammar(layout), set()
    for one, other in zip(few, many, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert one.legal == (rules.run(np.concatenate([prompt, one.ids])) != ILLEGAL)
        assert one.finished == (one.ids[-1] == layout.audio_end)
        assert not np.isin(one.ids[:-1], [layout.audio_end, layout.eos]).any()
        ends.add(int(one.ids[-1]))
    assert layout.eos in ends and layout.audio_end in ends
