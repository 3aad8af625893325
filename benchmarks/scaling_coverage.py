"""How often the 95% intervals of `soda scaling fit` contain the law that made a noisy table.

    python benchmarks/scaling_coverage.py

Each table has losses of a known law with normal noise on a grid of budgets and sizes around the
optimum, C = 6ND. The target is at least 90 of 100 tables.
"""

import argparse
import time

import numpy as np
from _machine import describe_machine
from _results import parse, written

from soda_jax.scaling.bootstrap import bootstrap, draw_weights
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import Surface, fit_surface

LAWS = {
    "0.36, 0.40": Surface(0.36, 0.40, 1.86, 4.15, 1.05),
    "0.34, 0.28": Surface(0.34, 0.28, 1.69, 406 / 1e6**0.34, 410 / 1e9**0.28),
}
NAMES = ("alpha", "beta", "E", "A", "B", "a", "b")


def make_runs(
    law: Surface, budgets: int, sizes: int, noise: float, random: np.random.Generator
) -> Runs:
    """Returns runs at 1e18 to 1e20 FLOPs, with sizes from 1/4 to 4 × the optimum."""
    flops = np.geomspace(1e18, 1e20, budgets)
    params = (law.optimum(flops / 6)[0][:, None] * np.geomspace(0.25, 4, sizes)).ravel()
    budget = np.repeat(flops, sizes)
    tokens = budget / (6 * params)
    loss = law.loss(params, tokens) + noise * random.standard_normal(len(params))
    return Runs(budget, params, tokens, loss, {}, {})


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=100, help="noisy tables of each row")
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws of each table")
    args = parse(parser, {"tables": 10, "draws": 100})

    print(
        f"Tables of {args.tables} whose 95% interval contains the truth, {args.draws} bootstrap draws; "
        f"{describe_machine()}.\n"
    )
    print(f"| alpha, beta | grid | noise, nats | {' | '.join(NAMES)} | s per table |")
    print("|---|---|---:|" + "---:|" * (len(NAMES) + 1))
    with written(args.json) as results:
        for name, law in LAWS.items():
            truth = dict(zip("ab", law.exponents(), strict=True)) | vars(law)
            for budgets, sizes, noise in ((7, 9, 0.003), (7, 9, 0.01), (5, 5, 0.003)):
                random = np.random.default_rng(0)
                hits = dict.fromkeys(NAMES, 0)
                began = time.perf_counter()
                for seed in range(args.tables):
                    runs = make_runs(law, budgets, sizes, noise, random)
                    surface = fit_surface(runs.params, runs.tokens, runs.loss)
                    weights = draw_weights(args.draws, len(runs), seed)
                    ranges = bootstrap(runs, surface, weights).intervals()
                    for key in NAMES:
                        low, high = ranges["variable_projection"][key]
                        hits[key] += low <= truth[key] <= high
                seconds = (time.perf_counter() - began) / args.tables
                grid = f"{budgets} × {sizes}"
                cells = " | ".join(f"{hits[key]}" for key in NAMES)
                print(f"| {name} | {grid} | {noise} | {cells} | {seconds:.2f} |", flush=True)
                for key in NAMES:
                    what = f"{name}, {grid}, noise {noise}: {key} outside"
                    missed = 100 * (1 - hits[key] / args.tables)
                    results.add(what, "ours", "percent", [missed])


if __name__ == "__main__":
    main()
