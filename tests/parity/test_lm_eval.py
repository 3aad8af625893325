"""lm-evaluation-harness runs its own tasks on our checkpoints, and agrees with our HellaSwag."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402

from soda_jax.checkpoints import Checkpointer  # noqa: E402
from soda_jax.errors import UserError  # noqa: E402
from soda_jax.evaluate import lm_eval as entry  # noqa: E402
from soda_jax.evaluate.evaluators import EvaluationContext, EvaluationOptions  # noqa: E402
from soda_jax.evaluate.lm_eval_model import SodaLM  # noqa: E402
from soda_jax.generate.checkpoint import load_decoder  # noqa: E402
from soda_jax.model import ModelFunctions, VocabularyBlocks, decoder_config  # noqa: E402
from soda_jax.registry import EVALUATORS  # noqa: E402
from soda_jax.tokens.text import ByteTokenizer, make_layout, train_bpe  # noqa: E402

MODEL = {
    "num_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2,
    "head_dim": 8, "compute_dtype": "float32", "remat": "none",
    "rope": {"theta": 10_000.0, "factor": 1.0},
}  # fmt: skip
SOURCES = {
    "speech": {"composition": "S+A+T", "codebooks": 0},
    "text": {"composition": "text", "codebooks": 0},
}
# (activity, first part of the prompt, second part, endings, label)
ITEMS = [
    ("Counting", "A man counts.", "he", ["says six [title] and so on.", "sings.", "says two.", "leaves  now."], 2),
    ("Turning", "Turn left [step] then go.", "", ["Stop.", "Run away.", "Sleep for a day.", "Eat."], 0),
    ("Cooking rice [title]", "Wash  the rice.", "then you", ["boil it.", "[substeps] Rinse it.", "sing", "é là."], 1),
    ("Running", "A woman runs. [title]", "", ["She stops.", "She runs on.", "She is a man.", "Two."], 3),
    ("Zürich", "Ein Zug fährt ab.", "der Zug", ["hält.", "fährt zurück.", "ist grün.", "counts to six."], 0),
    ("Playing", "A boy is seen", "speaking to the camera", ["and leads into him.", "he stops", "!", "? no"], 1),
]  # fmt: skip


def save_run(folder, tokenizer, context, sources=SOURCES, seed=3):
    """Writes a run folder with a random checkpoint."""
    layout = make_layout(tokenizer, (6, 4))
    functions = ModelFunctions(decoder_config(MODEL, VocabularyBlocks.of(layout)))
    drawn = jax.jit(functions.init, static_argnums=0)(seed)
    # Larger weights than at the start of training, so that the log-probabilities differ.
    params = jax.tree.map(lambda array: 5 * array if array.ndim > 1 else array, drawn)
    metadata = {
        "config": {"model": MODEL},
        "layout": layout.to_json(),
        "codec_fingerprint": "toy",
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "data": {"sequence_length": context, "sources": sources},
    }
    with Checkpointer(folder / "checkpoints", every_steps=None) as checkpoints:
        checkpoints.maybe_save(4, {"params": params}, metadata, force=True)
    tokenizer.save(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with a BPE of the texts, whose tokens depend on the next characters, and 96 tokens of context."""
    texts = [" ".join([*item[:3], *item[3]]) for item in ITEMS]
    return save_run(tmp_path_factory.mktemp("bpe") / "run", train_bpe(texts * 3, 340), 96)


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory):
    """A run with bytes as tokens and a short context."""
    return save_run(tmp_path_factory.mktemp("bytes") / "run", ByteTokenizer(), 24)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with the HellaSwag of lm-evaluation-harness on local data, and tasks of the other kinds."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "ind": 10 * number, "activity_label": activity, "ctx_a": first, "ctx_b": second,
            "ctx": f"{first} {second}", "split": "val", "label": str(label), "endings": endings,
        }
        for number, (activity, first, second, endings, label) in enumerate(ITEMS)
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "hellaswag_val.jsonl").write_text(lines)
    local = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    validation: {folder}/"
    own = Path(lm_eval.__file__).parent / "tasks" / "hellaswag" / "hellaswag.yaml"
    (folder / "hellaswag.yaml").write_text(
        f"include: {own}\ntask: hellaswag_local\ntraining_split: null\n{local}hellaswag_val.jsonl\n"
    )
    (folder / "texts.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "answer": "no"}) + "\n"
            for text in ("a", "A text that is much longer than one window of the context, é.")
        )
    )
    common = "validation_split: validation\n" + local + "texts.jsonl\n"
    (folder / "rolling.yaml").write_text(
        "task: rolling_local\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        f"metric_list:\n  - metric: byte_perplexity\n{common}"
    )
    (folder / "generate.yaml").write_text(
        "task: generate_local\noutput_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
        f"generation_kwargs:\n  until: ['%']\n  max_gen_toks: 12\nmetric_list:\n  - metric: exact_match\n{common}"
    )
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Without a network and with an empty cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def evaluated(tasks, name, **arguments):
    manager = TaskManager(include_path=str(tasks))
    results = lm_eval.simple_evaluate(
        model="soda", model_args=arguments, tasks=[name], task_manager=manager, bootstrap_iters=0
    )
    return results, sorted(results["samples"][name], key=lambda sample: sample["doc_id"])


def our_hellaswag(run_folder, tasks, head, tmp_path):
    """Returns our scores of each ending per character, and the accuracy."""
    options = EvaluationOptions(
        ("hellaswag",), head=head, benchmarks={"hellaswag": str(tasks)}, partial=tmp_path / "partial"
    )  # fmt: skip
    context = EvaluationContext(run_folder, options)
    scores = EVALUATORS.get("hellaswag", "tasks")(context)
    (kept,) = context.opened
    rows = [kept[f"{number}/{10 * (number - 1)}"] for number in range(1, len(ITEMS) + 1)]
    return [row["scores"][head]["all"] for row in rows], scores["accuracy"][head]["all"]["all"][
        "accuracy"
    ]


def check_hellaswag(samples, result, scores, accuracy):
    assert len(samples) == len(scores) == len(ITEMS)
    best, best_per_character = [], []
    for sample, per_character, item in zip(samples, scores, ITEMS, strict=True):
        texts = [arguments[1] for arguments in sample["arguments"]]
        lengths = [len(text) - 1 for text in texts]
        theirs = [float(response[0][0]) for response in sample["resps"]]
        ours = [score * length for score, length in zip(per_character, lengths, strict=True)]
        assert theirs == pytest.approx(ours, abs=1e-4)
        best.append(int(np.argmax(ours)) == item[4])
        best_per_character.append(int(np.argmax(per_character)) == item[4])
        assert sample["acc"] == best[-1] and sample["acc_norm"] == best_per_character[-1]
    assert result["acc,none"] == np.mean(best)
    assert result["acc_norm,none"] == pytest.approx(accuracy)
    assert accuracy == np.mean(best_per_character)


@pytest.mark.parametrize("head", ["full", "legal"])
def test_hellaswag_agrees_with_ours_on_every_ending(run_folder, tasks, head, tmp_path):
    results, samples = evaluated(tasks, "hellaswag_local", workdir=str(run_folder), head=head)
    scores, accuracy = our_hellaswag(run_folder, tasks, head, tmp_path)
    check_hellaswag(samples, results["results"]["hellaswag_local"], scores, accuracy)
    assert results["config"]["soda_step"] == 4 and results["config"]["soda_head"] == head
    assert results["config"]["soda_truncated_requests"] == 0


def test_the_program_of_lm_eval_runs_hellaswag_on_a_run_folder(run_folder, tasks, tmp_path):
    command = [
        sys.executable, "-m", "soda_jax.evaluate.lm_eval", "run", "--model", "soda",
        "--model_args", f"workdir={run_folder},step=4", "--tasks", "hellaswag_local",
        "--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (lines,) = (tmp_path / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in lines.read_text().splitlines()]
    for sample in samples:  # a file has other names for the arguments
        sample["arguments"] = [
            tuple(argument.values()) for argument in sample["arguments"].values()
        ]
    scores, accuracy = our_hellaswag(run_folder, tasks, "full", tmp_path)
    result = json.loads(results.read_text())["results"]["hellaswag_local"]
    check_hellaswag(samples, result, scores, accuracy)


def log_probabilities_of(folder):
    """Returns a function of ids with the f64 log-probabilities of all ids after each."""
    loaded = load_decoder(folder)
    decoder, length = loaded.model.bind(loaded.params), 128

    @jax.jit
    def logits_of(ids):
        positions = jax.numpy.arange(length)[None]
        return decoder.logits(decoder(ids[None], jax.numpy.ones_like(positions), positions))[0]

    def function(ids):
        padded = np.pad(np.asarray(ids, np.int32), (0, length - len(ids)))
        logits = np.asarray(logits_of(padded), np.float64)[: len(ids)]
        return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)

    return function, loaded.layout


class Request:
    """What a model reads of a request of lm-evaluation-harness."""

    request_type = "loglikelihood"

    def __init__(self, *args):
        self.args = args


def test_continuations_are_split_and_scored_as_their_definition(run_folder):
    model, (log_p, layout) = SodaLM(str(run_folder)), log_probabilities_of(run_folder)
    tokenizer = model._tokenizer
    pairs = [
        ("A man", " counts."), ("A man ", "counts."), ("", "A man"), ("", " A man"), (" ", "A man"),
        ("A man\n", "\n counts"), ("A man counts.", ""), ("é", "é"), ("A woman runs", "!"),
    ]  # fmt: skip
    answers = model.loglikelihood([Request(*pair) for pair in pairs])
    for (prompt, continuation), (score, greedy) in zip(pairs, answers, strict=True):
        whole = np.array([layout.bos, *tokenizer.encode(prompt + continuation)])
        first = 1 + len(tokenizer.encode(prompt.rstrip()))
        rows = log_p(whole)[first - 1 : -1]
        assert score == pytest.approx(rows[np.arange(len(rows)), whole[first:]].sum(), abs=1e-4)
        assert greedy == bool((rows.argmax(axis=1) == whole[first:]).all())
    assert answers[0][0] == answers[1][0] and answers[6] == (0.0, True)
    # "A m" is not a token, but "an" at the end of "man" is part of one: the token is scored.
    (piece,) = [text for text in ("ounts", "an", "un") if len(tokenizer.encode(text)) == 1][:1]
    ((merged, _),) = model.loglikelihood([Request(piece[:-1], piece[-1])])
    token = int(tokenizer.encode(piece)[0])
    assert merged == pytest.approx(log_p([layout.bos])[0, token], abs=1e-4)
    assert model.merged == 1


def test_answers_do_not_depend_on_the_mesh(run_folder):
    requests = [Request("A man", " counts."), Request("", "Turn left"), Request("A woman", " runs")]
    texts = [Request("A man", {"max_gen_toks": 8}), Request("Turn left", {"max_gen_toks": 8})]
    one, eight = SodaLM(str(run_folder)), SodaLM(str(run_folder), data=4, tensor=2)
    for left, right in zip(one.loglikelihood(requests), eight.loglikelihood(requests), strict=True):
        assert left[0] == pytest.approx(right[0], abs=1e-4) and left[1] == right[1]
    assert one.generate_until(texts) == eight.generate_until(texts)


def test_greedy_continuations_are_marked(bytes_folder):
    model, (log_p, layout) = SodaLM(str(bytes_folder)), log_probabilities_of(bytes_folder)
    requests, expected = [], []
    for number in range(97, 123):
        best = int(log_p([layout.bos, number])[-1].argmax())
        for byte in {best if best < 128 else 98, 98}:
            requests.append(Request(chr(number), chr(byte)))
            expected.append(byte == best)
    assert [greedy for _, greedy in model.loglikelihood(requests)] == expected
    assert {True, False} == set(expected)


def test_requests_longer_than_the_context_lose_their_beginning(bytes_folder, caplog):
    model, (log_p, _) = SodaLM(str(bytes_folder)), log_probabilities_of(bytes_folder)
    prompt, continuation = "x" * 30 + " a prompt of bytes", " end"
    ((score, _),) = model.loglikelihood([Request(prompt, continuation)])
    # The model reads 24 tokens, the last of which is before the last target.
    ids = list((prompt + continuation).encode())[-25:]
    wanted = sum(log_p(ids[:24])[at, ids[at + 1]] for at in range(20, 24))
    assert score == pytest.approx(wanted, abs=1e-4)
    assert "1 requests are longer than the context of 24 tokens" in caplog.text
    assert model.get_model_info()["soda_truncated_requests"] == 1
    with pytest.raises(UserError, match="a continuation of 30 tokens is longer than the context"):
        model.loglikelihood([Request("a", "x" * 30)])


@pytest.mark.parametrize("head", ["full", "legal"])
def test_rolling_scores_are_the_sums_over_windows(bytes_folder, tasks, head):
    results, samples = evaluated(tasks, "rolling_local", workdir=str(bytes_folder), head=head)
    log_p, layout = log_probabilities_of(bytes_folder)
    total, length = 0.0, 0
    for sample in samples:
        ids = [layout.bos, *sample["doc"]["text"].encode()]
        wanted = 0.0
        for target in range(1, len(ids)):
            # Windows of 24 targets; the last one begins earlier, so that it reads 24 tokens too.
            last = min(-(-target // 24) * 24, len(ids) - 1)
            first = max(0, last - 24)
            row = log_p(ids[first:last])[target - 1 - first]
            if head == "legal":
                allowed = layout.ordinary_text.copy()
                allowed[[layout.text_start, layout.audio_start] if target == 1 else layout.eos] = (
                    True
                )
                row = row - np.logaddexp.reduce(row[allowed])
            wanted += row[ids[target]]
        assert float(sample["resps"][0][0]) == pytest.approx(wanted, abs=1e-3)
        total, length = total + wanted, length + len(ids) - 1
    perplexity = results["results"]["rolling_local"]["byte_perplexity,none"]
    assert perplexity == pytest.approx(math.exp(-total / length), rel=1e-4)


def greedy_text(log_p, layout, prompt, tokens):
    """Returns the most likely legal continuation of a text, byte by byte."""
    allowed = layout.ordinary_text.copy()
    allowed[layout.eos] = True
    ids = [layout.bos, *prompt]
    for _ in range(tokens):
        best = int(np.where(allowed, log_p(ids)[-1], -np.inf).argmax())
        if best == layout.eos:
            break
        ids.append(best)
    return ids[1 + len(prompt) :]


def test_generated_text_is_the_most_likely_one_up_to_a_stop_string(bytes_folder, tasks):
    _, samples = evaluated(tasks, "generate_local", workdir=str(bytes_folder))
    log_p, layout = log_probabilities_of(bytes_folder)
    for sample in samples:
        prompt = list(sample["doc"]["text"].encode())[-11:]
        text = bytes(greedy_text(log_p, layout, prompt, 12)).decode("utf-8", "replace")
        assert sample["resps"][0][0] == text.split("%")[0]


def test_generation_ends_at_a_stop_string_in_any_piece(run_folder):
    model, prompts = SodaLM(str(run_folder)), ("A man counts.", "Turn left", "")
    settings = {"until": [], "max_gen_toks": 70}
    whole = model.generate_until([Request(prompt, settings) for prompt in prompts])
    log_p, layout = log_probabilities_of(run_folder)
    ids = list(model._tokenizer.encode(prompts[1]))
    wanted = model._tokenizer.decode(greedy_text(log_p, layout, ids, 70))
    assert whole[1] == wanted and len(wanted) > 60
    stops = [wanted[8:12], "never", "", wanted[60:64]]
    first = min(wanted.index(stop) for stop in (stops[0], stops[3]))
    (cut,) = model.generate_until([Request(prompts[1], {**settings, "until": stops})])
    assert cut == wanted[:first]
    late = wanted[55:60]
    (cut,) = model.generate_until([Request(prompts[1], {**settings, "until": late})])
    assert cut == wanted[: wanted.index(late)]


def test_sampled_text_depends_on_the_seed_and_not_on_the_other_requests(bytes_folder, caplog):
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 16, "num_beams": 2}
    prompts = [Request("ab", settings), Request("cd", settings), Request("ab", settings)]
    first, again, other = (
        SodaLM(str(bytes_folder), seed=seed).generate_until(prompts) for seed in (0, 0, 1)
    )
    assert first == again != other and first[0] != first[2]
    assert SodaLM(str(bytes_folder)).generate_until(prompts[:2]) == first[:2]
    assert "not supported: num_beams" in caplog.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "model_args has no workdir"),
        ({"workdir": "/no/such/run"}, "/no/such/run"),
        ({"pretrained": "gpt2"}, "model_args has pretrained, which is unknown"),
        ({"workdir": "x", "head": "audio"}, "head 'audio' is unknown"),
        ({"workdir": "x", "step": "last"}, "model_args step=last must be an integer"),
    ],
)
def test_bad_model_arguments_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SodaLM(**arguments)


def test_a_wrong_workdir_is_one_line(tasks, tmp_path, monkeypatch, capsys):
    arguments = ["run", "--model", "soda", "--model_args", f"workdir={tmp_path / 'none'}"]
    arguments += ["--tasks", "hellaswag_local", "--include_path", str(tasks)]
    monkeypatch.setattr(sys, "argv", ["lm-eval", *arguments])
    assert entry.main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("lm_eval: error: ") and str(tmp_path / "none") in lines[-1]
    assert not [line for line in lines if "Traceback" in line]


def test_what_the_model_cannot_do_is_refused(bytes_folder, tmp_path, tasks):
    speech = {"speech": {"composition": "S+A", "codebooks": 0}}
    folder = save_run(tmp_path / "speech", ByteTokenizer(), 24, speech)
    with pytest.raises(UserError, match="needs a model that was trained with text"):
        SodaLM(str(folder))
    with pytest.raises(UserError, match="no chat template"):
        lm_eval.simple_evaluate(
            model="soda", model_args=f"workdir={bytes_folder}", tasks=["generate_local"],
            task_manager=TaskManager(include_path=str(tasks)),
            apply_chat_template=True,
        )  # fmt: skip
    other = save_run(tmp_path / "other", ByteTokenizer(), 24)
    train_bpe(["other"], 300).save(other / "tokenizer")
    with pytest.raises(UserError, match="is not the tokenizer of the checkpoint"):
        SodaLM(str(other))
    with pytest.raises(UserError, match="max_gen_toks 24 must be"):
        SodaLM(str(bytes_folder)).generate_until([Request("a", {"max_gen_toks": 24})])
