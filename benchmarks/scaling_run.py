"""Steps per second of a study by `soda scaling run`, and of the same configs one by one by `soda train`.

    python benchmarks/scaling_run.py

The runs are those of the two smallest budgets of the toy study (docs/scaling.md), on synthetic speech,
with the held-out loss after the last step. Both sides begin without a compilation cache. Three rates:
all steps divided by the time of the whole command or commands; and for `soda train` also divided by the
time of the steps alone, without start, compilation and evaluation.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import describe_machine
from _results import parse, written

from soda_jax.commands._config import load_config
from soda_jax.scaling.grid import read_plan
from soda_jax.scaling.run_config import job_of
from soda_jax.scaling.study import Job
from soda_jax.schema import to_dict
from soda_jax.train.metric_logs import read_metrics

_CLI = (sys.executable, "-m", "soda_jax.cli")
BUDGETS = "2e11,6.324555320336759e11"


def soda(*words: str, cache: Path | None = None) -> float:
    """Runs a command; returns its seconds."""
    environment = {**os.environ, "SODA_CACHE": str(cache)} if cache else dict(os.environ)
    start = time.perf_counter()
    done = subprocess.run([*_CLI, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"soda {words[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def make_data(home: Path, clips: int) -> Path:
    """Writes a data set of synthetic speech; returns its folder."""
    soda("synth", f"--output={home}/corpus", f"--clips={clips}", "--texts=10")
    soda("codec", "fit", f"{home}/corpus", f"--output={home}/codec", "--codebook_size=256")
    soda(
        "tokenize", f"--input={home}/corpus/manifest.jsonl", f"--output={home}/speech",
        f"--codec=mel:{home}/codec", "--validation_fraction=0.04",
    )  # fmt: skip
    return home / "speech"


def write_config(job: Job, file: Path) -> None:
    """Writes the config of a job for `soda train`, with a held-out loss after the last step."""
    settings = to_dict(job.config)
    settings["evaluate"]["every_steps"] = job.config.steps
    lines = [
        "from soda_jax.configs import base",
        "from ml_collections import ConfigDict",
        "def get_config():",
        "    config = base.default()",
        f"    settings = {settings!r}",
        "    config.data.sources = ConfigDict(settings['data'].pop('sources'))",
        "    config.update(settings)",
        "    return config",
    ]
    file.write_text("\n".join(lines) + "\n")


def one_round(home: Path, plan: Path, jobs: list[Job], data: Path) -> dict[str, float]:
    """Returns the three rates in steps per second."""
    options = ("--config=toy_scaling", f"--data={data}")
    seconds = soda(
        "scaling", "run", str(plan), f"--workdir={home}/study", *options, cache=home / "cache_1"
    )
    alone, inside, timed = 0.0, 0.0, 0
    for job in jobs:
        file, workdir = home / f"{job.name}.py", home / job.name
        write_config(job, file)
        alone += soda(
            "train", f"--config={file}", f"--workdir={workdir}", cache=home / "cache_2"
        )  # fmt: skip
        steps = [row["seconds"] for row in read_metrics(workdir / "metrics.jsonl")][1:]
        inside, timed = inside + sum(steps), timed + len(steps)
    total = sum(job.config.steps for job in jobs)
    return {
        "soda scaling run": total / seconds,
        "soda train, all": total / alone,
        "soda train, steps alone": timed / inside,
    }


def main() -> None:
    """Measures all sides and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clips", type=int, default=2000)
    args = parse(parser, {"rounds": 1, "clips": 400})
    found: list[dict[str, float]] = []
    with written(args.json) as results, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        data = make_data(home, args.clips)
        plan = home / "plan.csv"
        soda(
            "scaling", "plan", "--rules=toy", f"--budgets={BUDGETS}", "--sequence_length=256",
            "--vocabulary=2310", f"--out={plan}",
        )  # fmt: skip
        config = load_config("toy_scaling", [])
        config.data.sources.speech.path = str(data)
        jobs = [job_of(run, config) for run in read_plan(plan)]
        shapes = {
            (job.config.batch_size, job.config.model.hidden_size) for job in jobs
        }  # fmt: skip
        for number in range(args.rounds):
            part = home / f"round_{number}"
            part.mkdir()
            found.append(one_round(part, plan, jobs, data))
        steps = sum(job.config.steps for job in jobs)
        print(f"{describe_machine()}\n{len(jobs)} runs, {len(shapes)} shapes, {steps:,} steps\n")
        print("| side | steps/s | spread | × soda train, steps alone |\n|---|---:|---:|---:|")
        for side in found[0]:
            values = [rates[side] for rates in found]
            ratios = [rates[side] / rates["soda train, steps alone"] for rates in found]
            ratio = statistics.median(ratios)
            results.add("steps", side, "steps_per_second", values, ratio)
            spread = f"{min(values):.1f}–{max(values):.1f}"
            print(f"| {side} | {statistics.median(values):.1f} | {spread} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
