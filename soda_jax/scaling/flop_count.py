"""Training FLOPs per token as a function of the number of parameters, for the models of a study."""

import dataclasses
import math

import numpy as np

from soda_jax.scaling.rules import Rules
from soda_jax.scaling.runs import PARAMETER_COUNTS

_MAX_WIDTH = 32_768
_NEAR = 1.25  # the slope of the FLOPs at N is that between N / 1.25 and 1.25 · N


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Training FLOPs per token of a model, log-linear between known sizes.

    Attributes:
      log_params: logarithms of parameters, ascending, `[sizes]`.
      log_flops: logarithms of the FLOPs per token, forward and backward, `[sizes]`.
    """

    log_params: np.ndarray
    log_flops: np.ndarray

    def __call__(self, params: np.ndarray) -> np.ndarray:
        """Returns FLOPs per token for counts of parameters; NaN outside the known sizes."""
        outside = {"left": math.nan, "right": math.nan}
        return np.exp(np.interp(np.log(params), self.log_params, self.log_flops, **outside))

    @property
    def sizes(self) -> tuple[float, float]:
        """The smallest and the largest known size, in parameters."""
        return float(np.exp(self.log_params[0])), float(np.exp(self.log_params[-1]))

    def slope(self, params: float) -> float:
        """Returns d log FLOPs / d log N at a size; NaN outside the known sizes."""
        low, high = self.sizes
        if not low <= params <= high:
            return math.nan
        ends = np.clip(np.log(params) + np.log([1 / _NEAR, _NEAR]), *self.log_params[[0, -1]])
        first, last = np.interp(ends, self.log_params, self.log_flops)
        return float((last - first) / (ends[1] - ends[0]))


def model_flops(
    rules: Rules,
    vocabulary: int,
    sequence_length: int,
    count: str = "params_total",
    head_rows: float | None = None,
) -> FlopCount:
    """Returns the FLOP count of the models of a study, 3 × forward, of widths 16 to 32,768.

    Args:
      rules: rules of the study.
      vocabulary: number of ids.
      sequence_length: tokens per window.
      count: which parameters are counted, one of `PARAMETER_COUNTS`.
      head_rows: mean number of logits per token, see `legal_head_rows`; by default all ids.

    Raises:
      UserError: if the rules have no shape for one of these widths.
    """
    matrices = dict(zip(PARAMETER_COUNTS, (2, 1, 0), strict=True))[count]
    shapes = [
        rules.shape_of(width) for width in (*range(16, 128, 16), *range(128, _MAX_WIDTH + 1, 128))
    ]
    known = {
        float(shape.parameters(vocabulary, matrices)): 3
        * shape.forward_flops_per_token(vocabulary, sequence_length, head_rows)
        for shape in shapes
    }
    params = sorted(known)
    return FlopCount(np.log(params), np.log([known[size] for size in params]))
