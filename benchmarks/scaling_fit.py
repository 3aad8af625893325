"""Time of a bootstrap draw by variable projection and by approach 3.

    python benchmarks/scaling_fit.py

The table of 66 runs is made up: the grid of the paper, a law with normal noise. Sides: `soda scaling fit`
with 1,000 draws; a plain loop over approach 3 with scipy's L-BFGS from the 4,500 starts of Hoffmann et
al. (arXiv 2203.15556), for as many draws as fit into `--minutes`, at least one; and the same loop from
one start. The loop uses the same weights, and the gradient is computed, not estimated.
"""

import argparse
import statistics
import time

import numpy as np
from _machine import describe_machine
from _results import parse, written
from scipy.optimize import minimize

from soda_jax.scaling.bootstrap import bootstrap, draw_weights
from soda_jax.scaling.fit import fit_loss
from soda_jax.scaling.grid import plan_runs
from soda_jax.scaling.log_sum_exp import all_starts
from soda_jax.scaling.rules import BUDGETS, soda
from soda_jax.scaling.runs import Runs
from soda_jax.scaling.surface import DELTA, Surface, fit_surface

LAW = Surface(0.36, 0.40, 1.86, 4.15, 1.05)
NOISE = 0.003  # nats


def make_runs(seed: int) -> Runs:
    """Returns the runs of the paper's grid with losses of `LAW` and normal noise."""
    plan = plan_runs(soda(), BUDGETS, 144_644, 4096).runs
    params = np.array([float(run.shape.parameters(run.vocabulary)) for run in plan])
    tokens = np.array([float(run.tokens) for run in plan])
    budget = np.array([run.budget for run in plan])
    noise = NOISE * np.random.default_rng(seed).standard_normal(len(plan))
    return Runs(budget, params, tokens, LAW.loss(params, tokens) + noise, {}, {})


def descend(runs: Runs, weights: np.ndarray, starts: np.ndarray) -> float:
    """Returns the lowest weighted objective of approach 3 that L-BFGS reaches from `starts`."""
    log_n, log_d, log_l = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)

    def objective(x):
        terms = np.stack([x[2] - x[0] * log_n, x[3] - x[1] * log_d, np.full_like(log_n, x[4])])
        fitted = np.logaddexp(np.logaddexp(terms[0], terms[1]), terms[2])
        residual = fitted - log_l
        size = np.abs(residual)
        values = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - DELTA / 2))
        slope = weights * np.clip(residual, -DELTA, DELTA) * np.exp(terms - fitted)
        gradient = (-slope[0] * log_n, -slope[1] * log_d, *slope)
        return (weights * values).sum(), np.array([part.sum() for part in gradient])

    return min(minimize(objective, start, method="L-BFGS-B", jac=True).fun for start in starts)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000, help="draws of soda scaling fit")
    parser.add_argument("--repeats", type=int, default=3, help="bootstraps timed")
    parser.add_argument("--minutes", type=float, default=2.0, help="time for the plain loop")
    parser.add_argument("--starts", type=int, default=4500, help="starts of the plain loop")
    args = parse(parser, {"draws": 200, "repeats": 1, "minutes": 0.0, "starts": 450})

    runs = make_runs(0)
    surface = fit_surface(runs.params, runs.tokens, runs.loss)
    ours, whole = [], []
    for seed in range(args.repeats):
        began = time.perf_counter()
        bootstrap(runs, surface, draw_weights(args.draws, len(runs), seed))
        ours.append((time.perf_counter() - began) / args.draws)
        began = time.perf_counter()
        fit_loss(runs, draw_weights(args.draws, len(runs), seed), seed)
        whole.append(time.perf_counter() - began)

    random = np.random.default_rng(0)
    starts = all_starts()[:: 4500 // args.starts]
    loop, single, deadline = [], [], time.perf_counter() + 60 * args.minutes
    while not loop or time.perf_counter() + loop[-1] < deadline:
        weights = random.exponential(size=len(runs))
        began = time.perf_counter()
        descend(runs, weights, starts)
        loop.append(time.perf_counter() - began)
    for _ in range(10):
        weights = random.exponential(size=len(runs))
        began = time.perf_counter()
        descend(runs, weights, np.array([[0.5, 0.5, 10.0, 10.0, 0.5]]))
        single.append(time.perf_counter() - began)

    reference = statistics.median(ours)
    print(
        f"Bootstrap of a scaling law, {len(runs)} runs; {describe_machine()}; medians.\n"
        f"soda scaling fit with {args.draws:,} draws, all three methods and checks: "
        f"{statistics.median(whole):.1f} s\n"
    )
    print("| fit of a draw | draws | ms per draw | × variable projection |\n|---|---:|---:|---:|")
    with written(args.json) as results:
        for name, values, count in (
            ("variable projection, with approach 2", ours, args.draws * len(ours)),
            (f"approach 3, L-BFGS from {len(starts):,} starts", loop, len(loop)),
            ("approach 3, L-BFGS from 1 start", single, len(single)),
        ):
            ratio = statistics.median(values) / reference
            print(f"| {name} | {count:,} | {1e3 * statistics.median(values):,.1f} | {ratio:,.1f} |")
            side = "ours" if values is ours else name
            results.add("bootstrap draw", side, "seconds", values, ratio)
        results.add("fit with bootstrap", "ours", "seconds", whole)


if __name__ == "__main__":
    main()
