"""Approach 3: L = E + A / N^α + B / D^β, fitted to the logarithms of the losses.

The objective is the mean Huber function (delta 1e-3) of LSE(a − α log N, b − β log D, e) − log L, where
A, B and E are the exponentials of a, b and e (Hoffmann et al., arXiv 2203.15556, appendix D.3). It has
five ill-conditioned parameters; `soda_jax.scaling.surface` fits the same law more reliably.
"""

import itertools

import numpy as np

from soda_jax.scaling.surface import DELTA, Surface, huber

# The 4,500 starts of the paper, for N and D as plain counts: α, β, a, b, e.
_STARTS = (
    np.arange(0, 2.01, 0.5),
    np.arange(0, 2.01, 0.5),
    np.arange(0, 25.1, 5),
    np.arange(0, 25.1, 5),
    np.arange(-1, 1.01, 0.5),
)


def all_starts() -> np.ndarray:
    """Returns the 4,500 starts of the paper, f64 `[4500, 5]`: α, β, a, b, e."""
    return np.array(list(itertools.product(*_STARTS)))


def fit_log_sum_exp(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, descents: int = 12
) -> Surface:
    """Returns the best surface of several L-BFGS descents.

    Args:
      params: parameters of each run, `[runs]`.
      tokens: tokens of each run, `[runs]`.
      loss: measured losses in nats, above 0, `[runs]`.
      descents: how many of the paper's starts to descend from, those with the lowest objective.
    """
    from scipy.optimize import minimize

    logs = np.log(params), np.log(tokens), np.log(loss)
    starts = all_starts()
    if descents < len(starts):
        values = np.concatenate([_values(part, *logs) for part in np.split(starts, 9)])
        starts = starts[np.argsort(values, kind="stable")[:descents]]
    results = [
        minimize(_objective, start, logs, "L-BFGS-B", jac=True, options={"maxiter": 1000})
        for start in starts
    ]
    best = min(results, key=lambda result: result.fun)
    alpha, beta, a, b, e = best.x
    million, billion = np.log(1e6), np.log(1e9)
    surface = Surface(
        float(alpha),
        float(beta),
        float(np.exp(e)),
        float(np.exp(a - alpha * million)),
        float(np.exp(b - beta * billion)),
    )
    return surface.measured(params, tokens, loss)


def _terms(values: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    """Returns the three logarithms of the terms of the loss, `[3, starts, runs]`."""
    alpha, beta, a, b, e = values.T[:, :, None]
    return np.stack([a - alpha * log_n, b - beta * log_d, e + 0 * log_n])


def _values(
    values: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_l: np.ndarray
) -> np.ndarray:
    """Returns the objective at each row of `values`, `[starts]`."""
    fitted = np.logaddexp.reduce(_terms(values, log_n, log_d))
    return huber(fitted - log_l).mean(1)


def _objective(
    values: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_l: np.ndarray
) -> tuple[float, np.ndarray]:
    """Returns the objective, times 1e6 for the tolerances of L-BFGS, and its gradient."""
    terms = _terms(values[None], log_n, log_d)[:, 0]
    fitted = np.logaddexp.reduce(terms)
    residuals = fitted - log_l
    shares = np.exp(terms - fitted) * np.clip(residuals, -DELTA, DELTA)
    gradient = (-shares[0] * log_n, -shares[1] * log_d, *shares)
    return 1e6 * float(huber(residuals).mean()), 1e6 * np.array([g.mean() for g in gradient])
