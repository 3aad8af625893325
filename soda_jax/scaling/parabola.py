"""Approach 2: a parabola of the loss in log N, and in log D, for each budget.

Its minimum is the optimum of the budget; a line through the logarithms of the optima gives
N* ∝ C^a and D* ∝ C^b (Hoffmann et al., arXiv 2203.15556, section 3.2; SODA, IsoFLOP section).
"""

import dataclasses
from typing import Any

import numpy as np

MIN_RUNS = 3
_NAMED = 8  # budgets in a message


@dataclasses.dataclass(frozen=True)
class Parabola:
    """The parabola of one budget.

    Attributes:
      budget: training FLOPs.
      runs: number of runs.
      curvature: half of the second derivative in nats; a minimum exists if it is above 0.
      minimum: position of the minimum, a count of parameters or of tokens; NaN without a minimum.
      loss: loss at the minimum in nats.
      low, high: the smallest and largest count that was tried.
    """

    budget: float
    runs: int
    curvature: float
    minimum: float
    loss: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the minimum is within the tried counts."""
        return self.low <= self.minimum <= self.high


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """A power law of the budget, count* = exp(offset) · C^exponent."""

    exponent: float
    offset: float

    def at(self, budget: float | np.ndarray) -> np.ndarray:
        """Returns the optimal count at a budget in FLOPs."""
        return np.exp(self.offset + self.exponent * np.log(budget))


@dataclasses.dataclass(frozen=True)
class Approach2:
    """Result of approach 2.

    Attributes:
      params, tokens: the power laws of N* and D*; None without a result.
      by_params, by_tokens: the parabola of each budget in log N and in log D.
      reason: why there is no result, otherwise "".
      warnings: a line for each minimum that is missing or outside the tried sizes.
    """

    params: PowerLaw | None
    tokens: PowerLaw | None
    by_params: tuple[Parabola, ...] = ()
    by_tokens: tuple[Parabola, ...] = ()
    reason: str = ""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any] | None:
        """Returns a, b and the optimum of each budget; None without a result."""
        if self.params is None or self.tokens is None:
            return None
        optima = [
            {
                "budget": n.budget,
                "runs": n.runs,
                "params": _known(n.minimum),
                "tokens": _known(d.minimum),
                "loss": _known(n.loss),
                "inside": n.inside and d.inside,
            }
            for n, d in zip(self.by_params, self.by_tokens, strict=True)
        ]
        laws = {"params": self.params, "tokens": self.tokens}
        return {
            "a": self.params.exponent,
            "b": self.tokens.exponent,
            "offsets": {name: law.offset for name, law in laws.items()},
            "optima": optima,
        }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def fit_parabolas(
    budget: np.ndarray,
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    weights: np.ndarray | None = None,
) -> Approach2:
    """Returns the result of approach 2.

    A budget whose parabola opens downward has no minimum and is left out of the power laws. There is
    no result if a budget has fewer than three different sizes or fewer than two budgets have a minimum.

    Args:
      budget: training FLOPs of the curve of each run, `[runs]`; equal values form a curve.
      params, tokens: counts of each run, `[runs]`.
      loss: losses in nats, `[runs]`.
      weights: weight of each run, `[runs]`; by default 1.
    """
    weights = np.ones_like(loss) if weights is None else weights
    curves = [(value, budget == value) for value in np.unique(budget)]
    few = []
    for value, chosen in curves:
        count = min(len(np.unique(x[chosen])) for x in (params, tokens))
        if count < MIN_RUNS:
            what = "run" if count == chosen.sum() else "size"
            few.append(f"budget {value:g} has {count} {what}{'s' * (count > 1)}")
    if few:
        more = f" and {len(few) - _NAMED} others" * (len(few) > _NAMED)
        reason = f"{'; '.join(few[:_NAMED])}{more}, a parabola needs {MIN_RUNS}"
        return Approach2(None, None, reason=reason, warnings=(reason,))
    by_params, by_tokens = (
        tuple(
            _parabola(value, x[chosen], loss[chosen], weights[chosen]) for value, chosen in curves
        )
        for x in (params, tokens)
    )
    warnings = _warnings(by_params, "N") + _warnings(by_tokens, "D")
    law_n, law_d = _power_law(by_params), _power_law(by_tokens)
    if law_n is None or law_d is None:
        reason = "fewer than two budgets have a parabola with a minimum"
        warnings.append(f"approach 2: {reason}")
        return Approach2(None, None, by_params, by_tokens, reason, tuple(warnings))
    return Approach2(law_n, law_d, by_params, by_tokens, warnings=tuple(warnings))


def _parabola(budget: float, counts: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> Parabola:
    logs = np.log(counts)
    center, width = logs.mean(), np.ptp(logs) or 1.0
    curvature, slope, level = np.polyfit((logs - center) / width, loss, 2, w=np.sqrt(weights))
    where = bottom = np.nan
    # A minimum beyond e^50 × the tried counts is that of a straight line.
    if curvature > 0 and abs(width * slope / (2 * curvature)) < 50:
        where = np.exp(center - width * slope / (2 * curvature))
        bottom = level - slope**2 / (4 * curvature)
    return Parabola(
        float(budget), len(loss), float(curvature / width**2), float(where), float(bottom),
        float(counts.min()), float(counts.max()),
    )  # fmt: skip


def _power_law(parabolas: tuple[Parabola, ...]) -> PowerLaw | None:
    known = [one for one in parabolas if np.isfinite(one.minimum)]
    if len(known) < 2:
        return None
    budgets, minima = (
        np.log([getattr(one, key) for one in known]) for key in ("budget", "minimum")
    )
    exponent, offset = np.polyfit(budgets, minima, 1)
    return PowerLaw(float(exponent), float(offset))


def _warnings(parabolas: tuple[Parabola, ...], name: str) -> list[str]:
    lines = []
    for one in parabolas:
        where = f"budget {one.budget:g}: the parabola in log {name}"
        if not one.curvature > 0:
            lines.append(f"{where} opens downward, so the budget is left out of approach 2")
        elif not np.isfinite(one.minimum):
            lines.append(f"{where} is flat, so the budget is left out of approach 2")
        elif not one.inside:
            lines.append(
                f"{where} has its minimum at {one.minimum:.3g}, outside the tried "
                f"{one.low:.3g} to {one.high:.3g}"
            )
    return lines
