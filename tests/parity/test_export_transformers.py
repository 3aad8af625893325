"""An export in Transformers: the same ids from a string, and generation that stays legal."""

import importlib.util
import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizer_toys import every, written  # noqa: E402

from soda_jax.convert.card import model_card  # noqa: E402
from soda_jax.convert.grammar_files import grammar_files  # noqa: E402
from soda_jax.convert.tokenizer_files import tokenizer_files  # noqa: E402
from soda_jax.tokens.documents import Utterance, View, parse, render  # noqa: E402
from soda_jax.tokens.grammar import ILLEGAL, grammar  # noqa: E402
from soda_jax.tokens.text import make_layout  # noqa: E402
from soda_jax.tokens.vocabulary import VocabularyLayout  # noqa: E402

SIZES = (4, 7, 19)
# Text 0–6, reserved 7, BOS 8, EOS 9, markers 10–13, codebooks 14–16 and 17–18.
SMALL = VocabularyLayout(10, (7, 8, 9), 8, 9, (3, 2))
LAYOUTS = [SMALL, VocabularyLayout(9, (0, 4, 8), 4, 0, (5, 3, 2)), VocabularyLayout.soda()]


def save(folder, layout, tokenizer=None):
    """Writes the files of an export except its weights; returns its SodaGrammar."""
    files = grammar_files(layout) | (tokenizer_files(tokenizer, layout) if tokenizer else {})
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    spec = importlib.util.spec_from_file_location("soda_grammar", folder / "soda_grammar.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SodaGrammar


@pytest.mark.parametrize("kind", ["bytes", "trained", "llama_like", "qwen_like"])
def test_autotokenizer_makes_our_ids_of_a_string_and_a_string_of_our_ids(tmp_path, kind):
    tokenizer = every()[kind]
    layout = make_layout(tokenizer, SIZES)
    save(tmp_path, layout, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == layout.size and theirs.padding_side == "left"
    assert (theirs.bos_token_id, theirs.eos_token_id) == (layout.bos, layout.eos)
    assert theirs.pad_token_id == layout.eos
    texts = ["Hello  there, 12345.", " zwölf 漢字\n", "it's a <tool>, isn't it"]
    texts = texts[: 2 if kind == "llama_like" else 3]  # which has <tool> as a token
    rng = np.random.default_rng(0)
    utterances = [
        Utterance(t, tokenizer.encode(t), rng.integers(0, SIZES, (5, 3)).astype(np.uint16))
        for t in texts
    ]
    ids = render(utterances, View("audio_first"), layout).tolist()
    string = written(np.array(ids), texts, tokenizer, layout)
    assert theirs(string).input_ids == ids
    assert theirs.decode(ids) == string
    for text in texts:
        assert theirs(text).input_ids == tokenizer.encode(text).tolist()
    # A batch for `generate`, padded on the left.
    batch = theirs([string, texts[0]], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch.input_ids[1, 0] == layout.eos and batch.attention_mask[1, 0] == 0


def walk(rng, rules, length):
    """Returns a random legal beginning of at most `length` tokens; all groups are equally likely."""
    state, ids = rules.start, []
    while len(ids) < length and state != rules.end:
        group = rng.choice(np.flatnonzero(rules.transitions[state] != ILLEGAL))
        ids.append(int(rng.choice(np.flatnonzero(rules.group_of_id == group))))
        state = rules.step(state, ids[-1])
    return ids


def filled(rows, padding):
    width = max(map(len, rows))
    return torch.tensor([[padding] * (width - len(row)) + row for row in rows])


def document(row, layout):
    """Returns a row of `generate` without its padding."""
    row = row[row.index(layout.bos) :] if layout.bos in row else []
    return row[: row.index(layout.eos) + 1] if layout.eos in row else row


def expected(rules, rows, layout, padding):
    """Returns the legal sets of Grammar; EOS and padding may follow a finished document."""
    legal = np.stack([rules.legal(rules.run(np.array(row, int))) for row in rows])
    ended = [rules.run(np.array(row, int)) == rules.end for row in rows]
    for token in (layout.eos, padding):
        legal[ended, token] = True
    return legal


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.codebook_sizes}")
def test_invariant_9_the_processor_allows_what_the_grammar_allows(tmp_path, layout):
    soda_grammar, rng = save(tmp_path, layout), np.random.default_rng(1)
    for codebooks in range(1, layout.codebooks + 1):
        rules = grammar(layout, codebooks)
        for padding in (layout.eos, 1):
            processor = soda_grammar.from_pretrained(tmp_path, codebooks=codebooks, padding=padding)
            for _ in range(3):
                rows = [walk(rng, rules, int(rng.integers(1, 30))) for _ in range(8)]
                legal = processor.legal(filled(rows, padding)).numpy()
                np.testing.assert_array_equal(legal, expected(rules, rows, layout, padding))
    # An empty prompt may begin a document, and scores of padded vocabulary rows are shut out.
    assert processor.legal(torch.zeros((1, 0), dtype=torch.long)).nonzero().tolist() == [
        [0, layout.bos]
    ]
    scores = processor(torch.tensor([[layout.bos]]), torch.zeros(1, layout.size + 3))
    assert torch.isinf(scores[0, layout.size :]).all() and scores[0].isfinite().any()
    with pytest.raises(ValueError, match="take both from the same export"):
        processor(torch.tensor([[layout.bos]]), torch.zeros(1, layout.size - 1))


def test_a_step_at_a_time_allows_the_same_as_reading_all_anew(tmp_path):
    soda_grammar, rng = save(tmp_path, SMALL), np.random.default_rng(2)
    rules, one = grammar(SMALL), soda_grammar.from_pretrained(tmp_path)
    ids = filled([walk(rng, rules, 5 + i) for i in range(6)], SMALL.eos)
    ended = 0
    for _ in range(40):
        legal = one.legal(ids)
        rows = [document(row, SMALL) for row in ids.tolist()]
        np.testing.assert_array_equal(legal.numpy(), expected(rules, rows, SMALL, SMALL.eos))
        ended += sum(row[-1] == SMALL.eos for row in rows)
        following = [int(rng.choice(each.nonzero()[:, 0])) for each in legal]
        ids = torch.cat([ids, torch.tensor(following)[:, None]], dim=1)
        ids = ids[rng.integers(0, len(ids), len(ids))]  # beams are reordered and duplicated
    assert 0 < ended < 40 * len(ids)


def test_a_prompt_that_is_one_token_longer_than_the_last_is_not_taken_for_a_step(tmp_path):
    one = save(tmp_path, SMALL).from_pretrained(tmp_path)
    one.legal(torch.tensor([[8, 12, 14, 17], [8, 12, 15, 18]]))
    legal = one.legal(torch.tensor([[8, 12, 14, 17, 13], [8, 1, 2, 3, 4]]))
    assert legal[1].nonzero()[:, 0].tolist() == [*range(7), SMALL.eos]


def test_a_row_that_met_another_stop_token_takes_padding(tmp_path):
    soda_grammar = save(tmp_path, SMALL)
    for padding in (SMALL.eos, 0):
        one = soda_grammar.from_pretrained(tmp_path, padding=padding)
        ids = torch.tensor([[8, 12, 14, 17], [8, 12, 15, 18]])
        one.legal(ids)
        for closed, other in ((13, 14), (padding, 17), (padding, 16)):
            ids = torch.cat([ids, torch.tensor([[closed], [other]])], dim=1)
            legal = one.legal(ids)
        assert set(legal[0].nonzero()[:, 0].tolist()) == {SMALL.eos, padding}
        assert set(legal[1].nonzero()[:, 0].tolist()) == {17, 18}
        # It is refused in a prompt, where padding is on the left.
        with pytest.raises(ValueError, match=r"row 0, position [56]: "):
            soda_grammar.from_pretrained(tmp_path, padding=padding).legal(ids)


def test_the_limit_of_frames_closes_the_span_at_a_whole_frame(tmp_path):
    one = save(tmp_path, SMALL).from_pretrained(tmp_path, max_frames=2)
    ids = torch.tensor([[8, 12, 14, 17, 14]])  # the frames of the prompt do not count
    for token in (18, 15, 17):
        assert 13 not in one.legal(ids).nonzero()[:, 1] or token == 15
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert one.legal(ids).nonzero().tolist() == [[0, 13]]
    # A new prompt begins to count anew.
    assert one.legal(ids[:, :5]).nonzero()[:, 1].tolist() == [17, 18]
    assert 14 in one.legal(torch.tensor([[8, 12, 14, 17, 15, 18, 14, 17]])).nonzero()[:, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[8, 12, 14, 13]], r"row 0, position 3: token 13 \(audio_end\) .*expected codebook 1"),
        (
            [[9, 8, 1], [8, 1, 10]],
            r"row 1, position 2: token 10 \(text_start\) .*expected text, EOS",
        ),
        ([[9, 1, 2]], r"row 0, position 1: token 1 \(text\) is illegal, expected BOS"),
        ([[8, 9, 8]], "row 0, position 1: token 9 "),
        ([[8, 1, 9, 1]], r"position 3: token 1 \(text\) .*nothing \(the document has ended\)"),
        ([[8, 99]], "position 1: token 99 .outside the vocabulary."),
        ([[8, 7]], r"position 1: token 7 \(reserved\)"),
    ],
)
def test_an_illegal_prompt_is_refused_with_row_position_and_token(tmp_path, rows, message):
    one = save(tmp_path, SMALL).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        one(torch.tensor(rows), torch.zeros(len(rows), SMALL.size))


def test_options_that_do_not_fit_the_model_are_refused(tmp_path):
    soda_grammar = save(tmp_path, SMALL)
    for options, match in (
        ({"codebooks": 3}, "codebooks=3: the model has 1 to 2"),
        ({"padding": 8}, "padding=8 is BOS"),
        ({"padding": 19}, "padding=19 is not in 0–18"),
    ):
        with pytest.raises(ValueError, match=match):
            soda_grammar.from_pretrained(tmp_path, **options)
    value = json.loads((tmp_path / "grammar.json").read_text())
    with pytest.raises(ValueError, match="format version 2"):
        soda_grammar({**value, "format_version": 2})


@pytest.fixture(scope="module")
def model():
    """A random Qwen3 over text of the byte tokenizer and three codebooks, its scores far apart."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several wait for each other longer than so little work takes
    config = transformers.Qwen3Config(
        vocab_size=258 + 4 + sum(SIZES), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.5,
    )  # fmt: skip
    return transformers.Qwen3ForCausalLM(config).eval()


PROMPTS = [
    "<|begin_of_text|><|text_start|>Hello there.<|text_end|><|audio_start|>",
    "<|begin_of_text|><|audio_start|>\ue000\ue004\ue00b\ue001",
    "<|begin_of_text|>",
    "<|begin_of_text|>raw",
]


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "temperature": 3.0},
        {"do_sample": True, "temperature": 0.9, "top_p": 0.8, "num_return_sequences": 2},
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
    ],
    ids=["wild", "usual", "greedy", "beams"],
)
def test_invariant_9_generate_with_the_processor_makes_legal_documents(tmp_path, model, how):
    tokenizer = every()["bytes"]
    layout = make_layout(tokenizer, SIZES)
    soda_grammar = save(tmp_path, layout, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = theirs(PROMPTS, padding=True, return_tensors="pt")
    rules, ended = grammar(layout), 0
    for seed in range(2):
        transformers.set_seed(seed)
        new = model.generate(
            **inputs, logits_processor=[soda_grammar.from_pretrained(tmp_path, max_frames=9)],
            max_new_tokens=60, pad_token_id=layout.eos, eos_token_id=layout.eos, **how
        )  # fmt: skip
        for row in new.numpy():
            ids = np.array(document(row.tolist(), layout))
            ended += ids[-1] == layout.eos
            assert rules.run(ids) != ILLEGAL
    assert ended or how.get("temperature") != 3.0, "no document ended: the test saw nothing of EOS"


def test_generate_that_stops_at_audio_end_speaks_whole_frames(tmp_path, model):
    tokenizer = every()["bytes"]
    layout = make_layout(tokenizer, SIZES)
    soda_grammar = save(tmp_path, layout, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = [PROMPTS[0], PROMPTS[0].replace("Hello there", "Yes")]
    inputs = theirs(prompts * 4, padding=True, return_tensors="pt")
    transformers.set_seed(0)
    one = soda_grammar.from_pretrained(tmp_path, codebooks=2, max_frames=6)
    new = model.generate(
        **inputs, logits_processor=[one], eos_token_id=layout.audio_end, pad_token_id=layout.eos,
        do_sample=True, temperature=3.0, max_new_tokens=40,
    )  # fmt: skip
    lengths = set()
    for row in new.numpy():
        ids = row[np.argmax(row == layout.bos) :]
        ids = np.append(ids[: np.argmax(ids == layout.audio_end) + 1], layout.eos)
        (utterance,) = parse(ids, layout, 2).utterances
        lengths.add(len(utterance.codes))
    assert max(lengths) <= 6 and len(lengths) > 1


def test_the_example_of_the_model_card_runs_and_gives_codes(tmp_path, model, monkeypatch):
    tokenizer = every()["bytes"]
    layout = make_layout(tokenizer, SIZES)
    save(tmp_path, layout, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path / "tokenizer")
    about = {"layout": layout.to_json()}
    card = model_card(tmp_path, about, 1, name="toy", parameters=1, dtype="float32")
    code = card.split("```python\n")[1].split("```")[0]
    assert "max_frames=180" in code and "max_new_tokens=541" in code
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    transformers.set_seed(0)
    found: dict = {}
    try:
        exec(code.replace("max_frames=180", "max_frames=5"), found)
    finally:
        sys.modules.pop("soda_grammar", None)
    codes = np.array(found["codes"])
    assert codes.shape[1] == 3 and 1 <= len(codes) <= 5
    ids = found["ids"][0].tolist()
    spoken = ids[ids.index(layout.audio_start) + 1 : ids.index(layout.audio_end)]
    np.testing.assert_array_equal(codes, layout.ids_to_codes(np.array(spoken), 3))
