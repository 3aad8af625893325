"""Predicts optimal sizes, losses and over-training from a fit, with intervals from its bootstrap.

The optimum of a budget minimizes the fitted loss over N, with the tokens that the budget allows a model
of N parameters. These follow from the FLOPs of the model that the rules of the study give this size, or,
for tables of other studies, from the FLOPs in the table (`flops_law`), and never from 6ND.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.errors import UserError
from soda_jax.scaling.bootstrap import COEFFICIENTS, interval
from soda_jax.scaling.flop_count import FlopCount, model_flops
from soda_jax.scaling.rules import Rules
from soda_jax.scaling.runs import PARAMETER_COUNTS
from soda_jax.scaling.shape import legal_head_rows
from soda_jax.scaling.surface import Surface, losses_of
from soda_jax.tokens.vocabulary import VocabularyLayout

_SIZES = 2000  # points of the search over N
_LOG_BUDGETS = (math.log(1e6), math.log(1e40))  # of the search for a loss
_FLOPS_DIFFER = 1.25  # factor between rules and table that is reported
_TABLE_SIZES = (1e3, 1e15)  # parameters that are searched with the FLOPs of a table


@dataclasses.dataclass(frozen=True)
class SurfaceLaw:
    """A fitted surface with its bootstrap draws.

    Attributes:
      surface: the fit.
      draws: α, β, E, A and B of each draw, `[draws, 5]`; may be empty.
      flops: FLOP count of a model.
      classes: the surface of each token class.
      note: which parameters and FLOPs are counted.
      class_draws: draws of each token class, `[draws, 5]`; a class may have none.
      study: number of ids, tokens per window and name of the parameter count if `flops` are those of
        models, otherwise None.
    """

    surface: Surface
    draws: np.ndarray
    flops: FlopCount
    classes: Mapping[str, Surface]
    note: str
    class_draws: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    study: tuple[int, int, str] | None = None

    def optimum(self, budget: float) -> dict[str, Any]:
        """Returns N*, D*, their ratio and the loss at a budget in FLOPs, with intervals.

        `classes` has the loss of each token class at N* and D*, `class_optima` the optimum of each class;
        the values of a class without an optimum are None.

        Raises:
          UserError: if the loss has no minimum within the sizes whose FLOPs are known.
        """
        best = self._one(self.surface, budget)
        if not math.isfinite(best["params"]):
            low, high = self.flops.sizes
            raise UserError(
                f"the fitted loss has no minimum at {budget:.3g} FLOPs for models of {low:.3g} to "
                f"{high:.3g} parameters: use a budget near those of the study, or a fit without warnings"
            )
        at = self._class_losses(best["params"], best["tokens"])
        own = {}
        for name, surface in self.classes.items():
            found = self._one(surface, budget)
            own[name] = {
                **{key: value if math.isfinite(value) else None for key, value in found.items()},
                "intervals": self._ranges(self.class_draws.get(name), budget),
            }
        ranges = self._ranges(self.draws, budget)
        return {"budget": budget, **best, "intervals": ranges, **at, "class_optima": own}

    def _ranges(self, draws: np.ndarray | None, budget: float) -> dict[str, list[float] | None]:
        if draws is None or not len(draws):
            return dict.fromkeys(("params", "tokens", "tokens_per_parameter", "loss"))
        return {name: interval(values) for name, values in self._optima(draws, budget).items()}

    def _one(self, surface: Surface, budget: float) -> dict[str, float]:
        found = self._optima(np.array([surface.coefficients]), budget)
        return {name: float(values[0]) for name, values in found.items()}

    def _class_losses(self, params: float, tokens: float) -> dict[str, Any]:
        """Returns the loss of each class for a model, and its intervals."""
        point = np.array(params), np.array(tokens)
        return {
            "classes": {name: float(one.loss(*point)) for name, one in self.classes.items()},
            "class_intervals": {
                name: interval(losses_of(draws, *point)) if len(draws) else None
                for name, draws in self.class_draws.items()
            },
        }

    def _optima(
        self, draws: np.ndarray, budget: float | np.ndarray, sizes: int = _SIZES
    ) -> dict[str, np.ndarray]:
        """Returns N*, D*, their ratio and the lowest loss of each draw, `[draws]`.

        N* and D* are NaN if the loss is lowest at the smallest or the largest size.

        Args:
          draws: α, β, E, A and B, `[draws, 5]`.
          budget: FLOPs, a number or `[draws]`.
          sizes: points of the search.
        """
        # Not `self.flops`, which would give NaN where rounding moves an end out of the known sizes.
        first, last = self.flops.log_params[[0, -1]].tolist()
        line = np.linspace(first, last, sizes)
        per_token = np.exp(np.interp(line, self.flops.log_params, self.flops.log_flops))
        budgets = np.broadcast_to(budget, len(draws))[:, None]
        losses = losses_of(draws[:, None], np.exp(line), budgets / per_token)
        index = losses.argmin(1)
        inside = np.clip(index, 1, sizes - 2)  # the vertex of the parabola through three points
        before, here, after = (
            np.take_along_axis(losses, (inside + shift)[:, None], 1)[:, 0] for shift in (-1, 0, 1)
        )
        with np.errstate(all="ignore"):
            bend = before - 2 * here + after
            step = np.where(bend > 0, 0.5 * (before - after) / bend, 0.0)
        step = np.where(index == inside, np.clip(np.nan_to_num(step), -1, 1), 0)
        best = line[index] + step * (line[1] - line[0])
        tokens = budgets[:, 0] / np.exp(
            np.interp(best, self.flops.log_params, self.flops.log_flops)
        )
        loss, known = losses_of(draws, np.exp(best), tokens), index == inside
        params, tokens = (np.where(known, x, np.nan) for x in (np.exp(best), tokens))
        ratio = tokens / params
        return {"params": params, "tokens": tokens, "tokens_per_parameter": ratio, "loss": loss}

    def model(self, params: float, tokens: float) -> dict[str, Any]:
        """Returns the loss of a model, and its tokens divided by those for which N is optimal.

        Raises:
          UserError: if the FLOPs of the size are not known, or a value is not finite.
        """
        point = np.array(params), np.array(tokens)
        low, high = self.flops.sizes
        budget, loss = float(self.flops(point[0])) * tokens, float(self.surface.loss(*point))
        if not math.isfinite(budget) or not math.isfinite(loss):
            raise UserError(
                f"--params={params:g} --tokens={tokens:g} is out of range: the fit has FLOPs for "
                f"{low:.3g} to {high:.3g} parameters"
            )
        best = self._optimal_tokens(np.array([self.surface.coefficients]), params)
        factors = tokens / self._optimal_tokens(self.draws, params)
        return {
            "params": params,
            "tokens": tokens,
            "budget": budget,
            "loss": loss,
            **self._class_losses(params, tokens),
            "over_training": float(tokens / best[0]) if np.isfinite(best[0]) else None,
            "intervals": {
                "loss": interval(losses_of(self.draws, *point)) if len(self.draws) else None,
                "over_training": interval(factors) if len(factors) else None,
            },
        }

    def _optimal_tokens(self, draws: np.ndarray, params: float) -> np.ndarray:
        """Returns the tokens of the budget at which N is optimal, `[draws]`; NaN without one.

        At the optimum of a budget, α · A · N^-α = s · β · B · D^-β, s being the slope of the FLOPs.
        """
        alpha, beta, _, a, b = draws.T
        slope = self.flops.slope(params)
        with np.errstate(all="ignore"):
            power = slope * beta * b / (alpha * a * (params / 1e6) ** -alpha)
            tokens = 1e9 * power ** (1 / beta)
        return np.where((a > 0) & (b > 0) & (slope > 0), tokens, np.nan)

    def budget_for(self, loss: float) -> dict[str, Any]:
        """Returns the budget whose lowest loss is `loss` in nats, with its optimum.

        The intervals are those of the budget that reaches the loss, and of N* and D* of that budget.

        Raises:
          UserError: if the fitted loss does not have this value.
        """
        one = np.array([self.surface.coefficients])
        budget = self._budgets(one, loss)
        if not np.isfinite(budget[0]):
            lowest, highest = (
                float(self._optima(one, math.exp(log))["loss"][0]) for log in _LOG_BUDGETS[::-1]
            )
            raise UserError(
                f"--target_loss={loss:g} is outside the fitted losses at 1e6 to 1e40 FLOPs, {highest:.4g} "
                f"to {lowest:.4g}; the irreducible loss is {self.surface.E:.4g}"
            )
        row = self.optimum(float(budget[0]))
        if len(self.draws):
            budgets = self._budgets(self.draws, loss)
            found = self._optima(self.draws, np.where(np.isfinite(budgets), budgets, 1e6))
            reached = np.isfinite(budgets)
            row["intervals"] = {
                "budget": interval(budgets),
                **{name: interval(np.where(reached, x, np.nan)) for name, x in found.items()},
                "loss": None,  # it is given
            }
        return row

    def _budgets(self, draws: np.ndarray, loss: float) -> np.ndarray:
        """Returns the budget at which the lowest loss of each draw is `loss`, by bisection, `[draws]`."""
        low, high = (np.full(len(draws), log) for log in _LOG_BUDGETS)
        points = 400  # the lowest loss is flat in N, so that fewer points are enough
        first, last = (self._optima(draws, np.exp(x), points)["loss"] for x in (low, high))
        for _ in range(40):
            middle = (low + high) / 2
            reached = self._optima(draws, np.exp(middle), points)["loss"] <= loss
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return np.where((last < loss) & (loss < first), np.exp(high), np.nan)


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
        table, flops_law = fit["table"], fit["flops_law"]
        count = table["columns"].get("params", "")
        surface, draws = _of_json(fit["variable_projection"]), _draws(fit)
        fitted = {k: one for k, one in fit["classes"].items() if "variable_projection" in one}
        classes = {name: _of_json(one["variable_projection"]) for name, one in fitted.items()}
        class_draws = {name: _draws(one) for name, one in fitted.items()}
        constant, power = float(flops_law["constant"]), float(flops_law["power"])
        budgets = [float(one["budget"]) for one in fit.get("optima", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not a fit: {type(error).__name__}: {error}; write it with soda scaling fit"
        ) from None
    given = bool(vocabulary and length)
    # A column of another name may count other parameters than those of the rules.
    planned = given or count in PARAMETER_COUNTS
    vocabulary, length = vocabulary or table.get("vocabulary"), length or table.get("length")
    if not (planned and vocabulary and length):
        line = np.log(_TABLE_SIZES)
        flops = FlopCount(line, math.log(constant) + power * line)
        note = f"params as in the table; FLOPs as in the table, {constant:.3g} · N^{power:.3f} · D"
        return SurfaceLaw(surface, draws, flops, classes, note, class_draws)
    count = count if count in PARAMETER_COUNTS else PARAMETER_COUNTS[0]
    flops = model_flops(rules, vocabulary, length, count)
    note = f"params is {count}; FLOPs of the model, {vocabulary:,} ids, {length:,} tokens a window"
    study = (vocabulary, length, count)
    law = SurfaceLaw(surface, draws, flops, classes, note, class_draws, study)
    return dataclasses.replace(law, note=note + _disagreement(law, constant, power, budgets))


def _disagreement(law: SurfaceLaw, constant: float, power: float, budgets: list[float]) -> str:
    """Returns a warning if the FLOPs of the rules are not those of the fitted table, otherwise ""."""
    best, _ = law.surface.optimum(np.array(budgets) / constant, power)
    ratio = law.flops(best) / (constant * best**power)
    ratio = ratio[np.isfinite(ratio)]
    if not len(ratio) or np.abs(np.log(ratio)).max() < math.log(_FLOPS_DIFFER):
        return ""
    return (
        f"; warning: these FLOPs are {ratio[np.abs(np.log(ratio)).argmax()]:.2g} × those of the table: "
        "check --rules, --vocabulary and --sequence_length"
    )


@dataclasses.dataclass(frozen=True)
class LegalHeadLaw(SurfaceLaw):
    """A law with the FLOPs of a head over legal ids, compared with that of a head over all ids.

    The loss surface is the same for both; only the tokens that a budget allows a model differ.

    Attributes:
      full: the law with the FLOPs of a head over all ids.
    """

    full: SurfaceLaw | None = None

    def optimum(self, budget: float) -> dict[str, Any]:
        """Returns the optimum of a budget, and how it differs from that of the full head.

        Further values: `full_head`, the optimum with the full head; `params_ratio` and `tokens_ratio`, N*
        and D* divided by those of the full head, with intervals; `full_budget_ratio`, the budget with which
        the full head reaches the same loss, divided by `budget`.
        """
        assert self.full is not None
        row, other = super().optimum(budget), self.full.optimum(budget)
        ratios = {f"{name}_ratio": row[name] / other[name] for name in ("params", "tokens")}
        one = np.array([self.surface.coefficients])
        needed = float(self.full._budgets(one, row["loss"])[0]) / budget
        if len(self.draws):
            found, base = self._optima(self.draws, budget), self.full._optima(self.draws, budget)
            for name in ("params", "tokens"):
                row["intervals"][f"{name}_ratio"] = interval(found[name] / base[name])
        ratios["full_budget_ratio"] = needed if math.isfinite(needed) else None
        return {**row, **ratios, "full_head": other}


def with_legal_head(
    law: SurfaceLaw, rules: Rules, text_share: float, head_rows: float | None = None
) -> LegalHeadLaw:
    """Returns a law with the FLOPs of `model.head` = "legal".

    Args:
      law: a law with the FLOPs of models.
      rules: rules of the study.
      text_share: share of the positions in text, see `legal_head_rows`.
      head_rows: mean number of logits per token; None counts those of SODA's layout.

    Raises:
      UserError: if the law has the FLOPs of a table, the vocabulary is not that of SODA and `head_rows` is
        not given, or `head_rows` is larger than the vocabulary.
    """
    if law.study is None:
        raise UserError(
            "--head=legal needs the FLOPs of models: give --vocabulary, --sequence_length"
        )
    vocabulary, length, count = law.study
    layout = VocabularyLayout.soda()
    if head_rows is None:
        if vocabulary != layout.size:
            raise UserError(
                f"--head=legal: the legal ids of {vocabulary:,} ids are not known: give --head_rows"
            )
        head_rows = legal_head_rows(layout, text_share)
    if head_rows > vocabulary:
        raise UserError(f"--head_rows={head_rows:g} is more than the {vocabulary:,} ids")
    values = {field.name: getattr(law, field.name) for field in dataclasses.fields(law)}
    values["flops"] = model_flops(rules, vocabulary, length, count, head_rows)
    values["note"] = f"{law.note}, {head_rows:,.0f} logits a token"
    return LegalHeadLaw(**values, full=law)


def _draws(fit: Mapping[str, Any]) -> np.ndarray:
    return np.array([fit.get("draws", {}).get(name, []) for name in COEFFICIENTS], float).T


def _of_json(values: Mapping[str, Any]) -> Surface:
    return Surface(*(float(values[name]) for name in COEFFICIENTS))
