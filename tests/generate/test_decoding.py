"""The decoding loop compared with the plain forward pass, and rows with other rows of their batch."""

import dataclasses
import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soda_jax.errors import UserError
from soda_jax.generate import engine as engines
from soda_jax.generate.engine import Engine
from soda_jax.generate.sampling import GREEDY, RowSampling, Sampling, draw
from soda_jax.model import ModelFunctions, VocabularyBlocks
from soda_jax.model.decoding import rounded_params
from soda_jax.model.placement import ONE_DEVICE
from soda_jax.parallel import rules
from soda_jax.parallel.mesh import make_mesh
from soda_jax.parallel.placement import OnMesh
from soda_jax.tokens.documents import audio_span, text_span
from soda_jax.tokens.grammar import ILLEGAL, grammar
from soda_jax.tokens.partition import partition


@pytest.fixture
def prompts(layout):
    """Returns three legal beginnings of 3, 9 and 25 tokens."""
    texts = [b"a", b"one two", b"turn left then go right"]
    return [np.array([layout.bos, layout.text_start, *text]) for text in texts]


@pytest.fixture(scope="module")
def full_logits_of(functions):
    """Returns a function of parameters and a document to its logits, computed without a cache."""

    @jax.jit
    def forward(params, row):
        decoder = functions.bind(params)
        positions = jnp.arange(row.shape[1])[None]
        return decoder.logits(decoder(row, jnp.ones_like(row), positions))[0]

    def logits(params, tokens):
        row = np.zeros((1, 128), np.int32)  # padding does not change the logits of earlier tokens
        row[0, : len(tokens)] = tokens
        return np.asarray(forward(params, row))[: len(tokens)]

    return logits


@pytest.fixture(scope="module")
def full_logits(full_logits_of, params):
    return functools.partial(full_logits_of, params)


def test_greedy_takes_the_most_likely_legal_token_of_the_full_forward_pass(
    engine, layout, prompts, full_logits
):
    rules = grammar(layout)
    results = engine(prompts, stop=layout.eos, budget=20, sampling=GREEDY)
    for prompt, result in zip(prompts, results, strict=True):
        whole = np.concatenate([prompt, result.ids])
        logits = full_logits(whole)
        total = 0.0
        for at in range(len(prompt), len(whole)):
            legal = np.where(rules.legal(rules.run(whole[:at])), logits[at - 1], -np.inf)
            assert legal[whole[at]] >= legal.max() - 1e-4
            total += legal[whole[at]] - np.logaddexp.reduce(legal)
        assert result.log_probability == pytest.approx(total, abs=1e-3)


def test_a_row_does_not_depend_on_the_rest_of_its_batch(engine, layout, prompts):
    sampling = Sampling(1.0, 0, 0.9)
    options = {"stop": layout.eos, "budget": 20, "sampling": sampling, "seed": 11}
    three = engine(prompts, **options)
    others = engine([prompts[0], prompts[0], prompts[0]], **options)
    single = engine([prompts[0]], **options)
    np.testing.assert_array_equal(three[0].ids, others[0].ids)
    np.testing.assert_array_equal(three[0].ids, single[0].ids)
    assert not np.array_equal(others[0].ids, others[1].ids), "rows share their draws"


def test_the_draws_depend_on_the_seed(engine, layout, prompts):
    sampling = Sampling(1.0, 0, 0.9)
    options = {"stop": layout.eos, "budget": 20, "sampling": sampling}
    first, again, other = (engine(prompts, seed=seed, **options) for seed in (1, 1, 2))
    for row in range(3):
        np.testing.assert_array_equal(first[row].ids, again[row].ids)
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))


@pytest.fixture(scope="module")
def mixed(layout):
    """Ten beginnings of different lengths: in text, before text, inside audio and after a span."""
    rng, found = np.random.default_rng(4), []
    for number in range(10):
        text = text_span(rng.integers(97, 122, 3 + 5 * number), layout)
        codes = (rng.random((2 + number, 3)) * (6, 4, 5)).astype(np.uint16)
        audio = audio_span(codes, layout, 3)
        ways = [
            [text[:-1]],
            [text, [layout.audio_start]],
            [text, audio[: -1 - number % 3]],
            [audio, [layout.text_start]],
            [audio],
        ]
        found.append(np.concatenate([[layout.bos], *ways[number % 5]]).astype(np.int32))
    return found


def same(left, right, tolerance=1e-4):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert a.finished == b.finished
        assert a.log_probability == pytest.approx(b.log_probability, abs=tolerance)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.2, 0, 0.8), Sampling(0.7, 3, 1.0)])
def test_tokens_and_log_probabilities_are_those_of_the_full_head(
    engine, layout, mixed, full_logits, sampling
):
    rules = partition(layout)
    results = engine(mixed, stop=layout.eos, budget=9, sampling=sampling, seed=3, max_frames=4)
    kinds = set()
    markers = np.array([layout.bos, layout.eos, *range(layout.text_size, layout.audio_base)])
    for number, (prompt, result) in enumerate(zip(mixed, results, strict=True)):
        whole = np.concatenate([prompt, result.ids])
        logits = full_logits(whole)
        state = rules.rules.run(prompt)
        key = jax.random.fold_in(jax.random.key(3), number)
        frames, total = 0, 0.0
        for step, token in enumerate(result.ids.tolist()):
            legal = rules.legal_ids(rules.set_of_state[state])
            if frames >= 4 and rules.rules.frame_boundary[state]:
                legal = np.array([layout.audio_end])
            row = logits[len(prompt) - 1 + step]
            total += float(np.log(softmax(row, legal)[token]))
            if layout.ordinary_text[legal].any():
                candidates = np.arange(layout.audio_base)
                kinds.add("text")
            else:
                candidates = np.concatenate([markers, legal[legal >= layout.audio_base]])
                kinds.add("audio" if legal[-1] >= layout.audio_base else "marker")
            keys = jax.random.fold_in(key, step)[None]
            allowed = np.isin(candidates, legal)[None]
            index, _ = draw(
                keys,
                jnp.asarray(row[candidates])[None],
                jnp.asarray(allowed),
                RowSampling.of([sampling]),
            )
            assert int(candidates[int(index[0])]) == token
            assert token in legal
            state = rules.rules.step(state, token)
            frames += bool(rules.rules.frame_boundary[state])
        assert result.log_probability == pytest.approx(total, abs=1e-5 * len(result.ids) + 1e-4)
    assert kinds == {"text", "audio", "marker"}


def softmax(logits, legal):
    wide = logits[legal].astype(np.float64)
    probabilities = np.exp(wide - wide.max())
    return dict(zip(legal.tolist(), probabilities / probabilities.sum(), strict=True))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 0, 0.9)])
def test_waiting_prompts_take_the_slots_of_finished_rows(
    engine, functions, params, layout, mixed, sampling
):
    options = {"stop": layout.eos, "budget": 40, "sampling": sampling, "seed": 5, "max_frames": 9}
    few = Engine(functions, params, layout, layout.codebooks, slots=2)
    same(few(mixed, **options), engine(mixed, **options))


def test_a_cache_that_grows_gives_the_same_tokens(
    engine, functions, params, layout, mixed, monkeypatch
):
    options = {"stop": layout.eos, "budget": 60, "sampling": Sampling(1.0, 0, 0.9), "seed": 6}
    expected = engine(mixed, **options)
    monkeypatch.setattr(engines, "_SHORTEST", 8)
    monkeypatch.setattr(engines, "_STEPS", 7)
    monkeypatch.setattr(engines, "_MOST_SCORES", 2 * 64**2)  # at most two rows of 64 tokens
    grown = Engine(functions, params, layout, layout.codebooks, slots=4)
    same(grown(mixed, **options), expected)
    assert len({len(result.ids) for result in expected}) > 3


@pytest.mark.parametrize("dtype,tolerance", [("bfloat16", 0.3), ("int8", 0.3)])
def test_narrow_weights_change_probabilities_a_little(
    engine, functions, params, layout, mixed, dtype, tolerance
):
    narrow = Engine(functions, params, layout, layout.codebooks, dtype=dtype)
    options = {"stop": layout.eos, "budget": 1, "sampling": GREEDY}
    close = 0
    for a, b in zip(narrow(mixed, **options), engine(mixed, **options), strict=True):
        if a.ids[0] == b.ids[0]:
            assert a.log_probability == pytest.approx(b.log_probability, abs=tolerance)
            assert a.log_probability != b.log_probability or a.log_probability > -1e-6
            close += 1
    assert close >= 7


def test_an_unknown_dtype_or_no_slots_are_refused(functions, params, layout):
    with pytest.raises(UserError, match="dtype 'float16' is unknown"):
        Engine(functions, params, layout, 3, dtype="float16")
    with pytest.raises(UserError, match="slots 0 must be at least 1"):
        Engine(functions, params, layout, 3, slots=0)


def on_mesh(functions, params, axes):
    """Returns the placement of a mesh, and the parameters on it; without axes those of one device."""
    if not axes:
        return ONE_DEVICE, params
    mesh = make_mesh(axes, jax.devices()[: np.prod(list(axes.values()))])
    return OnMesh(mesh), jax.tree.map(
        lambda leaf, names: jax.device_put(leaf, rules.sharding(mesh, names, leaf.shape)),
        params,
        functions.axes,
    )


def buffers(tree):
    """Returns the size in bytes of each buffer of the arrays of a tree, by address."""
    shards = [s.data for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return {data.unsafe_buffer_pointer(): data.nbytes for data in shards}


@pytest.mark.parametrize("axes", [{}, {"tensor": 2}, {"data": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_f32_weights_need_memory_only_for_the_layers(functions, layout, axes, tied):
    functions = ModelFunctions(dataclasses.replace(functions.config, tie_embeddings=tied))
    placement, params = on_mesh(functions, functions.init(0), axes)
    gc.collect()  # arrays of other tests must not be freed in between
    before = sum(buffers(jax.live_arrays()).values())
    engine = Engine(functions, params, layout, 3, placement=placement, slots=8)
    new = sum(buffers(jax.live_arrays()).values()) - before
    assert new == sum(buffers(params["layers"]).values())
    for name, value in params.items():
        kept = buffers(engine._weights).items() >= buffers(value).items()
        assert kept == (name != "layers"), name


def test_a_model_for_decoding_frees_the_parameters_of_the_layers(functions, layout, model):
    whole = dataclasses.replace(model, params=functions.init(1))
    text = whole.transcribe(np.ones(300, np.float32), max_tokens=5)
    layers, rest = buffers(whole.params["layers"]), buffers(whole.params)
    only = whole.for_decoding()
    assert only.transcribe(np.ones(300, np.float32), max_tokens=5) == text
    del whole
    gc.collect()
    live = buffers(jax.live_arrays())
    assert not layers.keys() & live.keys()
    assert rest.keys() - layers.keys() <= live.keys()


@pytest.mark.parametrize("axes", [{"data": 4}, {"tensor": 2}, {"data": 2, "tensor": 2}], ids=str)
def test_a_mesh_gives_the_tokens_of_one_device(engine, functions, params, layout, mixed, axes):
    placement, placed = on_mesh(functions, params, axes)
    sharded = Engine(functions, placed, layout, layout.codebooks, placement=placement, slots=8)
    options = {"stop": layout.eos, "budget": 30, "sampling": Sampling(1.0, 0, 0.9), "seed": 6}
    same(sharded(mixed, **options), engine(mixed, **options))


MESHES = [{}, {"tensor": 2}, {"data": 2, "tensor": 2}]


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, 0, 0.9)], ids=["greedy", "top_p"])
def test_int8_weights_on_a_mesh_give_the_tokens_of_rounded_parameters(
    functions, params, layout, mixed, axes, sampling
):
    placement, placed = on_mesh(functions, params, axes)
    narrow = Engine(
        functions, placed, layout, layout.codebooks, dtype="int8", placement=placement, slots=8
    )
    rounded = Engine(functions, rounded_params(params, "int8"), layout, layout.codebooks)
    options = {"stop": layout.eos, "budget": 30, "sampling": sampling, "seed": 6}
    same(narrow(mixed, **options), rounded(mixed, **options), 2e-3)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_int8_weights_are_split_over_the_tensor_axis(functions, params, layout, axes):
    placement, placed = on_mesh(functions, params, axes)
    engine = Engine(functions, placed, layout, 3, dtype="int8", placement=placement, slots=8)
    ways = axes.get("tensor", 1)
    arrays = [
        leaf for leaf in jax.tree.leaves(engine._weights) if leaf.ndim > 1 and leaf.size > 200
    ]
    assert arrays and {leaf.dtype for leaf in arrays} == {jnp.dtype("int8")}
    for leaf in arrays:
        assert leaf.size == ways * leaf.addressable_shards[0].data.size, leaf.shape


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_without_the_grammar_tokens_are_drawn_from_all_ids(
    functions, params, layout, mixed, full_logits_of, dtype, axes
):
    placement, placed = on_mesh(functions, params, axes)
    engine = Engine(
        functions, placed, layout, layout.codebooks, dtype=dtype, placement=placement, slots=8
    )
    sampling = Sampling(1.0, 0, 0.9)
    results = engine(
        mixed, stop=layout.eos, budget=12, sampling=sampling, seed=3, constrained=False
    )
    exact = params if dtype == "float32" else rounded_params(params, "int8")
    blocks = VocabularyBlocks.of(layout)
    illegal = 0
    for number, (prompt, result) in enumerate(zip(mixed, results, strict=True)):
        whole = np.concatenate([prompt, result.ids])
        logits, total = full_logits_of(exact, whole), 0.0
        for step, token in enumerate(result.ids.tolist()):
            row = logits[len(prompt) - 1 + step]
            # Draws are made in the order of the rows of the head, padding included.
            rows = np.full(blocks.rows, -np.inf, np.float32)
            rows[blocks.row_of_id] = row
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), number), step)
            valid = jnp.asarray(blocks.valid_rows)[None]
            index, score = draw(
                key[None], jnp.asarray(rows)[None], valid, RowSampling.of([sampling])
            )
            assert int(index[0]) == blocks.row_of_id[token]
            total += float(score[0])
        assert result.log_probability == pytest.approx(total, abs=2e-3)
        assert result.legal == (grammar(layout).run(whole) != ILLEGAL)
        illegal += not result.legal
    assert illegal
