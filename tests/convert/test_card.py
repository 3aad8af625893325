"""The model card of a run contains the facts of its files and marks others as not known."""

import ast
import json

import pytest
import yaml
from tokenizer_toys import every

from soda_jax.checked_json import parse_checked_json, write_checked_json
from soda_jax.convert.card import model_card
from soda_jax.errors import UserError
from soda_jax.tokens.text import ByteTokenizer, make_layout

LAYOUT = make_layout(ByteTokenizer(), (512, 256))
DIGEST = "ab" * 32
REPORT = [
    {"document": "eval/1", "utterance": 0, "text": "a", "share": 0.75, "train_document": "t/1"},
    {"document": "eval/1", "utterance": 3, "text": "b", "share": 1.0, "train_document": "t/2"},
    {"document": "eval/2", "utterance": 0, "text": "c", "share": 0.9, "train_document": "t/2"},
]


def metadata():
    source = {
        "path": "data/x",
        "order": "both",
        "composition": "S+A+T",
        "codebooks": 0,
        "exclude_documents": "",
    }
    return {
        "soda_jax": "1.2.3", "windows": 7_000, "layout": LAYOUT.to_json(), "data_digest": DIGEST,
        "tokenizer_fingerprint": "feedfacefeedface", "codec_fingerprint": "c0dec" * 6,
        "config": {
            "seed": 5, "steps": 900, "batch_size": 24, "accumulate": 1,
            "model": {"num_layers": 3, "rms_norm_eps": 1e-5, "rope": {"theta": 500_000.0}},
            "optimizer": {"peak_lr": 0.00321, "schedule": "wsd"},
            "data": {"sequence_length": 4096, "sources": {}},
        },
        "data": {
            "sources": {
                "yodas2": {**source, "weight": 3.0, "exclude_documents": "denied/librispeech.txt"},
                "pipe|d": {**source, "weight": 1.0, "composition": "text"},
                "one": {**source, "weight": 4.0, "codebooks": 1},
            }
        },
    }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    ByteTokenizer().save(folder / "tokenizer")
    sources = {
        "yodas2": {"tokens": 123_456_789, "windows": 30_000, "excluded_documents": 42},
        "pipe|d": {"tokens": 777_777, "windows": 200, "excluded_documents": 0},
    }
    write_checked_json(folder / "data.json", {"digest": DIGEST, "sources": sources})
    rows = [
        {"step": 10, "loss/all": 5.5, "validation/loss/all": 4.4321, "validation/loss/text": 3.1234,
         "validation/loss/yodas2/all": 4.1111},
        {"step": 20, "loss/all": 2.2222, "loss/semantic": 6.6543, "loss/yodas2/all": 2.5, "loss": 9.0,
         "learning_rate": 0.1, "loss/text": None},
        {"step": 30, "loss/all": 1.0101, "validation/loss/all": 1.0202},
    ]  # fmt: skip
    lines = [json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3')
    return folder


def card_of(folder, step=20, about=None, **options):
    return model_card(
        folder, about or metadata(), step, name="toy-model", parameters=12_345_678,
        dtype="bfloat16", **options,
    )  # fmt: skip


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_front_matter_is_yaml_without_a_license(run):
    card = card_of(run)
    _, front, rest = card.split("---\n", 2)
    value = yaml.safe_load(front)
    assert value["library_name"] == "transformers" and value["pipeline_tag"] == "text-generation"
    assert "audio" in value["tags"] and not {"license", "license_name"} & set(value)
    assert rest.startswith("\n# toy-model\n")
    assert "publisher of the weights chooses" in section(card, "License")


def test_the_card_contains_the_facts_of_the_run(run):
    card = card_of(run)
    head = card.split("## Use")[0]
    for known in (
        "| step | 20 |", "12,345,678", "bfloat16", f"{7_000 * 4096:,}", "feedfacefeedface",
        "c0dec" * 6, DIGEST, "soda_jax 1.2.3", f"{LAYOUT.size:,} ids", "512 · 256",
    ):  # fmt: skip
        assert known in head, known
    config = section(card, "Training config")
    for row in (
        "| `model.num_layers` | 3 |", "| `model.rope.theta` | 500000.0 |", "| `optimizer.peak_lr` | 0.00321 |",
        "| `steps` | 900 |", "| `batch_size` | 24 |", "| `data.sequence_length` | 4096 |",
    ):  # fmt: skip
        assert row in config, row
    assert "consent" in section(card, "Voices")
    assert "not known" not in head + config + section(card, "Loss")


def test_sources_are_listed_with_weight_tokens_and_excluded_documents(run):
    data = section(card_of(run), "Training data")
    assert DIGEST in data
    assert "| yodas2 | 0.3750 | S+A+T, both | 123,456,789 | `librispeech.txt`: 42 |" in data
    assert "| one | 0.5000 | S+A+T, both, codebooks: 1 | not known | none |" in data
    assert r"| pipe\|d | 0.1250 | text | 777,777 | none |" in data


def test_losses_are_the_newest_up_to_the_step_with_their_own_step(run):
    loss = section(card_of(run), "Loss")
    validation, training = loss.split("Training batch")
    assert "step 10:" in validation and "| all | 4.4321 | 4.1111 |" in validation
    assert "| text | 3.1234 |  |" in validation
    assert "step 20:" in training and "| all | 2.2222 | 2.5000 |" in training
    assert "| semantic | 6.6543 |" in training
    for other in ("1.0101", "1.0202", "9.0", "5.5", "learning_rate"):
        assert other not in loss
    assert "| all | 1.0202 |" in section(card_of(run, 30), "Loss")


def test_contamination_is_a_report_a_text_or_not_known(run, tmp_path):
    text = section(card_of(run), "Contamination")
    assert "not known" in text and "`librispeech.txt` (yodas2)" in text
    report = tmp_path / "found.jsonl"
    report.write_text("".join(json.dumps(row) + "\n" for row in REPORT))
    text = section(card_of(run, contamination=report), "Contamination")
    assert "3 utterances of 2 documents" in text and "2 documents of the training data" in text
    assert "0.75–1.00" in text and "librispeech.txt" in text and "not known" not in text
    report.write_text("")
    assert "no utterance" in section(card_of(run, contamination=str(report)), "Contamination")
    report.write_text("dev-clean in yodas2: 12 documents\n  3 utterances | found\n")
    text = section(card_of(run, contamination=report), "Contamination")
    assert "```\ndev-clean in yodas2: 12 documents\n  3 utterances | found\n```" in text
    with pytest.raises(UserError, match=r"--contamination=.*gone cannot be read"):
        card_of(run, contamination=tmp_path / "gone")


def test_facts_without_a_file_are_not_known(run):
    (run / "data.json").unlink()
    (run / "metrics.jsonl").unlink()
    card = card_of(run)
    assert "| yodas2 | 0.3750 | S+A+T, both | not known | `librispeech.txt`: not known |" in (
        section(card, "Training data")
    )
    assert section(card, "Loss").count("not known") == 2
    card = card_of(run, about={"layout": LAYOUT.to_json()})
    for title in ("Training data", "Training config", "Contamination", "Loss"):
        assert "not known" in section(card, title), title
    head = card.split("## Use")[0]
    assert head.count("not known") == 5  # tokens, tokenizer, codec, data, code
    assert "denied" not in card and "excluded" not in card and "soda_jax" not in card


def test_counts_of_other_data_than_the_checkpoint_are_ignored(run):
    value = parse_checked_json((run / "data.json").read_bytes())
    write_checked_json(run / "data.json", {**value, "digest": "00" * 32})
    card = card_of(run)
    assert "123,456,789" not in card and "00" * 32 not in card
    (run / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        card_of(run)


def test_the_example_is_a_complete_prompt_of_this_tokenizer(run):
    use = section(card_of(run), "Use")
    code = use.split("```python\n")[1].split("```")[0]
    ast.parse(code)
    assert '"<|begin_of_text|><|text_start|>Hello there.<|text_end|><|audio_start|>"' in code
    assert "offsets = [0, 512]" in code and "The tokenizer adds nothing to a prompt" in use


@pytest.mark.parametrize(("sizes", "met"), [((2048,) * 8, True), ((512, 256), False)])
def test_the_card_lists_the_text_characters_that_become_audio(run, sizes, met):
    about = metadata() | {"layout": make_layout(ByteTokenizer(), sizes).to_json()}
    use = section(card_of(run, about=about), "Use")
    assert f"U+E000–U+{0xE000 + sum(sizes) - 1:X}" in use
    assert all((name in use) == met for name in ("U+FE0F", "U+FF0C", "U+FFFD"))
    assert "remove them from text" in use


def test_the_prompt_begins_with_the_bos_of_the_tokenizer(run):
    tokenizer = every()["trained"]
    content = tokenizer.content.replace("<|begin_of_text|>", "<s>")
    (run / "tokenizer" / "tokenizer.json").write_text(content)
    assert '"<s><|text_start|>Hello' in card_of(run)
