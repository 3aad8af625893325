import signal
import subprocess
import sys

import convert_toys as toys
import numpy as np
import pytest
import safetensors.numpy

from soda_jax import cli
from soda_jax.convert import qwen3, to_hf


def convert(*words):
    return cli.main(["convert", *map(str, words)])


def test_the_command_converts_in_both_directions(run, tmp_path, capsys):
    assert convert("to-hf", run, tmp_path / "out", "--dtype=bf16", "--shard_mb=1") == 0
    printed = capsys.readouterr().out
    assert "MB/s" in printed and "checksum" in printed and "logits of a random prompt" in printed
    assert convert("from-hf", tmp_path / "out", tmp_path / "back") == 0
    printed = capsys.readouterr().out
    assert f"--config.start_from={tmp_path / 'back'}" in printed
    assert "--config.model.rope.theta=10000.0" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "out"]


def test_the_files_of_an_export(exported):
    found = {path.name for path in exported.iterdir() if path.suffix != ".safetensors"}
    assert found == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "grammar.json",
        "soda_grammar.py",
        "soda.json",
        "soda",
        "README.md",
    }


def test_an_export_contains_no_path_of_this_machine(tmp_path):
    source = {"path": "/home/somebody/data", "weight": 1.0, "composition": "S+A+T", "codebooks": 0}
    source |= {"order": "both", "exclude_documents": "/home/somebody/denied.txt"}
    toys.write_run(tmp_path / "run", sources={"speech": source}, started_from="/home/somebody/old")
    assert convert("to-hf", tmp_path / "run", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`denied.txt`" in card and "| started from | old, step 5 |" in card
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"somebody" not in content and str(tmp_path).encode() not in content, path


def test_a_round_trip_preserves_the_facts_of_the_card(tmp_path):
    source = {"path": "data", "weight": 1.0, "composition": "S", "order": "both", "codebooks": 0}
    toys.write_run(
        tmp_path / "run", sources={"speech": {**source, "exclude_documents": "denied.txt"}}
    )
    assert convert("to-hf", tmp_path / "run", tmp_path / "out") == 0
    assert convert("from-hf", tmp_path / "out", tmp_path / "back") == 0
    assert convert("to-hf", tmp_path / "back", tmp_path / "again") == 0
    first, second = ((tmp_path / n / "README.md").read_text() for n in ("out", "again"))
    for line in ("| speech | 1.0000 | S |", "`denied.txt`", "| step | 7 |", "| tokens seen"):
        rows = [[x for x in card.splitlines() if line in x] for card in (first, second)]
        assert rows[0] == rows[1] != [], line
    assert "| started from | out, converted |" in second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("to-hf", "nowhere", "out"), "no checkpoints in"),
        (("to-hf", "RUN", "out", "--step=3"), "3: there is no such checkpoint"),
        (("to-hf", "RUN", "RUN"), "not an empty folder"),
        (("to-hf", "RUN", "out", "--shard_mb=0"), "--shard_mb=0"),
        (("to-hf", "RUN", "out", "--contamination=none.jsonl"), "none.jsonl"),
        (("to-hf", "RUN", "p/q/out", "--contamination=none.jsonl"), "none.jsonl"),
        (("to-hf", "RUN", "gs://bucket/x"), "local folder"),
        (("to-hf", "RUN", "x" * 300), "File name too long"),
        (("to-hf", "OUT", "out"), "convert it with soda convert from-hf"),
        (("to-hf", "RUN", "out", "--verify=full"), "validation split"),
        (("from-hf", "nowhere", "out"), "config.json is missing"),
        (("from-hf", "OUT", "out", "--codebook_sizes=6,x"), "--codebook_sizes=6,x"),
        (("from-hf", "OUT", "out", "--codebook_sizes=6,4"), "6,4"),
        (("from-hf", "OUT", "out", "--verify=full"), "--data=DIR"),
        (("from-hf", "OUT", "gs://bucket/run"), "local folder"),
        (("from-hf", "OUT", "out", "--codec=mel:none"), "none"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_files(
    run, exported, tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    paths = {"RUN": run, "OUT": exported}
    assert convert(*(paths.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("soda convert: error: ") and message in error, error
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_other_than_the_checkpoints_is_refused(tmp_path, capsys):
    toys.write_run(tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").unlink()
    from soda_jax.tokens.text import train_bpe

    train_bpe(["a b"], 258).save(tmp_path / "run" / "tokenizer")
    assert convert("to-hf", tmp_path / "run", tmp_path / "out") == 2
    assert "has the tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("direction", ["to-hf", "from-hf"])
def test_a_full_disk_leaves_no_files(run, exported, tmp_path, monkeypatch, capsys, direction):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    out = tmp_path / "not" / "there" / "out"  # its parents are removed too
    if direction == "to-hf":
        monkeypatch.setattr(safetensors.numpy, "save_file", full)
    else:
        monkeypatch.setattr("soda_jax.checkpoints.slices._create", full)
    source = run if direction == "to-hf" else exported
    assert convert(direction, source, out) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bits_that_change_while_writing_are_detected(run, tmp_path, monkeypatch, capsys):
    save = safetensors.numpy.save_file

    def damage(tensors, file, **options):
        tensors[qwen3.FINAL_NORM][0] += 1
        save(tensors, file, **options)

    monkeypatch.setattr(safetensors.numpy, "save_file", damage)
    assert convert("to-hf", run, tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert qwen3.FINAL_NORM in printed and "crc32c" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["names", "eps"])
def test_an_export_that_loads_but_computes_other_logits_is_detected(
    run, tmp_path, monkeypatch, capsys, fault
):
    """Checksums do not detect a swapped name or a wrong config."""
    if fault == "names":
        exported = to_hf.exported_tensors
        swap = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

        def swapped(weights):
            for name, tensor in exported(weights):
                part = name.split(".")[-2]
                yield name.replace(part, swap.get(part, part)), tensor

        monkeypatch.setattr(to_hf, "exported_tensors", swapped)
    else:
        right = to_hf.config_json
        monkeypatch.setattr(
            to_hf, "config_json", lambda *a: {**right(*a), "rms_norm_eps": 0.1, "rope_theta": 1.0}
        )
    assert convert("to-hf", run, tmp_path / "out") == 2
    found = {
        "names": "computes different logits",
        "eps": "an independent reading of the folder differs from the conversion: rotary",
    }
    assert found[fault] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_link_is_not_written_through(run, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert convert("to-hf", run, tmp_path / "link") == 2
    assert "is a link" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


ASKED_TO_STOP = """
import os, signal, sys
from soda_jax import cli
from soda_jax.convert import verify
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
verify.logits = stop
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("direction", ["to-hf", "from-hf"])
def test_sigterm_leaves_no_files(run, exported, tmp_path, direction):
    source = run if direction == "to-hf" else exported
    command = [sys.executable, "-c", ASKED_TO_STOP, "convert", direction, source, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_verify_full_compares_the_held_out_loss(run, exported, tmp_path, capsys):
    data = toys.write_data(tmp_path / "data")
    options = ("--verify=full", f"--data={data}")
    assert convert("to-hf", run, tmp_path / "out", *options) == 0
    first = held_out(capsys.readouterr().out)
    assert convert("from-hf", exported, tmp_path / "back", *options) == 0
    second = held_out(capsys.readouterr().out)
    assert first == second and first[0] == first[1] > 1.0
    assert convert("to-hf", run, tmp_path / "half", "--dtype=bf16", *options) == 0
    third = held_out(capsys.readouterr().out)
    np.testing.assert_allclose(third, first, atol=0.01)


def held_out(printed):
    line = next(line for line in printed.splitlines() if line.startswith("held-out loss"))
    words = line.split()
    return float(words[5]), float(words[words.index("before,") + 1])


def test_an_export_is_readable_by_other_users(exported):
    for path in exported.rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, path
