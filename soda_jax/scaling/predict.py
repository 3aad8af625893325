"""Predicts optimal sizes, losses and over-training from a fit, with intervals from its bootstrap.

The optimum of a budget minimizes the fitted loss over N, with the tokens that the budget allows a model
of N parameters. These follow from the FLOPs of the model that the rules of the study give this size, or,
for tables of other studies, from the FLOPs in the table (`flops_law`), and never from 6ND.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from soda_jax.errors import UserError
from soda_jax.scaling.bootstrap import COEFFICIENTS, interval
from soda_jax.scaling.parabola import PowerLaw
from soda_jax.scaling.rules import Rules
from soda_jax.scaling.runs import PARAMETER_COUNTS
from soda_jax.scaling.surface import Surface

_BUDGETS = np.geomspace(1e12, 1e28, 321)
_SIZES = 2000  # points of the search over N
_MAX_WIDTH = 32_768


class FlopCount(Protocol):
    """Training FLOPs per token of a model with a number of parameters."""

    def __call__(self, params: np.ndarray) -> np.ndarray:
        """Returns FLOPs per token, forward and backward, for counts of parameters."""


def model_flops(
    rules: Rules, vocabulary: int, sequence_length: int, count: str = "params_total"
) -> FlopCount:
    """Returns the FLOP count of the models of a study, 3 × forward, interpolated between widths.

    Args:
      rules: rules of the study.
      vocabulary: number of ids.
      sequence_length: tokens per window.
      count: which parameters are counted, one of `PARAMETER_COUNTS`.
    """
    matrices = dict(zip(PARAMETER_COUNTS, (2, 1, 0), strict=True))[count]
    shapes = [rules.shape(width) for width in range(128, _MAX_WIDTH + 1, 128)]
    params = [shape.parameters(vocabulary, matrices) for shape in shapes]
    flops = [3 * shape.forward_flops_per_token(vocabulary, sequence_length) for shape in shapes]
    log_params, log_flops = np.log(params), np.log(flops)

    def count_flops(params: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(np.log(params), log_params, log_flops))

    return count_flops


@dataclasses.dataclass(frozen=True)
class SurfaceLaw:
    """A fitted surface with its bootstrap draws.

    Attributes:
      surface: the fit.
      draws: α, β, E, A and B of each draw, `[draws, 5]`; may be empty.
      flops: FLOP count of a model.
      classes: the surface of each token class.
      note: which parameters and FLOPs are counted.
    """

    surface: Surface
    draws: np.ndarray
    flops: FlopCount
    classes: Mapping[str, Surface]
    note: str

    def optimum(self, budget: float) -> dict[str, Any]:
        """Returns N*, D*, their ratio and the loss at a budget in FLOPs, with intervals."""
        best, draws = self._optima(self.surface, budget), np.empty((4, 0))
        if len(self.draws):
            found = [self._optima(_surface(draw), budget) for draw in self.draws]
            draws = np.array([[one[name] for one in found] for name in best])
        ranges = {
            name: interval(values) if len(values) else None
            for name, values in zip(best, draws, strict=True)
        }
        return {"budget": budget, **best, "intervals": ranges}

    def _optima(self, surface: Surface, budget: float) -> dict[str, float]:
        params = np.geomspace(1e4, 1e14, _SIZES)
        tokens = budget / self.flops(params)
        losses = surface.loss(params, tokens)
        index = int(losses.argmin())
        if 0 < index < _SIZES - 1:  # the vertex of the parabola through three points
            before, here, after = losses[index - 1 : index + 2]
            step = 0.5 * (before - after) / (before - 2 * here + after or 1.0)
            best = params[index] * (params[1] / params[0]) ** float(np.clip(step, -1, 1))
        else:
            best = params[index]
        allowed = budget / float(self.flops(np.array(best)))
        return {
            "params": float(best),
            "tokens": allowed,
            "tokens_per_parameter": allowed / float(best),
            "loss": float(surface.loss(np.array(best), np.array(allowed))),
        }

    def model(self, params: float, tokens: float) -> dict[str, Any]:
        """Returns the loss of a model, and its tokens divided by those for which N is optimal."""
        point = np.array(params), np.array(tokens)
        losses = [float(_surface(draw).loss(*point)) for draw in self.draws]
        return {
            "params": params,
            "tokens": tokens,
            "budget": float(self.flops(point[0])) * tokens,
            "loss": float(self.surface.loss(*point)),
            "classes": {name: float(one.loss(*point)) for name, one in self.classes.items()},
            "over_training": tokens / best if (best := self._optimal_tokens(params)) else None,
            "intervals": {"loss": interval(np.array(losses)) if losses else None},
        }

    def _optimal_tokens(self, params: float) -> float | None:
        """Returns the tokens of the budget whose optimum is `params`; None beyond 1e12 to 1e28 FLOPs."""
        optima = [self._optima(self.surface, budget) for budget in _BUDGETS]
        sizes, tokens = (np.log([one[name] for one in optima]) for name in ("params", "tokens"))
        grows = np.concatenate([[True], np.diff(np.maximum.accumulate(sizes)) > 0])
        logs = np.interp(math.log(params), sizes[grows], tokens[grows], math.nan, math.nan)
        return float(np.exp(logs)) if math.isfinite(logs) else None

    def budget_for(self, loss: float) -> dict[str, Any]:
        """Returns the smallest budget that reaches a loss in nats, with its optimum.

        Raises:
          UserError: if the fitted loss does not go so low within 1e28 FLOPs.
        """
        reached = np.array([self._optima(self.surface, budget)["loss"] for budget in _BUDGETS])
        if not reached[-1] < loss < reached[0]:
            raise UserError(
                f"--target_loss={loss:g} is outside the fitted losses at {_BUDGETS[0]:g} to "
                f"{_BUDGETS[-1]:g} FLOPs, {reached[0]:.4g} to {reached[-1]:.4g}; the irreducible loss "
                f"is {self.surface.E:.4g}"
            )
        budget = np.exp(np.interp(-loss, -reached, np.log(_BUDGETS)))
        return self.optimum(float(budget))


@dataclasses.dataclass(frozen=True)
class PowerLaws:
    """Published power laws of the optimum, without a loss.

    Attributes:
      params, tokens: N* and D* as functions of the budget.
      note: which parameters are counted.
    """

    params: PowerLaw
    tokens: PowerLaw
    note: str

    def optimum(self, budget: float) -> dict[str, Any]:
        """Returns N*, D* and their ratio at a budget in FLOPs; the loss is None."""
        params, tokens = float(self.params.at(budget)), float(self.tokens.at(budget))
        ratio = {"tokens_per_parameter": tokens / params, "loss": None}
        return {"budget": budget, "params": params, "tokens": tokens, **ratio, "intervals": {}}

    def model(self, params: float, tokens: float) -> dict[str, Any]:
        """Returns a model's tokens divided by those for which N is optimal; the loss is None."""
        budget = math.exp((math.log(params) - self.params.offset) / self.params.exponent)
        factor = tokens / float(self.tokens.at(budget))
        size = {"params": params, "tokens": tokens, "budget": None, "loss": None}
        return {**size, "classes": {}, "over_training": factor, "intervals": {}}

    def budget_for(self, loss: float) -> dict[str, Any]:
        """Raises UserError: the paper published no loss."""
        raise UserError(f"--target_loss={loss:g}: a preset has no loss; give the JSON of a fit")


def _at_1e20(value: float, exponent: float) -> PowerLaw:
    return PowerLaw(exponent, math.log(value) - exponent * math.log(1e20))


PRESETS = {
    # Coefficients that are consistent with all ratios in the paper (SODA, IsoFLOP section).
    "soda": PowerLaws(
        _at_1e20(1.13e9, 0.367),
        _at_1e20(1.47e10, 0.579),
        "params is the nominal size of SODA: without the embedding, with one head",
    )
}


def _surface(values: Sequence[float]) -> Surface:
    return Surface(*map(float, values))


def read_fit(file: str, rules: Rules, vocabulary: int | None, length: int | None) -> SurfaceLaw:
    """Reads the JSON of `soda scaling fit`.

    Args:
      file: the JSON file.
      rules: rules of the study, for the FLOPs of a size.
      vocabulary: number of ids; None takes that of the fitted table.
      length: tokens per window; None takes that of the fitted table.

    Raises:
      UserError: if the file is unreadable or not the JSON of a fit.
    """
    try:
        fit = json.loads(Path(file).read_bytes())
        draws = np.array([fit.get("draws", {}).get(name, []) for name in COEFFICIENTS]).T
        table, flops_law = fit["table"], fit["flops_law"]
        count = table["columns"].get("params", "")
        surface = _of_json(fit["variable_projection"])
        classes = {
            name: _of_json(one["variable_projection"])
            for name, one in fit["classes"].items()
            if "variable_projection" in one
        }
        constant, power = float(flops_law["constant"]), float(flops_law["power"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a fit: {type(error).__name__}: {error}; write it with soda scaling fit"
        ) from None
    vocabulary, length = vocabulary or table.get("vocabulary"), length or table.get("length")
    if vocabulary and length:
        count = count if count in PARAMETER_COUNTS else PARAMETER_COUNTS[0]
        flops = model_flops(rules, vocabulary, length, count)
        note = (
            f"params is {count}; FLOPs of the model, {vocabulary:,} ids, {length:,} tokens a window"
        )
        return SurfaceLaw(surface, draws, flops, classes, note)

    def of_table(params: np.ndarray) -> np.ndarray:
        return constant * params**power

    note = f"params as in the table; FLOPs as in the table, {constant:.3g} · N^{power:.3f} · D"
    return SurfaceLaw(surface, draws, of_table, classes, note)


def _of_json(values: Mapping[str, Any]) -> Surface:
    return _surface([values[name] for name in COEFFICIENTS])
