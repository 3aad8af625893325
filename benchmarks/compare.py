"""Runs benchmarks on two builds alternately and prints the ratio of their medians for every row.

    python benchmarks/compare.py --baseline=COMMIT pipeline loader
    python benchmarks/compare.py --baseline=COMMIT pipeline -- --minutes 30

The baseline is checked out into a temporary git worktree, this build is a copy of the current working
tree, and each is installed into a separate temporary folder (`pip install --no-deps --target`). A round
runs one process of each build, in alternating order, on the short form of the benchmark (`--one_round`)
unless options follow `--`. Both builds run with this interpreter and its packages. If the
baseline's script has `--json`, that script is run, because it fits the baseline's library; otherwise the
current script is run. Every process reports where it imported `soda_jax` from, and a wrong folder is an error.

A ratio above 1 means that this build is faster, or needs less: rates are divided new by old, costs old
by new. The spread is the interquartile range of the per-round ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _machine import describe_machine

from soda_jax.errors import UserError
from soda_jax.files import write_json
from soda_jax.progress import track

HERE = Path(__file__).resolve().parent
FEWEST_ROUNDS = 7
NOT_A_SPEED = ("share_of_time",)  # units of which neither more nor less is better
_LOCATE = """
import importlib, json
names = ("soda_jax", "soda_jax.configs.base", "tokenize_pipeline")
print(json.dumps([importlib.import_module(name).__file__ for name in names]))
"""


@dataclass(frozen=True)
class Build:
    """An installed build.

    Attributes:
      name: "the baseline" or "this build", for messages.
      site: folder with its packages.
      scripts: its folder of benchmarks.
    """

    name: str
    site: Path
    scripts: Path

    @property
    def environment(self) -> dict[str, str]:
        """Returns the variables that make a Python process import this build."""
        return {**os.environ, "PYTHONPATH": str(self.site)}

    def run(self, script: Path, options: Sequence[str], folder: Path) -> list[dict[str, Any]]:
        """Returns the rows of one run of a benchmark; UserError if it fails or imports another build."""
        output = folder / "rows.json"
        output.unlink(missing_ok=True)
        command = [sys.executable, str(script), f"--json={output}", *options]
        # Not run in the repository, because `python -m` would import from the current folder.
        done = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True
        )
        if done.returncode or not output.exists():
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise UserError(
                f"{script.stem} fails on {self.name}, exit code {done.returncode}: {''.join(last)}"
            )
        rows = json.loads(output.read_text())
        for row in rows:
            self.check([row["code"]])
        return rows

    def check(self, imported: Sequence[str]) -> None:
        """Raises UserError unless all paths are in this build."""
        for path in imported:
            if not Path(path).is_relative_to(self.site):
                raise UserError(f"{self.name} imported {path}, which is not in {self.site}")


@contextmanager
def builds(baseline: str, folder: Path) -> Iterator[tuple[Build, Build]]:
    """Yields (baseline, this build), installed; the worktree is removed afterwards."""
    tree = folder / "baseline"
    git("worktree", "add", "--quiet", "--detach", str(tree), commit_of(baseline))
    try:
        copy = folder / "this"
        copy_working_tree(copy)
        yield install("the baseline", tree, folder), install("this build", copy, folder)
    finally:
        git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> str:
    """Returns the output of a git command on the repository; UserError with git's message if it fails."""
    done = subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def commit_of(name: str) -> str:
    """Returns the hash of a commit; UserError if git does not know it."""
    try:
        return git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        ).strip()
    except (UserError, IndexError):
        raise UserError(f"--baseline={name}: git knows no such commit") from None


def copy_working_tree(target: Path) -> None:
    """Copies the files that git tracks or would add, in their current state."""
    top = Path(git("rev-parse", "--show-toplevel").strip())
    listed = git(
        "ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard", str(top)
    )
    for name in filter(None, listed.split("\0")):
        if (top / name).is_file():  # git lists a deleted file until its deletion is staged
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((top / name).read_bytes())


def install(name: str, tree: Path, folder: Path) -> Build:
    """Installs a tree without dependencies into a folder; checks that it is imported from there."""
    site = folder / f"{tree.name}-site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{name} does not install: {done.stderr.strip().splitlines()[-1]}")
    build = Build(name, site, tree / "benchmarks")
    found = subprocess.run(
        [sys.executable, "-c", _LOCATE],
        env=build.environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    build.check(json.loads(found.stdout))
    return build


def script_of(build: Build, name: str, today: Path) -> Path:
    """Returns the build's own script if it writes rows, else the one in the folder `today`."""
    own = build.scripts / f"{name}.py"
    # Scripts of older commits do not use `_results`, so they have no --json.
    if own.exists() and "_results" in own.read_text():
        return own
    return today / f"{name}.py"


def measure(
    pair: tuple[Build, Build], name: str, options: Sequence[str], rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """Returns rows `{benchmark, name, side, unit, baseline, this, ratio, low, high}`, medians over rounds."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for number in track(range(rounds), name):
        for build in reversed(pair) if number % 2 else pair:
            script = script_of(build, name, pair[1].scripts)
            for row in build.run(script, options, folder):
                key = (row["name"], row["side"], row["unit"])
                values = found.setdefault(key, {side.name: [] for side in pair})
                values[build.name].append(row[row["unit"]])
    return [compared(name, key, values) for key, values in found.items()]


def compared(
    benchmark: str, key: tuple[str, str, str], values: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Returns one row of the table; a row that only one build has gets no ratio."""
    name, side, unit = key
    old, new = values["the baseline"], values["this build"]
    row: dict[str, Any] = {"benchmark": benchmark, "name": name, "side": side, "unit": unit}
    row["baseline"] = statistics.median(old) if old else None
    row["this"] = statistics.median(new) if new else None
    row["ratio"] = row["low"] = row["high"] = None
    if len(old) == len(new) and all([*old, *new]) and unit not in NOT_A_SPEED:
        rate = unit.endswith("_per_second")
        row["ratio"] = row["this"] / row["baseline"] if rate else row["baseline"] / row["this"]
        ratios = [b / a if rate else a / b for a, b in zip(old, new, strict=True)]
        row["low"], _, row["high"] = statistics.quantiles(ratios, n=4, method="inclusive")
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        "| benchmark | row | side | unit | baseline | this build | ratio | middle half |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        old, new = ("–" if v is None else f"{v:,.4g}" for v in (row["baseline"], row["this"]))
        ratio, spread = "–", "–"
        if row["ratio"] is not None:
            ratio, spread = f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"
        cells = (row["benchmark"], row["name"], row["side"], row["unit"], old, new, ratio, spread)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Builds both sides, measures them and prints one table."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="benchmarks, as in benchmarks/NAME.py"
    )
    parser.add_argument("--baseline", required=True, metavar="COMMIT", help="commit, branch or tag")
    parser.add_argument(
        "--rounds", type=int, default=FEWEST_ROUNDS, help="runs of each build (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args(arguments[:end])
    options = arguments[end + 1 :] or ["--one_round"]
    try:
        if args.rounds < FEWEST_ROUNDS:
            raise UserError(f"--rounds={args.rounds}: at least {FEWEST_ROUNDS} are needed")
        for name in args.names:
            if name == Path(__file__).stem or not (HERE / f"{name}.py").exists():
                raise UserError(f"{name} is not a benchmark: give NAME of benchmarks/NAME.py")
        commit = commit_of(args.baseline)
        print(f"{describe_machine()}; baseline {commit[:12]}; {args.rounds} alternating rounds\n")
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary).resolve()
            with builds(commit, folder) as pair:
                for name in args.names:
                    rows += measure(pair, name, options, args.rounds, folder)
        print(table(rows))
        if args.json:
            write_json(args.json, rows)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
