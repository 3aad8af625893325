"""benchmarks/compare.py: two builds take turns, each on its own code."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOP = Path(__file__).parent.parent
TOY = """
import argparse, sys
from _results import parse, written
from soda_jax import SPEED, extra
parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=1)
args = parse(parser, {"steps": 10})
with written(args.json) as results:
    results.add("toy", "ours", "tokens_per_second", [args.steps * SPEED])
    results.add("toy", "ours", "seconds", [1 / SPEED])
"""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOP / "benchmarks"))
    return importlib.import_module("compare")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=toy", "-c", "user.email=toy@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with the few files that a benchmark needs, and a new version not yet committed."""
    top = tmp_path / "project"
    for name in ("errors.py", "files.py", "progress.py"):
        (top / "soda_jax").mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / "soda_jax" / name, top / "soda_jax")
    shutil.copytree(TOP / "benchmarks", top / "benchmarks", ignore=lambda *_: ["__pycache__"])
    (top / "configs").mkdir()
    (top / "tokenize_pipeline").mkdir()
    for name in ("configs/__init__.py", "configs/base.py", "tokenize_pipeline/__init__.py"):
        (top / name).write_text("")
    (top / "soda_jax" / "extra.py").write_text("")
    (top / "setup.py").write_text(
        "from setuptools import setup\n"
        "setup(name='toy', version='1', package_dir={'soda_jax.configs': 'configs'},\n"
        "      packages=['soda_jax', 'soda_jax.configs', 'tokenize_pipeline'])\n"
    )
    (top / "benchmarks" / "toy.py").write_text(TOY)
    (top / "soda_jax" / "__init__.py").write_text("SPEED = 2\n")
    git(top, "init", "--quiet")
    git(top, "add", ".")
    git(top, "commit", "--quiet", "--message=first")
    (top / "soda_jax" / "__init__.py").write_text("SPEED = 5\n")
    return top


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "benchmarks" / "compare.py"), *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)


def test_each_build_runs_its_own_code_and_the_ratio_is_that_of_the_medians(
    project: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rows.json"
    done = run(project, "--baseline=HEAD", f"--json={output}", "toy", "--", "--steps=3")
    assert done.returncode == 0, done.stderr
    rate, cost = json.loads(output.read_text())
    assert (rate["baseline"], rate["this"]) == (6, 15)
    assert (cost["baseline"], cost["this"]) == (0.5, 0.2)
    assert rate["ratio"] == rate["low"] == rate["high"] == 2.5
    assert cost["ratio"] == pytest.approx(2.5)
    assert (
        "| toy | toy | ours | tokens_per_second | 6 | 15 | 2.500 | 2.500 to 2.500 |" in done.stdout
    )
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=project, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1  # the baseline's worktree is removed


def test_a_benchmark_that_fails_on_one_build_ends_with_one_line(project: Path) -> None:
    (project / "soda_jax" / "extra.py").unlink()
    done = run(project, "--baseline=HEAD", "toy")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("error: toy fails on this build, exit code 1:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--baseline=nowhere", "toy"), "--baseline=nowhere: git knows no such commit"),
        (("--baseline=HEAD", "absent"), "absent is not a benchmark"),
        (("--baseline=HEAD", "compare"), "compare is not a benchmark"),
        (("--baseline=HEAD", "--rounds=6", "toy"), "--rounds=6: at least 7 are needed"),
    ],
)
def test_bad_arguments_end_with_one_line(
    project: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run(project, *arguments)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_code_of_another_build_is_an_error(compare: ModuleType, tmp_path: Path) -> None:
    build = compare.Build("the baseline", tmp_path / "site", tmp_path)
    build.check([str(tmp_path / "site" / "soda_jax")])
    with pytest.raises(Exception, match="the baseline imported"):
        build.check([str(tmp_path / "other" / "soda_jax")])


def test_rows_that_cannot_be_compared_have_no_ratio(compare: ModuleType) -> None:
    def ratio(unit: str, old: list[float], new: list[float]) -> Any:
        return compare.compared("b", ("n", "s", unit), {"the baseline": old, "this build": new})[
            "ratio"
        ]

    assert ratio("seconds", [4.0] * 7, [2.0] * 7) == 2
    assert ratio("seconds", [], [2.0] * 7) is None
    assert ratio("share_of_time", [0.5] * 7, [0.25] * 7) is None
    assert ratio("bytes", [0.0] * 7, [1.0] * 7) is None


@pytest.mark.parametrize(
    "script", sorted(p for p in (TOP / "benchmarks").glob("[!_]*.py") if p.stem != "compare")
)
def test_every_benchmark_writes_rows(script: Path) -> None:
    source = script.read_text()
    assert "parse(" in source and "with written(args.json)" in source and "results.add(" in source
