"""Every kind of part can be added from one file outside the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys import xla_flags

from soda_jax import cli
from soda_jax.errors import UserError
from soda_jax.registry import Registry, split_names

PLUGIN = Path(__file__).with_name("toy_parts.py")
CONFIG = """
from soda_jax.configs import base


def get_config():
    config = base.default()
    config.steps, config.batch_size = 3, 2
    config.model.update(num_layers=1, hidden_size=16, intermediate_size=16, num_heads=2,
                        num_kv_heads=1, head_dim=8, compute_dtype="float32", remat="none")
    config.model.attention = "toy_full"
    config.data.sequence_length = 32
    config.data.sources = {"text": base.source("data", 1.0, composition="text")}
    config.optimizer.update(name="toy_sgd", schedule="cosine", warmup_fraction=0.0, peak_lr=0.5)
    config.loss_terms, config.log.metrics = "toy_activation", "toy_update_norm"
    config.log.tensorboard = False
    config.evaluate.every_steps = 0
    return config
"""


def soda(folder, *arguments):
    command = [sys.executable, "-m", "soda_jax.cli", f"--plugin={PLUGIN}", *arguments]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_toy_of_every_kind_is_registered_from_one_file_and_used_end_to_end(tmp_path):
    lines = [json.dumps({"text": f"some words {'abc' * n} and more of them"}) for n in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    (tmp_path / "config.py").write_text(CONFIG)
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    soda(tmp_path, "tokenize", "--input=text.jsonl", "--format=text", "--output=data",
         f"--tokenizer=letters:{alphabet}", "--validation_fraction=0.2")  # fmt: skip
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["layout"]["text_size"] == len(alphabet) + 2

    printed = soda(tmp_path, "train", "--config=config.py", "--workdir=run").stderr
    assert "attention: toy_full on cpu" in printed
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        # The update of the toy optimizer is −learning rate · clipped gradient.
        clipped = min(row["gradient_norm"], 1.0)
        assert row["toy_update_norm"] == pytest.approx(row["learning_rate"] * clipped, rel=1e-4)
        # RMSNorm makes the mean square of the hidden state 1 at first: the loss term adds 0.1.
        assert row["loss"] == pytest.approx(row["loss/all"] + row["z_loss"] + 0.1, abs=2e-2)

    printed = soda(tmp_path, "evaluate", "--workdir=run", "--tasks=loss,toy_size").stdout
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert scores["toy_size"]["parameters"] > 1000
    assert scores["toy_size"]["windows"] == scores["loss"]["windows"] > 0
    assert f"parameters: {scores['toy_size']['parameters']}" in printed


def test_an_unknown_name_names_the_nearest_and_a_taken_one_is_refused():
    registry = Registry("toy")
    registry.register("first")(len)
    registry.register("first")(len)
    with pytest.raises(UserError, match="toy 'first' is already registered"):
        registry.register("first")(max)
    with pytest.raises(
        UserError, match=r"a\.key = 'frist' is not a registered toy; did you mean fi"
    ):
        registry.get("frist", "a.key")
    assert registry.get("first", "a.key") is len and "second" not in registry
    assert registry.names() == ("first",)
    registry.remove("first")
    assert registry.names() == () and split_names(" a, b,,") == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("1 / 0", "ZeroDivisionError")]
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "plugin.py"
    if content is not None:
        file.write_text(content)
    assert cli.main([f"--plugin={file}", "evaluate", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"--plugin={file}" in error and message in error and error.count("\n") == 1
