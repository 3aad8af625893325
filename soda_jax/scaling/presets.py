"""Published laws of the optimum, for `soda scaling predict --preset`."""

import dataclasses
import math
from typing import Any

from soda_jax.errors import UserError
from soda_jax.scaling.parabola import PowerLaw


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
        """Returns a model's tokens divided by those for which N is optimal; the loss is None.

        Raises:
          UserError: if the factor is too large or too small for a float.
        """
        # Without the budget itself, which overflows for extreme sizes.
        log_budget = (math.log(params) - self.params.offset) / self.params.exponent
        log_tokens = self.tokens.offset + self.tokens.exponent * log_budget
        factor = math.log(tokens) - log_tokens
        if abs(factor) > 700:
            raise UserError(f"--params={params:g} --tokens={tokens:g} is out of range")
        factor = math.exp(factor)
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
