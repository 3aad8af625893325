"""The grid of the paper, its config files, durations, and rules of a user."""

import csv
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from soda_jax import cli
from soda_jax.commands._config import load_config
from soda_jax.errors import UserError
from soda_jax.model import VocabularyBlocks, decoder_config
from soda_jax.model.functions import ModelFunctions
from soda_jax.registry import SCALING_RULES
from soda_jax.scaling.duration import at_rate, on_topology
from soda_jax.scaling.grid import COLUMNS, plan_runs, read_plan, to_csv
from soda_jax.scaling.rules import BUDGETS, soda, toy
from soda_jax.scaling.run_config import config_of, config_text
from soda_jax.scaling.shape import Shape, legal_head_rows
from soda_jax.schema import run_config, to_dict
from soda_jax.tokens.grammar import grammar
from soda_jax.tokens.vocabulary import VocabularyLayout

V, S = 144_644, 4096
FIT = Path(__file__).parents[2] / "docs" / "scaling_toy" / "fit.json"


@pytest.fixture(scope="module")
def paper():
    return plan_runs(soda(), BUDGETS, V, S)


def row(plan, budget, width):
    (found,) = [r for r in plan.runs if (r.budget, r.shape.width) == (budget, width)]
    return found.row()


def test_the_toy_rules_give_five_widths_per_budget():
    rules = toy()
    plan = plan_runs(rules, rules.budgets, 2310, 256)
    assert len(plan.runs) == 25 and not plan.left_out
    assert max(rules.budgets) / min(rules.budgets) == pytest.approx(100)
    widths = [[run.shape.width for run in plan.runs if run.budget == b] for b in rules.budgets]
    assert widths[0] == [8, 12, 16, 24, 32] and widths[4] == [32, 48, 64, 96, 128]
    assert max(run.lr for run in plan.runs) <= 0.03
    for run in plan.runs:
        run_config(config_of(run, "data"))


def test_the_default_grid_is_that_of_the_paper(paper):
    counts = [sum(run.budget == budget for run in paper.runs) for budget in BUDGETS]
    assert counts == [7, 12, 14, 7, 8, 8, 10] and len(paper.runs) == 66
    assert len({run.name for run in paper.runs}) == 66


def test_published_rows_are_reproduced(paper):
    one = row(paper, 9e18, 768)
    assert (one["layers"], one["heads"], one["d_ff"]) == (8, 6, 3072)
    assert (one["batch"], one["steps"]) == (32, 48_244)
    assert one["params_total"] == pytest.approx(298e6, rel=2e-3)
    assert one["lr"] == pytest.approx(0.00243, abs=5e-6)
    assert one["beta2"] == pytest.approx(0.9950, abs=5e-5)
    small = row(paper, 3e18, 768)
    assert (small["batch"], small["steps"]) == (8, 64_326)
    assert small["tokens"] == pytest.approx(2.11e9, rel=2e-3)
    assert row(paper, 3e20, 3072)["params_total"] == pytest.approx(5.42e9, rel=1e-3)


def test_every_run_keeps_the_rules(paper):
    for run in paper.runs:
        assert run.flops == pytest.approx(run.budget, rel=0.01)
        assert run.batch >= 8 and run.lr <= 0.01 and run.steps < 400_000


def test_parameters_and_flops_are_those_of_the_model(paper):
    run = next(run for run in paper.runs if run.shape.width == 384)
    settings = run_config(config_of(run))
    config = decoder_config(settings.model, VocabularyBlocks.of(VocabularyLayout.soda()))
    assert config.parameters == run.shape.parameters(V)
    assert config.non_embedding_parameters == run.shape.non_embedding_parameters
    params = jax.eval_shape(lambda: ModelFunctions(config).init(0))
    sizes = {
        jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(params)
    }
    padding = 2 * (config.vocabulary.rows - V) * run.shape.width
    assert sum(sizes.values()) - padding == run.row()["params_total"]
    # Each weight of a matrix product takes 2 FLOPs per token; scores and values 4S · inner, softmax 3S.
    matrices = sum(n for name, n in sizes.items() if "norm" not in name and "embed" not in name)
    matrices -= padding // 2
    heads = run.shape.heads
    attention = run.shape.layers * (2 * 2 * S * heads * 128 + 3 * S * heads)
    assert run.shape.forward_flops_per_token(V, S) == 2 * matrices + attention


def test_a_head_over_few_ids_takes_fewer_flops():
    shape = Shape(256, 3, 2, 128, 1024)
    saved = shape.forward_flops_per_token(V, S) - shape.forward_flops_per_token(V, S, 2048)
    assert saved == 2 * 256 * (V - 2048)


@pytest.mark.parametrize("full_every", [0, 17])
def test_rows_of_the_legal_head_are_those_of_the_grammar(full_every):
    layout = VocabularyLayout.soda()
    frame = layout.codebook_offsets.tolist()
    text, audio = [5] * 40, frame * 100
    spans = [layout.text_start, *text, layout.text_end]
    spans += [layout.audio_start, *audio, layout.audio_end]
    rules, rows, in_text, state = grammar(layout), [], [], None
    for token in [layout.bos, *spans * 3, layout.eos]:
        state = rules.start if state is None else state
        legal = rules.legal(state)
        rows.append(legal.sum())
        in_text.append(legal[5])
        state = rules.step(state, token)
    share = np.mean(in_text)
    expected = np.mean(rows) + (V / full_every if full_every else 0)
    found = legal_head_rows(layout, share, full_every)
    assert found == pytest.approx(expected, rel=2e-3)
    # Nine tenths of the positions are audio, with 2,048 or 2,049 ids.
    assert legal_head_rows(layout, 0.1) == pytest.approx(0.9 * 2048 + 0.1 * 128_001, rel=1e-3)
    shape = Shape(256, 3, 2, 128, 1024)
    saved = shape.forward_flops_per_token(V, S) - shape.forward_flops_per_token(V, S, found)
    assert saved == pytest.approx(2 * 256 * (V - found))


def test_a_config_file_is_what_the_trainer_gets(paper, tmp_path):
    run = paper.runs[0]
    file = tmp_path / f"{run.name}.py"
    for data in ("", "demo/data"):
        file.write_text(config_text(run, data))
        loaded = run_config(load_config(str(file), []))
        assert to_dict(loaded) == to_dict(run_config(config_of(run, data)))
        assert loaded.optimizer.beta1 == 0.95 and loaded.optimizer.z_loss == 0


def test_a_table_can_be_read_again(paper, tmp_path):
    file = tmp_path / "plan.csv"
    file.write_text(to_csv([run.row() for run in paper.runs]))
    assert read_plan(file) == paper.runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",width,", ",wide,"), "line 2 has no width"),
        (lambda text: text.replace("82031", "82032"), "line 2: tokens = 10751967232, but"),
        (lambda text: text.replace("82031", "many"), "line 2: invalid literal"),
        (
            lambda text: text.replace("\n3e+18,", "\nnan,"),
            "line 2: budget = nan is not a number above",
        ),
        (lambda text: text.splitlines()[0], "has no runs"),
    ],
)
def test_a_changed_table_is_refused(paper, tmp_path, change, message):
    file = tmp_path / "plan.csv"
    file.write_text(change(to_csv([run.row() for run in paper.runs[:2]])))
    with pytest.raises(UserError, match=message):
        read_plan(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "missing.csv")


def test_the_command_writes_the_columns_and_one_config_per_run(tmp_path, capsys):
    out, configs = tmp_path / "plan.csv", tmp_path / "configs"
    options = [f"--out={out}", f"--configs={configs}", "--budgets=3e18", "--rate=1e14", "--chips=4"]
    assert cli.main(["scaling", "plan", *options]) == 0
    with open(out, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == [*COLUMNS, "hours", "chips"]
    assert float(rows[0]["hours"]) == pytest.approx(3e18 / 4e14 / 3600, rel=0.01)
    assert len(list(configs.glob("isoflop_3e18_d*.py"))) == len(rows) == 7
    assert "7 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--budgets=3e18,x", "--budgets=3e18,x must be numbers above 0"),
        ("--budgets=1e10", "no run fits the rules; budget 1e.10, width 128"),
        ("--widths=256.5", "whole numbers"),
        ("--vocabulary=0", "--vocabulary=0 must be at least 1"),
        ("--rate=0", "--rate=0.0 must be above 0"),
        ("--rules=sodo", "did you mean soda"),
        ("--compile", "--compile needs --topology"),
        ("--out=.", "--out=. is a folder"),
        (f"--out={__file__}/plan.csv", "test_grid.py is a file"),
        (f"--configs={__file__}", "--configs=.*test_grid.py is a file"),
        ("--widths=1e300", "--widths: 1e.300 must be from 1 to 1,000,000"),
        ("--budgets=1e300", "e.[0-9]+ steps; there must be fewer"),
    ],
)
def test_bad_options_are_named(option, message, capsys):
    assert cli.main(["scaling", "plan", option]) == 2
    import re

    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "return replace(soda(), shape=lambda width: {}[width])",
            r"shape\(\d+\) failed with KeyError",
        ),
        (
            "return replace(soda(), shape=lambda width: None)",
            r"shape\(\d+\) .* returns None, not a Shape",
        ),
        ("return 1 / 0", r"failing\(\) failed with ZeroDivisionError"),
        ("return None", r"failing\(\) failed with TypeError: it returns None, not Rules"),
    ],
)
@pytest.mark.parametrize("action", ["plan", "predict"])
def test_rules_that_fail_are_one_line(tmp_path, capsys, action, code, message):
    plugin = tmp_path / "failing_rules.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from soda_jax.registry import SCALING_RULES\n"
        "from soda_jax.scaling.rules import soda\n"
        '@SCALING_RULES.register("failing")\n'
        f"def failing():\n    {code}\n"
    )
    options = {"plan": ["plan"], "predict": ["predict", str(FIT), "--budget=1e13"]}[action]
    try:
        assert cli.main([f"--plugin={plugin}", "scaling", *options, "--rules=failing"]) == 2
    finally:
        SCALING_RULES.remove("failing")
    text = capsys.readouterr().err
    assert re.search(message, text) and text.count("\n") == 1


def test_batch_and_widths_that_fail_are_errors_of_the_user():
    for rule in ("widths", "batch", "peak_lr", "beta2"):
        rules = dataclasses.replace(soda(), **{rule: lambda *_: 1 / 0})
        with pytest.raises(UserError, match="failed with ZeroDivisionError"):
            plan_runs(rules, [3e18], 144_644, 4096)


def test_rules_of_a_plugin_change_the_plan(tmp_path, capsys):
    plugin = tmp_path / "own_rules.py"
    plugin.write_text(
        "import dataclasses\n"
        "from soda_jax.registry import SCALING_RULES\n"
        "from soda_jax.scaling.rules import soda\n\n\n"
        '@SCALING_RULES.register("large_batch")\n'
        "def large_batch():\n"
        "    return dataclasses.replace(soda(), batch=lambda *_: 128)\n"
    )
    out = tmp_path / "plan.csv"
    command = ["scaling", "plan", "--rules=large_batch", "--widths=512", f"--out={out}"]
    try:
        assert cli.main([f"--plugin={plugin}", *command]) == 0
    finally:
        SCALING_RULES.remove("large_batch")
    assert {run.batch for run in read_plan(out)} == {128}


def test_hours_on_a_topology_follow_from_the_estimate(paper):
    found = on_topology(paper.runs[0], "v5p:2x2x1", 1)
    least = paper.runs[0].flops / (4 * 459e12) / 3600
    assert found.chips == 4 and least < found.hours < 10 * least
    wide = on_topology(paper.runs[0], "v5p:4x4x4", 1)  # 64 chips, 32 windows
    assert wide.hours is None and "32" in wide.why
    assert at_rate(paper.runs[0], 1e14, 2).hours == paper.runs[0].flops / 2e14 / 3600


def test_planning_imports_no_jax():
    code = (
        "import sys; from soda_jax import cli; cli.main(['scaling', 'plan']); "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
